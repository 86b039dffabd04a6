"""Where a known picture lies in an image: the same measure at all places."""

from dataclasses import dataclass

import numpy as np
import torch

NOISE = 12.0
"""Levels of 0 to 255 that do not count as a difference; flat regions are compared by their colour alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cutout:
    """One picture of a patch, in pixels of the model's input."""

    picture: np.ndarray
    """`[h, w, 3] uint8`."""
    mask: np.ndarray
    """`[h, w] bool`: which of its pixels belong to the trigger."""
    top: int
    left: int

    def __post_init__(self) -> None:
        if self.picture.dtype != np.uint8 or self.picture.shape != (*self.mask.shape, 3) or not self.mask.any():
            raise ValueError("a cutout is a picture [h, w, 3] uint8 with a mask [h, w] that is not empty")

    def cover(self, side: int, top: int, left: int) -> np.ndarray:
        """Return its mask in an image, `[side, side] bool`, where its top left corner lies there."""
        covered = np.zeros((side, side), bool)
        height, width = self.mask.shape
        covered[top : top + height, left : left + width] = self.mask
        return covered


def concordance(cutout: Cutout, image: np.ndarray) -> np.ndarray:
    """Return how alike a cutout and an image are with the cutout at each place, `[H - h + 1, W - w + 1] float64`.

    Lin's concordance of the masked pixels, all channels together, with `NOISE`^2 added above and below as in
    `sightings.likeness`: 1 is equal, 0 or less unrelated. A flat patch is known by its levels.

    Raises:
        ValueError: the cutout is larger than the image.
    """
    if any(a > b for a, b in zip(cutout.mask.shape, image.shape[:2], strict=True)):
        raise ValueError(f"a cutout of {cutout.mask.shape} does not fit into an image of {image.shape[:2]}")
    mask = torch.from_numpy(np.repeat(cutout.mask[None, None], 3, axis=1).astype(np.float64))
    count = float(mask.sum())
    picture = torch.from_numpy(cutout.picture.astype(np.float64).transpose(2, 0, 1)[None]) * mask
    mean = float(picture.sum()) / count
    variance = float((((picture - mean) * mask) ** 2).sum()) / count
    pixels = torch.from_numpy(image.astype(np.float64).transpose(2, 0, 1)[None])
    under = _correlate(pixels, mask) / count
    spread = _correlate(pixels**2, mask) / count - under**2
    shared = _correlate(pixels, picture) / count - mean * under
    found: np.ndarray = (2 * shared + NOISE**2) / (variance + spread + (mean - under) ** 2 + NOISE**2)
    return found


def best_place(cutout: Cutout, image: np.ndarray) -> tuple[int, int]:
    """Return top and left of the place where the cutout is most like `[H, W, 3] uint8`."""
    found = concordance(cutout, image)
    top, left = divmod(int(found.argmax()), found.shape[1])
    return top, left


def _correlate(pixels: torch.Tensor, kernel: torch.Tensor) -> np.ndarray:
    return np.asarray(torch.nn.functional.conv2d(pixels, kernel)[0, 0])
