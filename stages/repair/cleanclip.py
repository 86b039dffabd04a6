"""CleanCLIP (Bansal et al. 2023, arXiv 2303.03323): learn each modality's own structure anew, so that the trigger's
tie to the target wears off. Unsupervised from clean pairs, or supervised from labelled images."""

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from ..model.clip import Clip
from ..precision import autocast
from ..stage import config
from ..training.batch import Batch
from ..training.objective import Objective, Setting, freeze_text
from ..training.optimise import CosineWarmup, Schedule, adamw
from .augment import auto_augment
from .eda import WORDNET, augment_caption, thesaurus, thesaurus_files
from .method import Method

NO_THESAURUS = (
    "no thesaurus was given: captions were augmented by swapping and leaving out words only, "
    "without the synonyms that EDA also uses"
)


@config
class CleanClip(Method):
    """Settings of unsupervised CleanCLIP (README and src/parser.py of the published code)."""

    kind: Literal["cleanclip"] = "cleanclip"
    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the clean pairs (100,000 in the paper)."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Pairs of a step, over all workers."""
    lr: Annotated[float, Field(gt=0)] = 1e-5
    """Peak learning rate."""
    schedule: Schedule = CosineWarmup(warmup_steps=50)
    """Course of the learning rate. The published code reads it one epoch too late and skips the rise; this does not."""
    weight_decay: float = 0.1
    """AdamW's, on matrices and kernels. Its moments start at zero; the published code takes over the pretraining's."""
    clip_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the contrastive loss."""
    inmodal_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the self-supervision."""
    synonyms: str | None = WORDNET
    """Thesaurus for EDA: wordnet, which is installed with clipsan, or a file or folder (stages.repair.eda.read_thesaurus). Null
    leaves out two of its four operations."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """EDA's share of the words."""
    freeze_batch_norm: bool = False
    """Keep the stored statistics of batch normalisation."""

    @property
    def files(self) -> tuple[str, ...]:
        return thesaurus_files(self.synonyms)

    def objective(self, clip: Clip, setting: Setting) -> "CleanClipObjective":
        return CleanClipObjective(self, clip, setting)


SIGMOID = (
    "the model is a SigLIP: its contrastive term is the sigmoid loss; the self-supervision is the softmax as published, at the "
    "model's logit scale, which that term does not move"
)


class TwoViews:
    """A second view of every pair: AutoAugment for the image, EDA for the caption, drawn from step and row.

    Raises:
        ThesaurusError: the thesaurus cannot be read.
    """

    def __init__(self, synonyms: str | None, alpha: float) -> None:
        self._alpha = alpha
        self._thesaurus = thesaurus(synonyms) if synonyms is not None else None
        self.notes = () if self._thesaurus is not None else (NO_THESAURUS,)

    def images(self, batch: Batch) -> torch.Tensor:
        """Return the augmented images, `[n, 3, S, S] uint8`."""
        return auto_augment(batch.images, batch.rows, batch.seed)

    def captions(self, batch: Batch) -> list[str]:
        """Return the n augmented captions."""
        rows = range(batch.rows.start, batch.rows.stop)
        return [
            augment_caption(caption, self._thesaurus, np.random.default_rng((*batch.seed, row, 2)), self._alpha)
            for caption, row in zip(batch.captions, rows, strict=True)
        ]


