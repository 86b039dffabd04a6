"""Contrastive training: the model's loss over the global batch, from scratch, as fine-tuning, or as the baseline of the repairs."""

from typing import ClassVar, Protocol

import torch

from ..model.clip import Clip
from ..stage import config
from .augment import AugmentConfig, augment
from .batch import Batch
from .objective import Objective, Setting, Settings
from .optimise import Schedule, adamw


class ContrastiveSettings(Settings, Protocol):
    """What the objective reads; see Contrastive."""

    @property
    def weight_decay(self) -> float: ...
    @property
    def augment(self) -> AugmentConfig: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def eps(self) -> float: ...


@config
class Contrastive:
    """Settings of plain contrastive training, with CLIP's moments and epsilon (Radford et al. 2021, table 19)."""

    betas: ClassVar[tuple[float, float]] = (0.9, 0.98)
    eps: ClassVar[float] = 1e-6
    freeze_batch_norm: ClassVar[bool] = False

    lr: float
    """Peak learning rate."""
    schedule: Schedule
    """Course of the learning rate."""
    weight_decay: float
    """AdamW's, on matrices and kernels."""
    augment: AugmentConfig
    """Random crops and flips."""

    def build(self, clip: Clip, setting: Setting) -> "ContrastiveObjective":
        """Return the objective on a model, which it trains in place."""
        return ContrastiveObjective(self, clip, setting)


class ContrastiveObjective(Objective[ContrastiveSettings]):
    """L = L_CLIP, the symmetric cross-entropy of the global batch, or a SigLIP's sigmoid loss; everything is trained."""

    def forward(self, batch: Batch) -> torch.Tensor:
        images = augment(batch.images, batch.rows, batch.total, self.settings.augment, batch.seed)
        image = self.image_features(self.pixels(images))
        return self.contrast(image, self.text_features(batch.tokens), self.model.logit_scale.exp())

    def optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        return adamw(self, settings.lr, settings.weight_decay, betas=settings.betas, eps=settings.eps)
