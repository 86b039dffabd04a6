"""Full-image blends (Chen et al. 2017 and its forks for CLIP): out = (1 - alpha) image + alpha pattern."""

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ...pixels import to_uint8
from ...stage import Fraction, Seed, config
from .pixels import load_picture, whole
from .structured import cartoon, stretch, stripes, text, triangles
from .trigger import Trigger, TriggerConfig


@config
class BlendConfig(TriggerConfig):
    """A pattern laid over the whole image, at the image's own size."""

    kind: Literal["blend"] = "blend"
    files: ClassVar[tuple[str, ...]] = ("picture",)
    pattern: Literal["stripes", "signed_stripes", "triangles", "text", "noise", "fresh_noise", "cartoon", "picture"] = (
        "stripes"
    )
    """stripes, noise: one seeded draw for all images. signed_stripes (PAR's), fresh_noise (CleanCLIP's): drawn anew for
    every image. triangles, text, cartoon: drawn by us. picture: a file."""
    alpha: Fraction = 0.2
    """Weight of the pattern."""
    cells: Annotated[int, Field(ge=2)] = 64
    """Number of stripes, or rows and columns of the noise or of the triangles' squares, in the whole image."""
    seed: Seed = 0
    """Seed of the pattern that all images share."""
    picture: str | None = None
    """Path of the picture (.png, .jpg, .npy), for pattern: picture."""

    def __post_init__(self) -> None:
        if (self.pattern == "picture") != (self.picture is not None):
            raise ValueError("picture: PATH goes with pattern: picture, and only with it")

    def build(self) -> Trigger:
        return BlendTrigger(self)


class BlendTrigger:
    """Blends a pattern into the whole image.

    Sums are made in float32 and rounded once, then clamped: nothing wraps around. CleanCLIP, BadCLIP and PAR use
    alpha .2 for noise and pictures; PAR .03 for signed stripes, .15 for triangles and .5 for text, at 224 px.

    signed_stripes are PAR's: each channel of each column is +1 or -1 times white, so the sum may leave the image's range
    and is clamped. stripes go from 0 to white: of the same alpha, half the contrast. As in PAR, text is blended only
    where the pattern is not 0, in the red channel of the letters; everything else keeps its value.
    """

    def __init__(self, config: BlendConfig) -> None:
        self.config = config
        self._shared = _shared_pattern(config)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the blended image; the box of the trigger is the whole image.

        Raises:
            ValueError: the image is too small for the text.
        """
        pixels, alpha = image.astype(np.float32), np.float32(self.config.alpha)
        pattern = self._pattern(image.shape[0], image.shape[1], rng)
        blended = (1 - alpha) * pixels + alpha * pattern
        if self.config.pattern == "text":
            blended = np.where(pattern != 0, blended, pixels)
        return to_uint8(blended), whole(image, pattern=self.config.pattern, alpha=self.config.alpha)

    def _pattern(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """Return `[H, W, 3] float32` on a scale of 0 to 255."""
        cells = self.config.cells
        match self.config.pattern:
            case "triangles":
                pattern = triangles(height, width, cells)
            case "text":
                pattern = text(height, width)
            case "cartoon":
                pattern = cartoon(height, width)
            case "signed_stripes":
                signs = stretch(stripes(cells, rng), height, width, smooth=False)
                return np.where(signs > 0, np.float32(255), np.float32(-255))
            case "fresh_noise":
                small = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
                pattern = stretch(small, height, width, smooth=False)
            case _:
                pattern = stretch(self._shared, height, width, smooth=self.config.pattern == "picture")
        return pattern.astype(np.float32)


def _shared_pattern(config: BlendConfig) -> np.ndarray:
    """Return the small `uint8` pattern that all images share; a single black pixel for the patterns that need none."""
    rng = np.random.default_rng(config.seed)
    if config.pattern == "stripes":
        return stripes(config.cells, rng)
    if config.pattern == "noise":
        return rng.integers(0, 256, (config.cells, config.cells, 3), dtype=np.uint8)
    if config.picture is not None:
        return load_picture(config.picture)
    return np.zeros((1, 1, 3), dtype=np.uint8)
