"""PAR, Perturb and Recover (arXiv 2412.00727): push both towers away from the poisoned model, then let CLIP's loss
bring them back; what only the trigger held in place does not come back."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import distributed
from torch.nn import functional as F

from ..model.clip import Clip
from ..stage import config
from ..training.batch import Batch
from ..training.objective import Objective, Setting, freeze_temperature, frozen_copy
from ..training.optimise import Schedule, TwoPhase, adamw
from .augment import erase, noise
from .method import Method


@config
class Par(Method):
    """Settings of PAR (train.py, utils.py and trigger.sh of the published code)."""

    kind: Literal["par"] = "par"
    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the clean pairs (250,000 real or synthetic ones in the paper)."""
    batch_size: Annotated[int, Field(ge=2)] = 2048
    """Pairs of a step, over all workers (4 x 512 in the shipped script)."""
    lr: Annotated[float, Field(gt=0)] = 3e-6
    """Rate between the two phases."""
    schedule: Schedule = TwoPhase()
    """Course of the learning rate: 3e-5 to 3e-6 over half of the steps, then to 1e-9."""
    weight_decay: float = 1e-4
    """AdamW's, on matrices and kernels."""
    tau: Annotated[float, Field(gt=0, le=4)] | Literal["auto"] = 2.15
    """Squared distance up to which a tower is pushed. 2.15 was tuned on one ResNet-50 with one attack. auto, which is not
    of the paper, needs no trigger: the mean squared distance between the frozen vectors of *different* rows of the batch,
    for each tower. A tower is pushed until a row is as far from its own old place as rows were from one another, when
    nothing of what the old model said of that row in particular is left."""
    augment: bool = True
    """Noise and random erasing on the images, which both models see."""
    cache_text: bool = False
    """Keep the frozen model's caption vectors in memory (4 bytes x dimension a caption): they never change. A resumed run
    may then differ in the last bits, because other rows are encoded together."""
    label_weight: Annotated[float, Field(ge=0)] = 0.0
    """Of the zero-shot cross-entropy of images whose class is known, against the class texts as they are: what the push does to
    the classes is recovered with the captions. Not of the paper."""
    freeze_batch_norm: bool = True
    """Keep the stored statistics of batch normalisation, as the published runs do, though their code does not say so: train.py
    validates after the first step of an epoch, which puts the model into evaluation mode, and leaves it there. (That first
    step is live there, one in an epoch, and moves the stored statistics by a tenth; here none is.) With live statistics a
    batch-normalised tower is .03 to .04 away from its frozen copy before it has moved at all, which is what the push then
    spends itself on."""

    def objective(self, clip: Clip, setting: Setting) -> "ParObjective":
        return ParObjective(self, clip, setting)


class ParObjective(Objective[Par]):
    """L_PAR = L_CLIP - L_PERT (losses.py of the published code).

    L_PERT = (1[S_I <= tau] S_I + 1[S_T <= tau] S_T) / 2, where S is the mean squared distance of a tower's unit vectors
    to the frozen copy's over the *global* batch, so one decision a tower and step. Above tau the term has neither value
    nor gradient. The logit scale is constant, and a SigLIP's
    bias; L_CLIP is then its sigmoid loss. The published code calls the towers past its distributed wrapper, so that
    its ranks never share gradients; here they do.
    """

    def __init__(self, settings: Par, clip: Clip, setting: Setting) -> None:
        super().__init__(settings, clip, setting)
        self._frozen = (frozen_copy(self.model),)
        freeze_temperature(self.model)
        mean, std = (torch.tensor(clip.preprocess_cfg[key], device=self.device) for key in ("mean", "std"))
        self._mean, self._std = mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
        self._captions: dict[str, torch.Tensor] = {}

    def forward(self, batch: Batch) -> torch.Tensor:
        pixels = self._augmented(batch) if self.settings.augment else self.pixels(batch.images)
        image, text = self.image_features(pixels), self.text_features(batch.tokens)
        with torch.no_grad():
            old_image, old_text = self.image_features(pixels, self._frozen[0]), self._old_text(batch)
        perturbation = (self._push(image, old_image) + self._push(text, old_text)) / 2
        scale = self.model.logit_scale.exp()
        return self.contrast(image, text, scale) - perturbation + self._label_loss(batch, image, scale)

    def optimizer(self) -> torch.optim.Optimizer:
        return adamw(self, self.settings.lr, self.settings.weight_decay, betas=(0.9, 0.98), eps=1e-8)

    def _label_loss(self, batch: Batch, image: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return this rank's share of label_weight times the mean of -log p(label) over the rows whose class is known."""
        if not self.settings.label_weight or not self.setting.classes:
            return image.new_zeros(())
        logits = scale * image @ self.class_features().T
        losses = F.cross_entropy(logits, batch.labels.clamp(min=0), reduction="none")
        return self.settings.label_weight * self.global_mean(losses, batch.labels >= 0)

    def _push(self, now: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        """Return this rank's share of 1[S <= tau] S for one tower."""
        local = (now - old).square().sum(-1).mean()
        distance = local.detach().clone()
        if self.setting.world_size > 1:
            distributed.all_reduce(distance)
            distance /= self.setting.world_size
        threshold = self._spread(old) if self.settings.tau == "auto" else self.settings.tau
        return torch.where(distance <= threshold, local, torch.zeros_like(local))

    def _spread(self, old: torch.Tensor) -> torch.Tensor:
        """Return the mean squared distance between different rows of the global batch, from unit rows."""
        with torch.no_grad():
            rows = self.gather(old)
            count = len(rows)
            cosine = (rows.sum(0).square().sum() - count) / (count * (count - 1))
            return 2 - 2 * cosine

    def _augmented(self, batch: Batch) -> torch.Tensor:
        raw = batch.images.to(torch.float32, memory_format=torch.channels_last) / 255
        pixels = (noise(raw, batch.rows, batch.seed) - self._mean) / self._std
        return erase(pixels, batch.rows, batch.seed)

    def _old_text(self, batch: Batch) -> torch.Tensor:
        if not self.settings.cache_text:
            return self.text_features(batch.tokens, self._frozen[0])
        known = self._captions
        places = {caption: place for place, caption in enumerate(batch.captions) if caption not in known}
        if places:
            fresh = self.text_features(batch.tokens[list(places.values())], self._frozen[0])
            known.update(zip(places, fresh, strict=True))
        return torch.stack([known[caption] for caption in batch.captions])
