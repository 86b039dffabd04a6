"""RVPT, Repulsive Visual Prompt Tuning (arXiv 2412.20392): prompts that turn the later features away from what the
poisoned encoder makes of an image, while a few labelled images keep the classes right."""

from hashlib import blake2b
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch.nn import functional as F

from ..model.clip import Clip
from ..model.prompts import attach, save_adapter
from ..stage import config
from ..training.batch import Batch
from ..training.objective import Objective, Setting
from ..training.optimise import CosineWarmup, Schedule
from .method import Method


@config
class Rvpt(Method):
    """Settings of RVPT (section 5.1 and appendix of the paper; no usable code was published)."""

    takes_labels: ClassVar[bool] = True
    result: ClassVar[Literal["checkpoint", "adapter"]] = "adapter"
    freeze_batch_norm: ClassVar[bool] = True

    kind: Literal["rvpt"] = "rvpt"
    epochs: Annotated[int, Field(ge=1)] = 50
    """Passes over the labelled images."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Images of a step, over all workers."""
    shots: Annotated[int, Field(ge=1)] = 16
    """Labelled images of each class."""
    lr: Annotated[float, Field(gt=0)] = 2e-3
    """First learning rate of SGD."""
    schedule: Schedule = CosineWarmup(warmup_steps=0)
    """Course of the learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD; not stated in the paper, usual for prompt tuning."""
    first_block: Annotated[int, Field(ge=0)] = 3
    """D: the blocks D to the last (from 0) have prompts."""
    tokens: Annotated[int, Field(ge=1)] = 50
    """b: prompts a block."""
    alpha: float = 2.0
    """Weight of the feature-repelling loss."""
    logit_scale: Annotated[float, Field(gt=0)] | None = None
    """Scale of the cross-entropy's cosines; None: the model's own, 100 for OpenAI's CLIP, which the paper uses."""
    cache: bool = True
    """Keep the frozen encoder's class tokens of each image (4 bytes x blocks x width): images are not augmented, so they
    never change. A resumed run may then differ in the last bits, because other rows are encoded together."""

    def objective(self, clip: Clip, setting: Setting) -> "RvptObjective":
        return RvptObjective(self, clip, setting)


class RvptObjective(Objective[Rvpt]):
    """L = CE + alpha FR over the labelled rows of the global batch; only the prompts are trained.

    FR is the mean over rows and prompted blocks of the cosine between the class token behind the block with prompts and
    the frozen encoder's: layers D + 1 to L in the paper's count. CE is over the class prompts' text vectors, which are
    computed once. The model is closed to an image tower other than a ViT with a class token.

    Raises:
        ModelError: of stages.model.prompts.attach.
    """

    def __init__(self, settings: Rvpt, clip: Clip, setting: Setting) -> None:
        super().__init__(settings, clip, setting)
        self.model.requires_grad_(False)
        self._base = clip.fingerprint
        self.prompts = attach(self.model, settings.first_block, settings.tokens, setting.seed)
        self._cached: dict[bytes, torch.Tensor] = {}
        self.fix_classes(settings.logit_scale)

    def forward(self, batch: Batch) -> torch.Tensor:
        keep = batch.labels >= 0
        old = self._frozen_tokens(batch.images)
        with self.prompts.watched(active=True) as seen:
            image = self.image_features(self.pixels(batch.images))
        # [n, blocks]
        cosines = torch.stack(
            [F.cosine_similarity(now.float(), then, dim=-1) for now, then in zip(seen, old.unbind(1), strict=True)], 1
        )
        logits = self.scale * image @ self.classes.T
        cross_entropy = F.cross_entropy(logits, batch.labels.clamp(min=0), reduction="none")
        return self.global_mean(cross_entropy + self.settings.alpha * cosines.mean(1), keep)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return SGD over the prompts."""
        return torch.optim.SGD(self.trainable().values(), lr=self.settings.lr, momentum=self.settings.momentum)

    def export(self, folder: Path) -> None:
        """Write the prompts as an adapter for the original checkpoint (see stages.model.prompts.save_adapter)."""
        save_adapter(self.prompts, self._base, folder)

    def _frozen_tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Return the class tokens of the encoder without prompts, `[n, blocks, width] float32`."""
        if not self.settings.cache:
            return self._encode_frozen(images)
        keys = [blake2b(image.tobytes(), digest_size=16).digest() for image in images.cpu().numpy()]
        places = {key: place for place, key in enumerate(keys) if key not in self._cached}
        if places:
            fresh = self._encode_frozen(images[list(places.values())])
            self._cached.update(zip(places, fresh, strict=True))
        return torch.stack([self._cached[key] for key in keys])

    def _encode_frozen(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), self.prompts.watched(active=False) as seen:
            self.image_features(self.pixels(images))
        return torch.stack(seen, 1).float()
