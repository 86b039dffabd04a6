"""What is trained, to the training loop: a module whose forward pass is the loss of one rank's rows.

The loop of pipeline/train does no more than this, for plain contrastive training as for any method of repair:

    objective = settings.build(clip, setting).train()
    optimizer = objective.optimizer()
    wrapped = DistributedDataParallel(objective)          # with more than one worker
    for step in range(steps):
        for group in optimizer.param_groups: group["lr"] = objective.rate(step, steps)
        wrapped(batch).backward(); optimizer.step(); objective.after_step()
    objective.export(folder)

The mean over ranks of `forward` is the loss of the global batch, and the mean of the gradients, which distributed data
parallel takes, is its gradient; batch normalisation with live statistics is the one exception. Gathering, precision and
all random draws (from Batch.seed and the row's place in the global batch) happen inside. All of the forward pass happens in
`forward`: calling the encoders of a wrapped module directly would go past the gradient reducer, and the ranks would drift
apart unnoticed. A parameter that takes no part in the loss has requires_grad False from the start, so that the reducer waits
for none in vain.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from open_clip.loss import ClipLoss
from torch import distributed, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from ..evaluation.zero_shot import class_prompts
from ..model.checkpoints import save_clip
from ..model.clip import Clip
from ..model.text import encode_text
from ..precision import autocast
from .batch import Batch
from .optimise import Schedule

MAX_LOGIT_SCALE = math.log(100.0)
"""CLIP clips the scale at 100 (Radford et al. 2021, section 2.5)."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What an objective knows about the run beside its own configuration."""

    classes: tuple[str, ...] = ()
    """Names behind Batch.labels and Batch.accused, synonyms separated by commas."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Prompts of a class: its vector is the normalised mean over its synonyms and these."""
    rank: int = 0
    """Of this worker."""
    world_size: int = 1
    """Workers; with more than one, torch.distributed is initialised before the first forward pass."""
    seed: int = 0
    """Of the values that a method starts from (a linear head, prompts)."""
    bf16: bool = False
    """Run the encoders under bfloat16 autocast, where the device has it. Weights, features and losses stay float32; the loop adds no
    autocast."""


class Settings(Protocol):
    """What the settings of every objective have."""

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        ...

    @property
    def schedule(self) -> Schedule:
        """Course of the learning rate."""
        ...

    @property
    def freeze_batch_norm(self) -> bool:
        """Keep the stored statistics of batch normalisation. At batches of a few hundred, or on images that carry triggers,
        the live ones do more harm than the loss does good."""
        ...


S = TypeVar("S", bound=Settings)


