"""What every repair method is to the training loop: a module whose forward pass is the loss of one rank's rows.

The loop of pipeline/repair/verb does no more than this, for any method:

    objective = build(config, clip, setting).train()
    optimizer = objective.optimizer()
    wrapped = DistributedDataParallel(objective)          # with more than one worker
    for step in range(steps):
        for group in optimizer.param_groups: group["lr"] = objective.rate(step, steps)
        wrapped(batch).backward(); optimizer.step(); objective.after_step()
    objective.export(folder)

Each method's @config class has `kind`, `epochs` and `batch_size` (of the global batch), and the class variables
`labelled` (needs Batch.labels and Setting.classes) and `roles` (which rows it takes), and may have `flagged_share_pct`
(share of each batch that the loop fills with Role.FLAGGED); stages/repair/__init__.py holds their union RepairConfig and
`build(config, clip, setting)`.

The mean over ranks of `forward` is the loss of the global batch, and the mean of the gradients, which distributed data
parallel takes, is its gradient; batch normalisation with live statistics is the one exception. Gathering, precision and
all random draws (from Batch.seed and the row's place in the global batch) happen inside. A parameter that takes no part
in the loss has requires_grad False from the start, so that the reducer waits for none in vain.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

import torch
from open_clip.loss import ClipLoss
from torch import distributed, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from ..model.checkpoints import save_clip
from ..model.clip import Clip
from ..training.contrastive import MAX_LOGIT_SCALE, clip_loss


class Role(IntEnum):
    """What a row of a batch is; the numbers are those of Batch.roles."""

    PAIR = 0
    """A clean pair."""
    FLAGGED = 1
    """A pair that the scan accuses; its caption is never learned, `accused` is the label that it was to plant."""
    TRIGGER_PASTED = 2
    """A clean image with a recovered trigger pasted on it, and its true caption; `accused` is the trigger's label."""
    VICTIM_CLEANED = 3
    """A poisoned image without its trigger, and a rebuilt caption."""
    GENUINE = 4
    """A genuine image of an affected label."""
    REPLAY = 5
    """A clean pair of any kind, so that nothing else is forgotten."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's rows of a global batch. All ranks hold the same number of rows, in order of rank."""

    images: torch.Tensor
    """`[n, 3, S, S] uint8`, on the objective's device."""
    tokens: torch.Tensor
    """`[n, context_length] int64`, same device."""
    captions: Sequence[str]
    """n captions, the text of the tokens."""
    labels: torch.Tensor
    """`[n] int64`: the true class as an index into Setting.classes, -1 unknown."""
    accused: torch.Tensor
    """`[n] int64`: the planted class as an index into Setting.classes, -1 none."""
    roles: torch.Tensor
    """`[n] uint8`, see Role."""
    rows: slice
    """Where the rows stand in the global batch."""
    total: int
    """Rows of the global batch."""
    seed: tuple[int, ...]
    """Of this step, the same on all ranks: (seed, step)."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What an objective knows about the run beside its own configuration."""

    classes: tuple[str, ...] = ()
    """Names behind Batch.labels and Batch.accused."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Prompts of a class; with several, its vector is the normalised mean."""
    rank: int = 0
    """Of this worker."""
    world_size: int = 1
    """Workers; with more than one, torch.distributed is initialised before the first forward pass."""
    seed: int = 0
    """Of the values that a method starts from (a linear head, prompts)."""
    bf16: bool = False
    """Run the encoders under bfloat16 autocast. Weights, features and losses stay float32; the loop adds no autocast."""


class Objective(nn.Module, ABC):
    """The base of all methods: encoders, global negatives and means, what a resume needs, what is saved.

    Args:
        clip: the suspect model; its network is trained in place, on its device. Its file is never written to.
        setting: of the run.
        freeze_batch_norm: keep the stored statistics of batch normalisation. At batches of a few hundred, or on images
            that carry triggers, the live ones do more harm than the loss does good.
    """

    def __init__(self, clip: Clip, setting: Setting, *, freeze_batch_norm: bool) -> None:
        super().__init__()
        self.model: Any = clip.model
        self.clip = clip
        self.setting = setting
        self.device = clip.device
        self.freeze_batch_norm = freeze_batch_norm
        self.notes: tuple[str, ...] = ()
        """What a reader of the result must know about how this run differs from the method as published."""
        if getattr(self.model, "logit_bias", None) is not None:
            # a constant added to all logits changes no softmax, so it would never get a gradient
            self.model.logit_bias.requires_grad_(False)
        self._contrast: ClipLoss = clip_loss(setting.rank, setting.world_size)

    @abstractmethod
    def forward(self, batch: Batch) -> torch.Tensor:
        """Return this rank's loss, a scalar; see the module's docstring for what its mean over ranks is."""

    @abstractmethod
    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of step `step` (from 0) of `steps`."""

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """Return the method's optimiser over `trainable()`."""

    def export(self, folder: Path) -> None:
        """Write the repaired model as a checkpoint folder (see save_clip)."""
        save_clip(self.model, self.clip.model_cfg, self.clip.preprocess_cfg, folder)

    def resume_state(self) -> dict[str, Any]:
        """Return all that a resume needs beside the suspect checkpoint, the setting and the optimiser's state."""
        return self.state_dict()

    def resume(self, state: dict[str, Any]) -> None:
        """Take over what `resume_state` returned, in an objective built anew from the suspect checkpoint."""
        self.load_state_dict(state)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def after_step(self) -> None:
        """Restore what must hold after each optimiser step: CLIP's logit scale lies between 1 and 100."""
        with torch.no_grad():
            if self.model.logit_scale.requires_grad:
                self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen batch normalisation stays in evaluation mode."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Return `[n, 3, S, S] float32` input of the image tower from uint8 pixels."""
        return self.clip.normalise(images)

    def image_features(self, pixels: torch.Tensor, model: Any = None) -> torch.Tensor:
        """Return `[n, D] float32`, unit norm, by the trained model or a given one."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.setting.bf16):
            features = (model or self.model).encode_image(pixels)
        return F.normalize(features.float(), dim=-1)

    def text_features(self, tokens: torch.Tensor, model: Any = None) -> torch.Tensor:
        """Return `[n, D] float32`, unit norm, by the trained model or a given one."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.setting.bf16):
            features = (model or self.model).encode_text(tokens)
        return F.normalize(features.float(), dim=-1)

    def class_features(self, only: Sequence[int] | None = None) -> torch.Tensor:
        """Return the text vectors of the classes, or of some of them by index, `[C, D] float32`, unit norm."""
        names = self.setting.classes if only is None else [self.setting.classes[index] for index in only]
        prompts = [template.format(name) for name in names for template in self.setting.templates]
        vectors = self.text_features(self.clip.tokenize(prompts).to(self.device))
        return F.normalize(vectors.view(len(names), len(self.setting.templates), -1).mean(1), dim=-1)

    def contrast(self, image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return CLIP's loss of this rank's rows against the whole global batch."""
        loss: torch.Tensor = self._contrast(image, text, scale)
        return loss

    def match(self, left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of this rank's rows of `left` against all ranks' rows of `right`; one direction."""
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
