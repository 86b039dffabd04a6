"""TBAR: task arithmetic unlearns a trigger (arXiv 2510.14845): learn the trigger a little more, then go the other way.

Fine-tuning the suspect model on images with the trigger under the trigger's label gives the backdoor's own task vector, trained weights
less suspect ones; the repaired weights are the suspect ones less a multiple of it (Ilharco et al. 2023, arXiv 2212.04089). No clean
pair takes part. The paper's abstract and a review of it could be had, whose arithmetic this is; loss, tower and all numbers are ours.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch.nn import functional as F

from ..model.checkpoints import save_clip
from ..model.clip import Clip
from ..stage import config
from ..training.batch import Batch, Role
from ..training.objective import Objective, Setting, freeze_text, frozen_copy
from ..training.optimise import CosineWarmup, Schedule, adamw
from .interpolate import between
from .method import Method


@config
class Tbar(Method):
    """Settings of TBAR; all numbers are ours."""

    roles: ClassVar[tuple[Role, ...]] = (Role.TRIGGER_PASTED,)
    needs_scan: ClassVar[str | None] = "negates the trigger of a scan that has proven one"
    takes_labels: ClassVar[bool] = True
    freeze_batch_norm: ClassVar[bool] = True

    kind: Literal["tbar"] = "tbar"
    epochs: Annotated[int, Field(ge=1)] = 5
    """Passes over the images with a pasted trigger (a fifth of the compact set)."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Images of a step, over all workers."""
    lr: Annotated[float, Field(gt=0)] = 1e-5
    """Peak learning rate; for a small model a tenth of the pretraining's."""
    schedule: Schedule = CosineWarmup(warmup_steps=5)
    """Course of the learning rate."""
    scale: Annotated[float, Field(ge=0)] = 1.0
    """How much of the task vector is taken off; the paper chooses it on held-out images, `clipsan sweep` can."""

    def objective(self, clip: Clip, setting: Setting) -> "TbarObjective":
        return TbarObjective(self, clip, setting)


class TbarObjective(Objective[Tbar]):
    """L = the mean of -log p(accused) over rows with a pasted trigger; the image tower is trained, and its way negated on export.

    p is the softmax over all classes at the model's own logit scale.
    """

    def __init__(self, settings: Tbar, clip: Clip, setting: Setting) -> None:
        super().__init__(settings, clip, setting)
        freeze_text(self.model)
        self._suspect = (frozen_copy(self.model),)
        self.classes: torch.Tensor
        with torch.no_grad():
            self.register_buffer("classes", self.class_features(), persistent=False)

    def forward(self, batch: Batch) -> torch.Tensor:
        image = self.image_features(self.pixels(batch.images))
        logits = self.model.logit_scale.exp() * image @ self.classes.T
        losses = F.cross_entropy(logits, batch.accused.clamp(min=0), reduction="none")
        return self.global_mean(losses, (batch.roles == Role.TRIGGER_PASTED) & (batch.accused >= 0))

    def optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW without decay, which would be part of the task vector."""
        return adamw(self, self.settings.lr, 0.0, betas=(0.9, 0.999), eps=1e-8)

    def export(self, folder: Path) -> None:
        """Write suspect weights less `scale` times the task vector."""
        learned = self.model.state_dict()
        negated = frozen_copy(self.model)
        negated.load_state_dict(between(self._suspect[0].state_dict(), learned, -self.settings.scale))
        save_clip(negated, self.clip.model_cfg, self.clip.preprocess_cfg, folder, self.clip.tokenizer)
