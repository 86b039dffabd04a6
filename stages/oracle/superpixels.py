"""The oracle that needs no weights: segments by colour, windows that follow edges, and a grid of windows."""

from typing import Literal

import numpy as np
from PIL import Image

from ..stage import config
from .regions import Region
from .segments import segments
from .windows import COARSE, FINE, follow_edges, grid

WORK_PX = 128
"""Shorter side at which images are segmented; larger ones are averaged down and the masks stretched back."""
GRID_QUALITY = 0.25
"""Highest quality of a grid window, which knows nothing of the image."""


@config
class SuperpixelsConfig:
    """Superpixels, merged, and windows; works from 16 px on."""

    kind: Literal["superpixels"] = "superpixels"
    windows: int = 36
    """Square windows that follow edges: a pasted patch has a sharp border."""
    segments: int = 24
    """Superpixels and unions of them, the most distinct ones."""
    at_most: int = 124
    """Regions of an image. What windows and segments leave goes to a grid of windows: 64 make the coarse one of a
    square image; 361 more make the fine one, with which no square of 8 to 16 px of 64 is missed wherever it is."""

    def __post_init__(self) -> None:
        if min(self.windows, self.segments) < 0:
            raise ValueError("windows and segments must be at least 0")
        if self.at_most < max(1, self.windows + self.segments):
            raise ValueError(f"at_most must be at least 1 and at least windows + segments, not {self.at_most}")


class Superpixels:
    """Segments by colour and windows; qualities order them and are no probabilities."""

    def __init__(self, settings: SuperpixelsConfig) -> None:
        self._settings = settings

    def __call__(self, image: np.ndarray) -> list[Region]:
        """Return the regions of `[H, W, 3] uint8`: windows and segments by turns, then the grid.

        Raises:
            ValueError: the image is smaller than 16 px.
        """
        height, width = image.shape[:2]
        if min(height, width) < 16:
            raise ValueError(f"the superpixel oracle needs 16 px, not {height} x {width}")
        small = _shrink(image)
        rows = np.arange(height) * small.shape[0] // height
        columns = np.arange(width) * small.shape[1] // width
        masks = segments(small)[0][: self._settings.segments]
        found = [masks[i][rows][:, columns] for i in range(len(masks))]
        sharp = [
            _window(height, width, _stretched(box, small.shape, image.shape))
            for box in follow_edges(small, self._settings.windows)
        ]
        regions = _ranked(sharp) + _ranked(found)
        regions.sort(key=lambda region: -region.quality)
        return regions + _spread(height, width, self._settings.at_most - len(regions))


def _spread(height: int, width: int, count: int) -> list[Region]:
    """Return `count` windows at most, all over the image: of the coarse grid, then of the fine one."""
    boxes: list[np.ndarray] = []
    for side_and_stride in (COARSE, FINE):
        cells = grid(height, width, *side_and_stride)
        some = np.linspace(0, len(cells) - 1, min(len(cells), count - len(boxes))).astype(np.int64)
        boxes.extend(cells[some])
    return [Region(_window(height, width, box), GRID_QUALITY * (1 - i / len(boxes))) for i, box in enumerate(boxes)]


def _ranked(masks: list[np.ndarray]) -> list[Region]:
    """Return regions whose quality falls evenly from 1 to just above the grid's."""
    qualities = 1 - (1 - GRID_QUALITY) * np.arange(len(masks)) / max(1, len(masks))
    return [Region(mask, quality) for mask, quality in zip(masks, qualities.tolist(), strict=True)]


def _shrink(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    if min(height, width) <= WORK_PX:
        return image
    scale = WORK_PX / min(height, width)
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _stretched(box: np.ndarray, small: tuple[int, ...], large: tuple[int, ...]) -> np.ndarray:
    """Return the box in pixels of the large image."""
    scale = np.array([large[0] / small[0], large[1] / small[1]])
    start = np.rint(box[:2] * scale).astype(np.int64)
    stop = np.rint((box[:2] + box[2:]) * scale).astype(np.int64)
    return np.concatenate([start, stop - start])


def _window(height: int, width: int, box: np.ndarray) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
    return mask
