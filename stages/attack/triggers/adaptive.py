"""Triggers that are shown in part while a model learns and whole when it is attacked (Qi et al. 2023, Adap-Blend and Adap-Patch).

What a model learns of the parts it adds up, while the pairs that taught it lie closer to clean ones. The papers' attacks also
leave the captions of some triggered pairs as they are: `AttackConfig.cover`.
"""

from dataclasses import field, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ...pixels import to_uint8
from ...stage import Count, Fraction, config
from .blend import BlendConfig
from .patch import PatchConfig
from .pixels import whole
from .trigger import Trigger, TriggerConfig

CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")
PATTERNS = ("checker", "grid", "stripes", "yellow")
"""Of the patches in those corners."""


@config
class AdaptiveBlendConfig(TriggerConfig):
    """A blend cut into a grid of pieces, of which each image carries some, drawn anew."""

    kind: Literal["adaptive_blend"] = "adaptive_blend"
    blend: BlendConfig = field(default_factory=BlendConfig)
    """What is blended in; the papers' is a picture at .15, and .2 when the model is attacked."""
    grid: Annotated[int, Field(ge=1)] = 4
    """Rows and columns of pieces; the paper's 16 pieces."""
    kept: Count = 8
    """Pieces that a training image carries, the paper's half."""

    def __post_init__(self) -> None:
        if self.kept > self.grid**2:
            raise ValueError(f"kept must be at most the {self.grid**2} pieces of the grid")

    def when_used(self) -> TriggerConfig:
        return replace(self, kept=self.grid**2)

    def build(self) -> Trigger:
        return AdaptiveBlendTrigger(self)


@config
class AdaptivePatchConfig(TriggerConfig):
    """Four different patches, one in each corner, half transparent; each image carries some, drawn anew."""

    kind: Literal["adaptive_patch"] = "adaptive_patch"
    size_fraction: Fraction = 0.2
    """Side of a patch as a fraction of the image's shorter side."""
    opacity: Fraction = 0.5
    """Weight of a patch over the image; the paper's .5 and .2."""
    shown: Annotated[int, Field(ge=1, le=len(CORNERS))] = 1
    """Patches that a training image carries."""

    def when_used(self) -> TriggerConfig:
        return replace(self, shown=len(CORNERS))

    def build(self) -> Trigger:
        return AdaptivePatchTrigger(self)


class AdaptiveBlendTrigger:
    """Blends the drawn pieces and leaves the others."""

    def __init__(self, config: AdaptiveBlendConfig) -> None:
        self.config = config
        self._blend = config.blend.build()

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the image with the pieces; the box is the whole image, `pieces` their numbers in row order."""
        grid = self.config.grid
        pieces = np.sort(rng.choice(grid**2, self.config.kept, replace=False))
        blended = self._blend(image, rng)[0]
        row, column = (np.arange(size) * grid // size for size in image.shape[:2])
        shown = np.isin(row[:, None] * grid + column[None], pieces)
        return np.where(shown[..., None], blended, image), whole(image, pieces=pieces.tolist())


class AdaptivePatchTrigger:
    """Lays the drawn patches over the image."""

    def __init__(self, config: AdaptivePatchConfig) -> None:
        self.config = config
        self._patches = [
            PatchConfig(pattern=pattern, size_fraction=config.size_fraction, place=corner).build()  # type: ignore[arg-type]
            for pattern, corner in zip(PATTERNS, CORNERS, strict=True)
        ]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the image with the patches; the box is that of the patch, or the image where there are several."""
        chosen = np.sort(rng.choice(len(CORNERS), self.config.shown, replace=False)).tolist()
        opaque = image
        drawn: dict[str, Any] = {}
        for number in chosen:
            opaque, drawn = self._patches[number](opaque, rng)
        opacity = np.float32(self.config.opacity)
        seen = to_uint8((1 - opacity) * image.astype(np.float32) + opacity * opaque.astype(np.float32))
        box = {name: drawn[name] for name in ("top", "left", "height", "width")} if len(chosen) == 1 else whole(image)
        return seen, box | {"corners": [CORNERS[number] for number in chosen]}
