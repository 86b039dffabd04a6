"""Plain contrastive fine-tuning on clean pairs: the baseline, known to leave most backdoors in place."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..model.clip import Clip
from ..stage import config
from ..training.augment import AugmentConfig
from ..training.contrastive import ContrastiveObjective
from ..training.objective import Setting
from ..training.optimise import CosineWarmup, Schedule
from .method import Method


@config
class FineTune(Method):
    """Settings of plain fine-tuning; the numbers are those of CleanCLIP's fine-tuning (its README)."""

    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    eps: ClassVar[float] = 1e-8
    augment: ClassVar[AugmentConfig] = AugmentConfig()

    kind: Literal["finetune"] = "finetune"
    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the clean pairs."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Pairs of a step, over all workers."""
    lr: Annotated[float, Field(gt=0)] = 1e-5
    """Peak learning rate."""
    schedule: Schedule = CosineWarmup(warmup_steps=50)
    """Course of the learning rate."""
    weight_decay: float = 0.1
    """AdamW's, on matrices and kernels."""
    freeze_batch_norm: bool = False
    """Keep the stored statistics of batch normalisation."""

    def objective(self, clip: Clip, setting: Setting) -> ContrastiveObjective:
        return ContrastiveObjective(self, clip, setting)
