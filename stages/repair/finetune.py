"""Plain contrastive fine-tuning on clean pairs: the baseline, known to leave most backdoors in place."""

from typing import ClassVar, Literal

import torch

from ..model.clip import Clip
from ..stage import config
from ..training.contrastive import CosineWarmup, adamw
from .objective import Batch, Objective, Role, Setting
from .optimise import RepairSchedule, check_numbers


@config
class FineTune:
    """Settings of plain fine-tuning; the numbers are those of CleanCLIP's fine-tuning (its README)."""

    labelled: ClassVar[bool] = False
    roles: ClassVar[tuple[Role, ...]] = (Role.PAIR,)

    kind: Literal["finetune"] = "finetune"
    epochs: int = 10
    """Passes over the clean pairs."""
    batch_size: int = 64
    """Pairs of a step, over all workers."""
    lr: float = 1e-5
    """Peak learning rate."""
    schedule: RepairSchedule = CosineWarmup(warmup_steps=50)
    """Course of the learning rate."""
    weight_decay: float = 0.1
    """AdamW's, on matrices and kernels."""
    freeze_batch_norm: bool = False
    """Keep the stored statistics of batch normalisation."""

    def __post_init__(self) -> None:
        check_numbers(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr)


class FineTuneObjective(Objective):
    """L = L_CLIP, the symmetric cross-entropy of the global batch; everything is trained."""

    def __init__(self, settings: FineTune, clip: Clip, setting: Setting) -> None:
        super().__init__(clip, setting, freeze_batch_norm=settings.freeze_batch_norm)
        self.settings = settings

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return this rank's contrastive loss."""
        image = self.image_features(self.pixels(batch.images))
        return self.contrast(image, self.text_features(batch.tokens), self.model.logit_scale.exp())

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step."""
        return self.settings.schedule.rate(step, steps, self.settings.lr)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW(0.9, 0.999), as CleanCLIP uses it."""
        return adamw(self, self.settings.lr, self.settings.weight_decay, betas=(0.9, 0.999), eps=1e-8)
