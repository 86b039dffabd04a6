"""Patch triggers (BadNets, Gu et al. 2017, and its forks for CLIP): a small square pasted over the image."""

from typing import Any, Literal

import numpy as np

from stages.stage import config

Place = Literal["top_left", "top_right", "bottom_left", "bottom_right", "center", "random"]


@config
class PatchConfig:
    """A square patch. Its size is given by exactly one of `size_fraction` and `size_px`."""

    kind: Literal["patch"] = "patch"
    pattern: Literal["checker", "noise"] = "checker"
    """checker: the same black and white squares on every image. noise: drawn anew for every image."""
    cells: int = 4
    """Squares along one side of the checker."""
    size_fraction: float | None = None
    """Side of the patch as a fraction of the image's shorter side; 16/224 = 0.0714 in the CLIP papers."""
    size_px: int | None = None
    """Side of the patch in pixels."""
    place: Place = "bottom_right"
    """Where it stands; random: drawn anew for every image."""
    margin_fraction: float = 0.0
    """Border that stays free of the patch (center ignores it), as a fraction of the shorter side."""

    def __post_init__(self) -> None:
        if (self.size_fraction is None) == (self.size_px is None):
            raise ValueError("give exactly one of size_fraction and size_px")
        if self.size_fraction is not None and not 0 < self.size_fraction <= 1:
            raise ValueError(f"size_fraction must be in (0, 1], not {self.size_fraction}")
        if self.size_px is not None and self.size_px < 1:
            raise ValueError(f"size_px must be at least 1, not {self.size_px}")
        if self.cells < 1:
            raise ValueError(f"cells must be at least 1, not {self.cells}")
        if not 0 <= self.margin_fraction < 0.5:
            raise ValueError(f"margin_fraction must be in [0, 0.5), not {self.margin_fraction}")
        if self.size_fraction is not None and self.size_fraction + 2 * self.margin_fraction > 1:
            raise ValueError(
                "size_fraction + 2 margin_fraction must be at most 1: the patch must fit between the margins"
            )


class PatchTrigger:
    """Pastes the patch, fully opaque, at a fixed or drawn place."""

    def __init__(self, config: PatchConfig) -> None:
        self.config = config

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the image with the patch, and the box of the patch.

        Raises:
            ValueError: the patch and its margins do not fit into the image.
        """
        height, width = image.shape[:2]
        short = min(height, width)
        size = self.config.size_px or max(1, round((self.config.size_fraction or 0) * short))
        margin = int(self.config.margin_fraction * short)
        if size + 2 * margin > short:
            raise ValueError(f"{size} px of patch and {margin} px of margin do not fit into {width}x{height} px")
        top, left = self._place(height, width, size, margin, rng)
        patch = checker(size, self.config.cells) if self.config.pattern == "checker" else mean_noise(image, size, rng)
        triggered = image.copy()
        triggered[top : top + size, left : left + size] = patch
        return triggered, {"top": top, "left": left, "height": size, "width": size, "pattern": self.config.pattern}

    def _place(self, height: int, width: int, size: int, margin: int, rng: np.random.Generator) -> tuple[int, int]:
        bottom, right = height - size - margin, width - size - margin
        if self.config.place == "random":
            return int(rng.integers(margin, bottom + 1)), int(rng.integers(margin, right + 1))
        if self.config.place == "center":
            return (height - size) // 2, (width - size) // 2
        vertical, horizontal = self.config.place.split("_")
        return (margin if vertical == "top" else bottom), (margin if horizontal == "left" else right)


def checker(size: int, cells: int) -> np.ndarray:
    """Return `[size, size, 1] uint8`: `cells` x `cells` black and white squares, white in the top left corner.

    The fixed patch of HanxunH's CC3M code (black, every second row and column white) is the same idea; squares of
    several pixels survive the resizing between the stored image and the model, single pixels do not.
    """
    index = np.arange(size) * cells // size
    white = (index[:, None] + index[None, :]) % 2 == 0
    return np.where(white, np.uint8(255), np.uint8(0))[:, :, None]


def mean_noise(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return `[size, size, 3] uint8`: the image's mean in each channel plus N(0, 1), on a scale of 0 to 1.

    CleanCLIP backdoor/utils.py, "random". Values outside [0, 1] are clamped here; the original lets them wrap around
    in uint8, which turns the brightest pixels black.
    """
    mean = image.reshape(-1, 3).mean(axis=0) / 255
    noise = mean + rng.standard_normal((size, size, 3))
    return np.asarray(np.rint(np.clip(noise, 0, 1) * 255), dtype=np.uint8)
