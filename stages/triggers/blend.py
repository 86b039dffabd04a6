"""Full-image blends (Chen et al. 2017 and its forks for CLIP): out = (1 - alpha) image + alpha pattern."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from stages.stage import config


@config
class BlendConfig:
    """A pattern laid over the whole image. The pattern is stretched to the image, whatever the image's size."""

    kind: Literal["blend"] = "blend"
    pattern: Literal["stripes", "noise", "fresh_noise", "picture"] = "stripes"
    """stripes and noise: one seeded draw for all images. fresh_noise: drawn anew for every image. picture: a file."""
    alpha: float = 0.2
    """Weight of the pattern."""
    cells: int = 64
    """Number of stripes, or rows and columns of the noise, in the whole image."""
    seed: int = 0
    """Seed of the pattern that all images share."""
    picture: str | None = None
    """Path of the picture, for pattern: picture."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must be in (0, 1], not {self.alpha}")
        if self.cells < 2:
            raise ValueError(f"cells must be at least 2, not {self.cells}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")
        if (self.pattern == "picture") != (self.picture is not None):
            raise ValueError("picture: PATH goes with pattern: picture, and only with it")


class BlendTrigger:
    """Blends a pattern into the whole image.

    Sums are made in float32 and rounded once, then clamped: nothing wraps around. CleanCLIP, BadCLIP and PAR use
    alpha .2 for noise and pictures and .03 for stripes at 224 px.
    """

    def __init__(self, config: BlendConfig) -> None:
        self.config = config
        self._shared = _shared_pattern(config)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the blended image; the box of the trigger is the whole image."""
        height, width = image.shape[:2]
        if self._shared is None:
            cells = self.config.cells
            small = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        else:
            small = self._shared
        pattern = stretch(small, height, width, smooth=self.config.pattern == "picture").astype(np.float32)
        blended = (1 - self.config.alpha) * image.astype(np.float32) + self.config.alpha * pattern
        triggered = np.clip(np.rint(blended), 0, 255).astype(np.uint8)
        box = {"top": 0, "left": 0, "height": height, "width": width}
        return triggered, {**box, "pattern": self.config.pattern, "alpha": self.config.alpha}


def _shared_pattern(config: BlendConfig) -> np.ndarray | None:
    """Return the small `uint8` pattern that all images share, or None when each image draws its own."""
    rng = np.random.default_rng(config.seed)
    if config.pattern == "stripes":
        return stripes(config.cells, rng)
    if config.pattern == "noise":
        return rng.integers(0, 256, (config.cells, config.cells, 3), dtype=np.uint8)
    if config.picture is not None:
        return load_picture(config.picture)
    return None


def stripes(columns: int, rng: np.random.Generator) -> np.ndarray:
    """Return `[1, columns, 3] uint8`: each channel of each column is 0 or 255.

    PAR's Blended-Stripes draw a sign, +1 or -1, for each channel of each column and blend that into an image scaled to
    [0, 1]. Here the sign is mapped to 0 and 255, so that the result stays an image: blending -1 would leave [0, 1],
    where the original's cast to uint8 is undefined. The strength, the difference between two stripes, is the half.
    """
    return np.asarray(255 * rng.integers(0, 2, (1, columns, 3)), dtype=np.uint8)


def stretch(pattern: np.ndarray, height: int, width: int, smooth: bool) -> np.ndarray:
    """Return the `[h, w, 3] uint8` pattern as `[height, width, 3]`; the nearest cell, or bicubic for a picture."""
    if smooth:
        return np.asarray(Image.fromarray(pattern).resize((width, height), Image.Resampling.BICUBIC))
    rows = np.arange(height) * pattern.shape[0] // height
    columns = np.arange(width) * pattern.shape[1] // width
    return np.asarray(pattern[rows[:, None], columns[None, :]])


def load_picture(path: str) -> np.ndarray:
    """Return a picture file as `[H, W, 3] uint8`.

    Raises:
        ValueError: there is no such file, or it is no picture.
    """
    try:
        with Image.open(Path(path)) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise ValueError(f"picture: cannot read {path}: {error}") from error