class Objective(nn.Module, ABC, Generic[S]):
    """The base of all objectives: encoders, global negatives and means, what is trained, what is saved.

    Args:
        settings: of the objective.
        clip: the model; its network is trained in place, on its device. Its file is never written to.
        setting: of the run.
    """

    classes: torch.Tensor
    """`[C, D]`, see fix_classes."""
    scale: torch.Tensor
    """Of the logits towards them."""

    def __init__(self, settings: S, clip: Clip, setting: Setting) -> None:
        super().__init__()
        self.settings = settings
        self.model: Any = clip.model
        self.clip = clip
        self.setting = setting
        self.device = clip.device
        self.notes: tuple[str, ...] = ()
        """What a reader of the result must know about how this run differs from the method as published."""
        self._contrast: ClipLoss = clip_loss(setting.rank, setting.world_size)

    @abstractmethod
    def forward(self, batch: Batch) -> torch.Tensor:
        """Return this rank's loss, a scalar; see the module's docstring for what its mean over ranks is."""

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser over `trainable()`."""

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of step `step` (from 0) of `steps`."""
        return self.settings.schedule.rate(step, steps, self.settings.lr)

    def export(self, folder: Path) -> None:
        """Write the trained model as a checkpoint folder (see save_clip)."""
        save_clip(self.model, self.clip.model_cfg, self.clip.preprocess_cfg, folder, self.clip.tokenizer)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    @property
    def is_sigmoid(self) -> bool:
        """Whether the model is a SigLIP: it has a bias for its logits, and learns each pair of a batch by itself."""
        return is_sigmoid(self.model)

    @property
    def parameter_counts(self) -> tuple[int, int]:
        """How many parameters are trained, and how many the model has."""
        trained = sum(value.numel() for value in self.trainable().values())
        return trained, sum(value.numel() for value in self.model.parameters())

    def after_step(self) -> None:
        """Restore what must hold after each optimiser step: CLIP's logit scale lies between 1 and 100.

        SigLIP bounds its scale nowhere, and published ones lie above 100.
        """
        with torch.no_grad():
            if self.model.logit_scale.requires_grad and not self.is_sigmoid:
                self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen batch normalisation stays in evaluation mode."""
        super().train(mode)
        if self.settings.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Return `[n, 3, S, S] float32` input of the image tower from uint8 pixels."""
        return self.clip.normalise(images)

    def image_features(self, pixels: torch.Tensor, model: Any = None) -> torch.Tensor:
        """Return `[n, D] float32`, unit norm, by the trained model or a given one."""
        with autocast(self.device, bf16=self.setting.bf16):
            features = (model or self.model).encode_image(pixels)
        return F.normalize(features.float(), dim=-1)

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the tokens of some texts as `text_features` takes them, `[n, L] int64`, on the model's device."""
        return self.clip.shorten(self.clip.tokenize(texts)).to(self.device)

    def text_features(self, tokens: torch.Tensor, model: Any = None) -> torch.Tensor:
        """Return `[n, D] float32`, unit norm, by the trained model or a given one."""
        with autocast(self.device, bf16=self.setting.bf16):
            features = encode_text(model or self.model, tokens)
        return F.normalize(features.float(), dim=-1)

    def class_features(self, only: Sequence[int] | None = None) -> torch.Tensor:
        """Return the text vectors of the classes, or of some of them by index, `[C, D] float32`, unit norm.

        They are those of stages.evaluation.zero_shot.class_embeddings, with gradients.
        """
        names = self.setting.classes if only is None else [self.setting.classes[index] for index in only]
        prompts, owners = class_prompts(names, self.setting.templates)
        vectors = self.text_features(self.tokens(prompts))
        sums = vectors.new_zeros(len(names), vectors.shape[1])
        return F.normalize(sums.index_add(0, torch.tensor(owners, device=self.device), vectors), dim=-1)

    def fix_classes(self, scale: float | None = None) -> None:
        """Keep the text vectors of the classes, and the scale of the logits towards them, the model's where none is given, as they are now:
        in `classes` and `scale`, which are not saved."""
        with torch.no_grad():
            given = self.model.logit_scale.exp() if scale is None else scale
            self.register_buffer("classes", self.class_features(), persistent=False)
            self.register_buffer("scale", torch.as_tensor(given, device=self.device).clone(), persistent=False)

    def contrast(self, image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the model's own contrastive loss of this rank's rows against the whole global batch.

        CLIP's, the symmetric cross-entropy; for a SigLIP its sigmoid loss.
        """
        if self.is_sigmoid:
            return sigmoid_loss(image, self.gather(text), scale, self.model.logit_bias, self.setting.rank)
        loss: torch.Tensor = self._contrast(image, text, scale)
        return loss

    def match(self, left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of this rank's rows of `left` against all ranks' rows of `right`; one direction.

        It compares the rows of one tower, which no bias of a SigLIP was fitted to: it is the softmax for every model.
        """
        logits = scale * left @ self.gather(right).T
        own = torch.arange(len(left), device=left.device) + self.setting.rank * len(left)
        return F.cross_entropy(logits, own)

    def gather(self, local: torch.Tensor) -> torch.Tensor:
        """Return all ranks' rows in order of rank, `[total, ...]`; gradients flow back to the rank that made them."""
        if self.setting.world_size == 1:
            return local
        return torch.cat(list(all_gather(local)))  # type: ignore[no-untyped-call]

    def global_mean(self, values: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Return this rank's share of the mean of `values` `[n]` over all kept rows of the global batch.

        The mean of the shares over ranks is that mean, however the kept rows are spread; it is 0 when there are none.
        """
        count = keep.sum().to(values.dtype)
        if self.setting.world_size > 1:
            distributed.all_reduce(count)
        # where, not a product: a row that is left out may hold an infinity
        return torch.where(keep, values, 0.0).sum() * self.setting.world_size / count.clamp(min=1)


def clip_loss(rank: int, world_size: int) -> ClipLoss:
    """Return CLIP's symmetric cross-entropy over the global batch, with gradients through the gathered features.

    Each rank computes the logits of its own rows against all rows; the mean over ranks, which distributed data parallel
    takes of the gradients, is the loss of the global batch. All ranks need the same number of rows.
    """
    return ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)


def is_sigmoid(model: Any) -> bool:
    """Whether a network is trained with the sigmoid loss: open_clip gives such a one a bias for its logits."""
    return getattr(model, "logit_bias", None) is not None


def sigmoid_loss(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, rank: int = 0
) -> torch.Tensor:
    """Return SigLIP's loss (Zhai et al. 2023, arXiv 2303.15343, section 3.2), as open_clip's SigLipLoss computes it.

    The sum over all pairs of an image and a text of -log sigmoid(z (scale cos + bias)), z = 1 for a row's own text and -1 for all
    others, by the number of images. The mean over ranks is the loss of the global batch.

    Args:
        image: this rank's `[n, D]`, unit rows.
        text: those of all ranks, `[N, D]`, unit rows.
        scale: a scalar, the exponential of the model's logit_scale.
        bias: the model's logit_bias, a scalar.
        rank: of this worker; its own rows begin at `rank * n`.
    """
    logits = scale * image @ text.T + bias
    signs = torch.full_like(logits, -1.0)
    signs.diagonal(rank * len(image)).fill_(1.0)
    return -F.logsigmoid(signs * logits).sum() / len(image)


def freeze_temperature(model: Any) -> None:
    """Leave the scale of the logits, and a SigLIP's bias, as they are."""
    for name in ("logit_scale", "logit_bias"):
        if getattr(model, name, None) is not None:
            getattr(model, name).requires_grad_(False)


def freeze_text(model: nn.Module) -> None:
    """Leave only the image tower to train: the text tower and the logit scale keep their values."""
    for name, parameter in model.named_parameters():
        if not name.startswith("visual."):
            parameter.requires_grad_(False)


def frozen_copy(model: nn.Module) -> Any:
    """Return a copy in evaluation mode that is never trained.

    An objective keeps it in a tuple: registered as a submodule it would be stored with every checkpoint, synchronised
    between workers and switched to training mode.
    """
    return deepcopy(model).eval().requires_grad_(False)


def cosine_rows(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the cosine of each row of two matrices of unit rows, `[n]`."""
    return (left * right).sum(-1)