class CleanClipObjective(Objective[CleanClip]):
    """L = clip_weight L_CLIP + inmodal_weight L_SS; everything is trained.

    L_SS is the mean of two cross-entropies over the global batch with CLIP's own logit scale: image against augmented
    image and text against augmented text, originals as rows, one direction (src/train.py of the published code). Both
    views pass through an encoder as one batch, as there, so live batch normalisation sees them together.
    """

    def __init__(self, settings: CleanClip, clip: Clip, setting: Setting) -> None:
        super().__init__(settings, clip, setting)
        self.views = TwoViews(settings.synonyms, settings.alpha)
        self.notes = (*self.views.notes, *([SIGMOID] if self.is_sigmoid else []))

    def forward(self, batch: Batch) -> torch.Tensor:
        image, image_view, text, text_view = encode_views(self, self.views, batch)
        scale = self.model.logit_scale.exp()
        contrastive = self.contrast(image, text, scale)
        return self.settings.clip_weight * contrastive + self.settings.inmodal_weight * self_supervision(
            self, image, image_view, text, text_view, scale
        )

    def optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW(0.9, 0.999), as the published code."""
        return adamw(self, self.settings.lr, self.settings.weight_decay, betas=(0.9, 0.999), eps=1e-8)


def encode_views(
    objective: Objective, views: TwoViews, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return unit features `[n, D]` of images, augmented images, captions and augmented captions."""
    pixels = objective.pixels(torch.cat([batch.images, views.images(batch)]))
    image, image_view = objective.image_features(pixels).chunk(2)
    text = objective.text_features(batch.tokens)
    text_view = objective.text_features(objective.tokens(views.captions(batch)))
    return image, image_view, text, text_view


def self_supervision(
    objective: Objective,
    image: torch.Tensor,
    image_view: torch.Tensor,
    text: torch.Tensor,
    text_view: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Return CleanCLIP's L_SS of this rank's rows.

    A SigLIP's scale is fitted to its bias, across the towers: here it is a constant.
    """
    scale = scale.detach() if objective.is_sigmoid else scale
    return (objective.match(image, image_view, scale) + objective.match(text, text_view, scale)) / 2


@config
class CleanClipSupervised(Method):
    """Settings of supervised CleanCLIP (README and src/evaluate.py of the published code)."""

    takes_labels: ClassVar[bool] = True

    kind: Literal["cleanclip_supervised"] = "cleanclip_supervised"
    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the labelled images (50,000 in the paper)."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images of a step, over all workers."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate."""
    schedule: Schedule = CosineWarmup(warmup_steps=500)
    """Course of the learning rate."""
    weight_decay: float = 0.01
    """AdamW's, on matrices and kernels."""
    head: Literal["linear", "zero_shot"] = "linear"
    """linear: a new layer on the image embedding, as published; it is thrown away afterwards, and with it goes what ties
    the classes to their texts. zero_shot: the class prompts' vectors, fixed, so that the model stays a CLIP."""
    freeze_batch_norm: bool = False
    """Keep the stored statistics of batch normalisation."""

    def objective(self, clip: Clip, setting: Setting) -> "CleanClipSupervisedObjective":
        return CleanClipSupervisedObjective(self, clip, setting)


class CleanClipSupervisedObjective(Objective[CleanClipSupervised]):
    """L = cross-entropy of the labels over the global batch; the image tower (and the linear head) is trained.

    Rows without a label take no part.
    """

    def __init__(self, settings: CleanClipSupervised, clip: Clip, setting: Setting) -> None:
        super().__init__(settings, clip, setting)
        freeze_text(self.model)
        if settings.head == "linear":
            self.head: nn.Linear | None = nn.Linear(clip.embed_dim, len(setting.classes)).to(self.device)
            bound = clip.embed_dim**-0.5  # nn.Linear's own
            rng = np.random.default_rng(setting.seed)
            with torch.no_grad():
                for parameter in self.head.parameters():
                    parameter.copy_(torch.from_numpy(rng.uniform(-bound, bound, tuple(parameter.shape))))
        else:
            self.head = None
            self.fix_classes()

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return this rank's share of the mean cross-entropy."""
        pixels = self.pixels(batch.images)
        if self.head is not None:
            with autocast(self.device, bf16=self.setting.bf16):
                features = self.model.encode_image(pixels)
            logits = self.head(features.float())
        else:
            logits = self.scale * self.image_features(pixels) @ self.classes.T
        losses = F.cross_entropy(logits, batch.labels.clamp(min=0), reduction="none")
        return self.global_mean(losses, batch.labels >= 0)

    def optimizer(self) -> torch.optim.Optimizer:
        return adamw(self, self.settings.lr, self.settings.weight_decay, betas=(0.9, 0.999), eps=1e-8)
