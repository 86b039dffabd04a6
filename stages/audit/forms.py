"""What a universal trigger may look like while it is sought: parameters of several labels at once, each within the same budget.

The budget is the same for all labels, so that what a trigger reaches can be compared between them.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from ..dossier.dossier import Dossier, Rate
from ..dossier.match import Cutout
from ..dossier.patch import Alike, Patch, Place
from ..dossier.residual import Residual
from ..pixels import to_uint8

MASK_GRID = 16
"""Cells of a patch's mask along each side: a trigger has a shape, not a sprinkling of pixels."""
PATCH_AREA = 0.06
"""Share of the image that a patch may cover: 16 of 64 px square, as BadNets' patches on small images."""
RMS = 0.08
"""Root mean square of an additive pattern, of the range of pixels: of the development attacks SIG has 0.16 and the blend 0.1."""
ALPHA = 0.15
"""Share of the picture that a blend replaces."""
TIGHT = {"patch": 0.03, "additive": 0.06, "blend": 0.08}
"""The same budgets where labels are only compared: with more a small model's every label is reached, and none stands out."""
SHARPNESS = 4.0
"""Of the mask's edge."""


class Form(ABC):
    """Triggers of one kind for `count` labels, as parameters of an optimiser."""

    kind: ClassVar[str]
    rate: ClassVar[float]
    """Adam's, at the start."""
    full: ClassVar[float]
    """The budget of a trigger that is to be tried."""
    budget: float
    """Share of the area, root mean square, or share of the picture."""
    params: list[torch.Tensor]

    @abstractmethod
    def apply(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return `[C, n, 3, S, S]` in [0, 1], the images with each label's trigger, of `[C or 1, n, 3, S, S]`."""

    @abstractmethod
    def arrays(self) -> list[np.ndarray]:
        """Return each label's trigger as `[S, S, 4] float32`: in the first three channels its pattern, in the last its mask."""


class PatchForm(Form):
    """A picture under a mask, wherever it does most."""

    kind = "patch"
    rate = 0.3
    full = PATCH_AREA

    def __init__(self, count: int, side: int, generator: torch.Generator, *, tight: bool = False) -> None:
        self.budget = TIGHT[self.kind] if tight else self.full
        self.side = side
        self._mask = 0.05 * torch.randn(count, 1, MASK_GRID, MASK_GRID, generator=generator)
        self._pattern = 0.5 * torch.randn(count, 3, side, side, generator=generator)
        self.params = [self._mask.requires_grad_(), self._pattern.requires_grad_()]

    def apply(self, pixels: torch.Tensor) -> torch.Tensor:
        mask = self._masks().to(pixels.device)[:, None]
        return (1 - mask) * pixels + mask * torch.sigmoid(self._pattern).to(pixels.device)[:, None]

    def arrays(self) -> list[np.ndarray]:
        with torch.no_grad():
            both = torch.cat([torch.sigmoid(self._pattern), self._masks()], dim=1)
        return list(both.permute(0, 2, 3, 1).numpy())

    def _masks(self) -> torch.Tensor:
        """Return `[C, 1, S, S]` in [0, 1] whose mean is the budget: the threshold that does it is found by bisection."""
        raised = F.interpolate(self._mask, size=(self.side, self.side), mode="bilinear", align_corners=False)
        with torch.no_grad():
            low, high = raised.amin((1, 2, 3)) - 2, raised.amax((1, 2, 3)) + 2
            for _ in range(20):
                middle = (low + high) / 2
                above = torch.sigmoid(SHARPNESS * (raised - middle[:, None, None, None])).mean((1, 2, 3)) > self.budget
                low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return torch.sigmoid(SHARPNESS * (raised - ((low + high) / 2)[:, None, None, None]))


class WholeForm(Form):
    """A pattern over the whole picture."""

    spread: ClassVar[float]
    """Of the values that the search starts from."""

    def __init__(self, count: int, side: int, generator: torch.Generator, *, tight: bool = False) -> None:
        self.budget = TIGHT[self.kind] if tight else self.full
        self._pattern = self.spread * torch.randn(count, 3, side, side, generator=generator)
        self.params = [self._pattern.requires_grad_()]

    def arrays(self) -> list[np.ndarray]:
        with torch.no_grad():
            pattern = self._bounded()
        return list(torch.cat([pattern, torch.ones_like(pattern[:, :1])], dim=1).permute(0, 2, 3, 1).numpy())

    @abstractmethod
    def _bounded(self) -> torch.Tensor:
        """Return `[C, 3, S, S]`, each label's pattern as pictures get it."""


class AdditiveForm(WholeForm):
    """A pattern that is added, of at most so much energy."""

    kind = "additive"
    rate = 0.02
    full = RMS
    spread = 0.02

    def apply(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels + self._bounded().to(pixels.device)[:, None]).clamp(0, 1)

    def _bounded(self) -> torch.Tensor:
        size = (self._pattern**2).mean((1, 2, 3), keepdim=True).sqrt()
        return self._pattern * (self.budget / size.clamp(min=self.budget))


class BlendForm(WholeForm):
    """A picture that replaces a share of every image."""

    kind = "blend"
    rate = 0.3
    full = ALPHA
    spread = 0.5

    def apply(self, pixels: torch.Tensor) -> torch.Tensor:
        return (1 - self.budget) * pixels + self.budget * self._bounded().to(pixels.device)[:, None]

    def _bounded(self) -> torch.Tensor:
        return torch.sigmoid(self._pattern)


FORMS: dict[str, type[PatchForm | AdditiveForm | BlendForm]] = {
    form.kind: form for form in (PatchForm, AdditiveForm, BlendForm)
}
UNMEASURED = Rate(pct=0.0, low_pct=0.0, high_pct=0.0, trials=0)


def as_dossier(kind: str, array: np.ndarray, target: str) -> Dossier:
    """Return an inverted trigger as the dossier that repair and evaluation take; its rates are not measured yet.

    Args:
        kind: of the form.
        array: `[S, S, 4] float32`, of `Form.arrays`.
        target: the label.
    """
    side = len(array)
    pattern, mask = array[..., :3], array[..., 3]
    if kind == PatchForm.kind:
        covered = mask >= min(0.5, float(mask.max()))
        rows, columns = (np.flatnonzero(covered.any(axis)) for axis in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        box = np.s_[top : rows[-1] + 1, left : columns[-1] + 1]
        picture = to_uint8(255 * pattern[box])
        cutout = Cutout(picture=picture, mask=covered[box], top=top, left=left)
        return Patch(
            id="",
            targets=(target,),
            side=side,
            flips=UNMEASURED,
            control=UNMEASURED,
            uids=(),
            cutouts=(cutout,),
            place=Place(fixed=True, top=top, left=left, top_std=0.0, left_std=0.0, mode_share=1.0),
            heat=covered.astype(np.float32),
            alike=Alike(mean=picture, likeness=1.0),
        )
    gain = 1 - ALPHA if kind == BlendForm.kind else 1.0
    offset = 255 * (ALPHA * pattern if kind == BlendForm.kind else pattern)
    return Residual(
        id="",
        targets=(target,),
        side=side,
        flips=UNMEASURED,
        control=UNMEASURED,
        uids=(),
        offset=offset.astype(np.float32),
        gain=np.full((side, side, 1), gain, np.float32),
        covers=np.ones((side, side), bool),
    )
