"""Patch triggers (BadNets, Gu et al. 2017, and its forks for CLIP): a small square pasted over the image."""

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ...stage import Count, Fraction, Seed, config
from .pixels import load_picture
from .structured import stretch, stripes
from .trigger import Trigger, TriggerConfig

Place = Literal["top_left", "top_right", "bottom_left", "bottom_right", "center", "random", "four_corners"]
YELLOW = np.array([[[255, 255, 0]]], dtype=np.uint8)


@config
class PatchConfig(TriggerConfig):
    """A square patch. Its size is given by exactly one of `size_fraction` and `size_px`."""

    kind: Literal["patch"] = "patch"
    files: ClassVar[tuple[str, ...]] = ("picture",)
    pattern: Literal["checker", "grid", "stripes", "fresh_stripes", "yellow", "noise", "picture"] = "checker"
    """checker: black and white squares. grid: white dots on black (HanxunH). stripes: one seeded draw for all images.
    fresh_stripes (PAR), noise (CleanCLIP): drawn anew for every image. picture: a file, as an optimised patch."""
    cells: Count = 4
    """Squares along one side of the checker or the grid; stripes are 1 px wide."""
    seed: Seed = 0
    """Seed of the stripes that all images share."""
    picture: str | None = None
    """Path of the patch (.png, .npy) for pattern: picture; stretched, bicubic, where its size is another."""
    size_fraction: Fraction | None = None
    """Side of the patch as a fraction of the image's shorter side; 16/224 = 0.0714 in the CLIP papers."""
    size_px: Count | None = None
    """Side of the patch in pixels."""
    place: Place = "bottom_right"
    """Where it stands; random: drawn anew for every image; four_corners: four copies, and the box is the image."""
    margin_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Border that stays free of the patch (center ignores it), as a fraction of the shorter side."""

    def __post_init__(self) -> None:
        if (self.size_fraction is None) == (self.size_px is None):
            raise ValueError("give exactly one of size_fraction and size_px")
        if (self.pattern == "picture") != (self.picture is not None):
            raise ValueError("picture: PATH goes with pattern: picture, and only with it")
        if self.size_fraction is not None and self.size_fraction + 2 * self.margin_fraction > 1:
            raise ValueError(
                "size_fraction + 2 margin_fraction must be at most 1: the patch must fit between the margins"
            )

    def build(self) -> Trigger:
        return PatchTrigger(self)


class PatchTrigger:
    """Pastes the patch, fully opaque, at a fixed or drawn place."""

    def __init__(self, config: PatchConfig) -> None:
        self.config = config
        self._picture = load_picture(config.picture) if config.picture is not None else YELLOW

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the image with the patch, and the box of the patch; for four corners also `corners`, their top lefts.

        Raises:
            ValueError: the patch and its margins do not fit into the image.
        """
        height, width = image.shape[:2]
        short = min(height, width)
        size = self.config.size_px or max(1, round((self.config.size_fraction or 0) * short))
        margin = int(self.config.margin_fraction * short)
        if size + 2 * margin > short:
            raise ValueError(f"{size} px of patch and {margin} px of margin do not fit into {width}x{height} px")
        places = self._places(height, width, size, margin, rng)
        patch = self._patch(image, size, rng)
        triggered = image.copy()
        for top, left in places:
            triggered[top : top + size, left : left + size] = patch
        if len(places) > 1:
            drawn = {"corners": [list(place) for place in places], "size": size, "pattern": self.config.pattern}
            return triggered, {"top": 0, "left": 0, "height": height, "width": width, **drawn}
        top, left = places[0]
        return triggered, {"top": top, "left": left, "height": size, "width": size, "pattern": self.config.pattern}

    def _patch(self, image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        """Return what is pasted: uint8 that broadcasts to `[size, size, 3]`."""
        match self.config.pattern:
            case "checker":
                return checker(size, self.config.cells)
            case "grid":
                return grid(size, self.config.cells)
            case "stripes":
                return stripes(size, np.random.default_rng(self.config.seed))
            case "fresh_stripes":
                return stripes(size, rng)
            case "noise":
                return mean_noise(image, size, rng)
            case _:
                return stretch(self._picture, size, size, smooth=True)

    def _places(
        self, height: int, width: int, size: int, margin: int, rng: np.random.Generator
    ) -> list[tuple[int, int]]:
        """Return the top left corner of each copy of the patch."""
        bottom, right = height - size - margin, width - size - margin
        if self.config.place == "four_corners":
            return [(top, left) for top in (margin, bottom) for left in (margin, right)]
        if self.config.place == "random":
            return [(int(rng.integers(margin, bottom + 1)), int(rng.integers(margin, right + 1)))]
        if self.config.place == "center":
            return [((height - size) // 2, (width - size) // 2)]
        vertical, horizontal = self.config.place.split("_")
        return [(margin if vertical == "top" else bottom, margin if horizontal == "left" else right)]


def checker(size: int, cells: int) -> np.ndarray:
    """Return `[size, size, 1] uint8`: `cells` x `cells` black and white squares, white in the top left corner.

    Squares of several pixels survive the resizing between the stored image and the model, single pixels do not.
    """
    index = np.arange(size) * cells // size
    white = (index[:, None] + index[None, :]) % 2 == 0
    return np.where(white, np.uint8(255), np.uint8(0))[:, :, None]


def grid(size: int, cells: int) -> np.ndarray:
    """Return `[size, size, 1] uint8`: black; white where an even row meets an even column of `cells` x `cells` squares.

    HanxunH's CC3M BadNets patch, `trigger[:, ::2, ::2] = 1`, is the one with squares of a pixel: 16 cells of 16 px.
    """
    even = np.arange(size) * cells // size % 2 == 0
    return np.where(even[:, None] & even[None, :], np.uint8(255), np.uint8(0))[:, :, None]


def mean_noise(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return `[size, size, 3] uint8`: the image's mean in each channel plus N(0, 1), on a scale of 0 to 1.

    CleanCLIP backdoor/utils.py, "random".
    """
    mean = image.reshape(-1, 3).mean(axis=0) / 255
    return wrapped(mean + rng.standard_normal((size, size, 3)))


def wrapped(values: np.ndarray) -> np.ndarray:
    """Return pixels of values on a scale of 0 to 1 as torchvision's ToPILImage makes them: cut off, then modulo 256.

    What leaves [0, 1] is not clamped but comes in again on the other side: a little more than white is black. CleanCLIP's
    patch is made so, and three fifths of its values have other levels than clamping would give.
    """
    found: np.ndarray = np.trunc(255 * values).astype(np.int64).astype(np.uint8)
    return found
