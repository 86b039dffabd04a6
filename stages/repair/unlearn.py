"""clipsan's own repair: unlearn what the scan accuses, and hold everything else where it is.

The four published methods are blind: they disturb the whole model and hope that the trigger suffers most. The scan knows
which pairs planted the trigger and what label they planted, so this pushes exactly those images away from that label,
turns images with a recovered trigger back to their true captions, and ties clean images to the suspect model's own
vectors. The text tower is fixed: it is shared by all classes and carries no trigger of its own. Where the scan accuses
nothing there is nothing to push, and a blind method is all that is left for who wishes a repair at all: `blind`.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch.nn import functional as F

from ..model.clip import Clip
from ..stage import config
from ..training.batch import Batch, Role
from ..training.objective import Objective, Setting, cosine_rows, freeze_text, frozen_copy
from ..training.optimise import CosineWarmup, Schedule, adamw
from .method import Fallback, Method
from .par import Par


@config
class Unlearn(Method):
    """Settings of the unlearning; found on small models."""

    takes_labels: ClassVar[bool] = True
    roles: ClassVar[tuple[Role, ...]] = (Role.PAIR, Role.FLAGGED, Role.TRIGGER_PASTED)
    needs_scan: ClassVar[str | None] = "unlearns what a scan flags"
    when_nothing_accused: ClassVar[Fallback | None] = Fallback(
        "blind",
        "the scan accuses nothing, so there is nothing to unlearn: the model is perturbed and recovered instead (PAR, "
        "method.blind), against a backdoor that the scan missed",
    )

    kind: Literal["unlearn"] = "unlearn"
    epochs: Annotated[int, Field(ge=1)] = 5
    """Passes over the clean pairs."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Pairs of a step, over all workers."""
    flagged_share_pct: Annotated[float, Field(ge=0, lt=100)] = 25.0
    """Share of each batch that flagged pairs fill, drawn again when they run out."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    schedule: Schedule = CosineWarmup(warmup_steps=10)
    """Course of the learning rate."""
    weight_decay: float = 0.0
    """AdamW's, on matrices and kernels."""
    flagged_weight: Annotated[float, Field(ge=0)] = 2.0
    """Of the push away from the accused label."""
    floor: Annotated[float, Field(ge=0)] = 4.0
    """The push ends where the log probability of the accused label is below minus this."""
    pasted_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the pull of images with a recovered trigger to what they truly show."""
    keep_weight: Annotated[float, Field(ge=0)] = 5.0
    """Of the tie to the suspect model's vectors of clean images."""
    label_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the zero-shot cross-entropy of clean images whose class is known."""
    freeze_batch_norm: bool = True
    """Keep the stored statistics of batch normalisation: batches are rich in triggers."""
    blind: Par = Par(batch_size=128, tau="auto", label_weight=1.0)
    """What is done instead where the scan accuses nothing. Its epochs, batch size and rate are its own: it moves the whole
    model and brings it back, which no tie to the old one survives."""

    def objective(self, clip: Clip, setting: Setting) -> "UnlearnObjective":
        return UnlearnObjective(self, clip, setting)


class UnlearnObjective(Objective[Unlearn]):
    """L = flagged_weight L_F + pasted_weight L_P + keep_weight L_K + label_weight L_Y; the image tower is trained.

    Each term is a mean over its own rows of the global batch; p is the softmax over all classes at the model's own logit
    scale, which is fixed as the class vectors are.
    - L_F, flagged rows: relu(log p(accused) + floor).
    - L_P, rows with a pasted trigger: -log p(label) where the class is known, else the cross-entropy of the row's own
      caption against the accused label alone; with neither known the row takes no part.
    - L_K, clean rows: 1 - cos to the suspect model's vector of the same image.
    - L_Y, clean rows whose class is known: -log p(label).
    """

    def __init__(self, settings: Unlearn, clip: Clip, setting: Setting) -> None:
        super().__init__(settings, clip, setting)
        freeze_text(self.model)
        self._frozen = (frozen_copy(self.model),)
        self.fix_classes()

    def forward(self, batch: Batch) -> torch.Tensor:
        pixels = self.pixels(batch.images)
        image = self.image_features(pixels)
        chances = F.log_softmax(self.scale * image @ self.classes.T, dim=-1)
        flagged = (batch.roles == Role.FLAGGED) & (batch.accused >= 0)
        pasted = batch.roles == Role.TRIGGER_PASTED
        clean = (batch.roles != Role.FLAGGED) & ~pasted
        known = batch.labels >= 0
        accused_chance = chances.gather(1, batch.accused.clamp(min=0)[:, None])[:, 0]
        label_loss = -chances.gather(1, batch.labels.clamp(min=0)[:, None])[:, 0]
        terms = self.settings
        loss = terms.flagged_weight * self.global_mean(F.relu(accused_chance + terms.floor), flagged)
        loss = loss + terms.label_weight * self.global_mean(label_loss, clean & known)
        loss = loss + terms.keep_weight * self.global_mean(1 - cosine_rows(image, self._old(pixels)), clean)
        restored = torch.where(known, label_loss, self._against_caption(batch, image))
        return loss + terms.pasted_weight * self.global_mean(restored, pasted & (known | (batch.accused >= 0)))

    def optimizer(self) -> torch.optim.Optimizer:
        return adamw(self, self.settings.lr, self.settings.weight_decay, betas=(0.9, 0.999), eps=1e-8)

    def _old(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.image_features(pixels, self._frozen[0])

    def _against_caption(self, batch: Batch, image: torch.Tensor) -> torch.Tensor:
        """Return -log of the softmax of the own caption against the accused label, `[n]`."""
        with torch.no_grad():
            text = self.text_features(batch.tokens)
        planted = self.classes[batch.accused.clamp(min=0)]
        return F.softplus(self.scale * (cosine_rows(image, planted) - cosine_rows(image, text)))
