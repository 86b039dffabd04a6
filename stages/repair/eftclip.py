"""EftCLIP (arXiv 2511.13545): fine-tuning on the compact set that the oracle's proofs give.

Neither the paper's loss nor its numbers could be had. This is our reconstruction: CLIP's loss, CleanCLIP's
self-supervision, and a margin between the true text and the trigger's label on images that carry a recovered trigger.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch.nn import functional as F

from ..model.clip import Clip
from ..stage import config
from ..training.batch import Batch, Role
from ..training.objective import Objective, Setting, cosine_rows
from ..training.optimise import CosineWarmup, Schedule, adamw
from .cleanclip import SIGMOID, TwoViews, encode_views, self_supervision
from .eda import WORDNET, thesaurus_files
from .method import Method


@config
class EftClip(Method):
    """Settings of the reconstructed EftCLIP; all numbers are ours."""

    roles: ClassVar[tuple[Role, ...]] = (Role.VICTIM_CLEANED, Role.TRIGGER_PASTED, Role.GENUINE, Role.REPLAY)
    needs_scan: ClassVar[str | None] = "learns from the compact set of a scan that has proven a trigger"

    kind: Literal["eftclip"] = "eftclip"
    epochs: Annotated[int, Field(ge=1)] = 5
    """Passes over the compact set (200 to 5,000 pairs)."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Pairs of a step, over all workers."""
    lr: Annotated[float, Field(gt=0)] = 1e-5
    """Peak learning rate; for a small model a tenth of the pretraining's."""
    schedule: Schedule = CosineWarmup(warmup_steps=0)
    """Course of the learning rate."""
    weight_decay: float = 0.1
    """AdamW's, on matrices and kernels."""
    inmodal_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the self-supervision."""
    margin_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the margin on images with a recovered trigger."""
    margin: Annotated[float, Field(ge=0)] = 0.1
    """By which the cosine to the true text must exceed that to the trigger's label."""
    synonyms: str | None = WORDNET
    """Thesaurus for EDA, see CleanClip.synonyms."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """EDA's share of the words."""
    freeze_batch_norm: bool = True
    """Keep the stored statistics of batch normalisation; a fifth of the rows carry a trigger."""

    @property
    def files(self) -> tuple[str, ...]:
        return thesaurus_files(self.synonyms)

    def objective(self, clip: Clip, setting: Setting) -> "EftClipObjective":
        return EftClipObjective(self, clip, setting)


class EftClipObjective(Objective[EftClip]):
    """L = L_CLIP + inmodal_weight L_SS + margin_weight L_M; everything is trained.

    L_M is the mean over the global batch's rows with a pasted trigger of relu(cos(f(x), t_y*) - cos(f(x), t_true) +
    margin): t_y* is the vector of the trigger's label, t_true that of the row's own caption, both of the model as it is.
    """

    def __init__(self, settings: EftClip, clip: Clip, setting: Setting) -> None:
        super().__init__(settings, clip, setting)
        self.views = TwoViews(settings.synonyms, settings.alpha)
        self.notes = (*self.views.notes, *([SIGMOID] if self.is_sigmoid else []))

    def forward(self, batch: Batch) -> torch.Tensor:
        image, image_view, text, text_view = encode_views(self, self.views, batch)
        scale = self.model.logit_scale.exp()
        loss = self.contrast(image, text, scale)
        loss = loss + self.settings.inmodal_weight * self_supervision(self, image, image_view, text, text_view, scale)
        return loss + self.settings.margin_weight * self._margin(batch, image, text)

    def optimizer(self) -> torch.optim.Optimizer:
        return adamw(self, self.settings.lr, self.settings.weight_decay, betas=(0.9, 0.98), eps=1e-6)

    def _margin(self, batch: Batch, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        pasted = (batch.roles == Role.TRIGGER_PASTED) & (batch.accused >= 0)
        # only the labels that occur are encoded; a rank without any still joins the count of the others
        names, places = torch.unique(batch.accused[pasted], return_inverse=True)
        excess = image.new_zeros(len(image))
        if len(names):
            planted = self.class_features(only=names.tolist())[places]
            excess[pasted] = F.relu(
                cosine_rows(image[pasted], planted) - cosine_rows(image[pasted], text[pasted]) + self.settings.margin
            )
        return self.global_mean(excess, pasted)
