"""The oracle that needs no weights: segments by colour, windows that follow edges, and a grid of windows."""

from dataclasses import field
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from ..stage import config
from .regions import Oracle, OracleConfig, Region
from .segments import CutConfig, segments
from .windows import EdgeConfig, GridsConfig, follow_edges, grid


@config
class SuperpixelsConfig(OracleConfig):
    """Superpixels, merged, and windows; works from 16 px on."""

    kind: Literal["superpixels"] = "superpixels"
    windows: Annotated[int, Field(ge=0)] = 36
    """Square windows that follow edges: a pasted patch has a sharp border."""
    segments: Annotated[int, Field(ge=0)] = 24
    """Superpixels and unions of them, the most distinct ones."""
    at_most: int = 124
    """Regions of an image. What windows and segments leave goes to a grid of windows: 64 make the coarse one of a
    square image; 361 more make the fine one, with which no square of 8 to 16 px of 64 is missed wherever it is."""
    work_px: Annotated[int, Field(ge=16)] = 128
    """Shorter side at which images are segmented; larger ones are averaged down and the masks stretched back."""
    grid_quality: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Highest quality of a grid window, which knows nothing of the image."""
    edges: EdgeConfig = field(default_factory=EdgeConfig)
    """The windows that follow edges."""
    cut: CutConfig = field(default_factory=CutConfig)
    """The superpixels."""
    grids: GridsConfig = field(default_factory=GridsConfig)
    """The windows of the grid."""

    def __post_init__(self) -> None:
        if self.at_most < max(1, self.windows + self.segments):
            raise ValueError(f"at_most must be at least 1 and at least windows + segments, not {self.at_most}")

    def build(self, device: str = "cpu") -> Oracle:
        return Superpixels(self)


class Superpixels:
    """Segments by colour and windows; qualities order them and are no probabilities."""

    def __init__(self, settings: SuperpixelsConfig) -> None:
        self._settings = settings

    def __call__(self, image: np.ndarray) -> list[Region]:
        """Return the regions of `[H, W, 3] uint8`: windows and segments by turns, then the grid.

        Raises:
            ValueError: the image is smaller than 16 px.
        """
        settings = self._settings
        height, width = image.shape[:2]
        if min(height, width) < 16:
            raise ValueError(f"the superpixel oracle needs 16 px, not {height} x {width}")
        small = _shrink(image, settings.work_px)
        rows = np.arange(height) * small.shape[0] // height
        columns = np.arange(width) * small.shape[1] // width
        masks = segments(small, settings.cut)[0][: settings.segments]
        found = [masks[i][rows][:, columns] for i in range(len(masks))]
        sharp = [
            _window(height, width, _stretched(box, small.shape, image.shape))
            for box in follow_edges(small, settings.windows, settings.edges)
        ]
        regions = _ranked(sharp, settings.grid_quality) + _ranked(found, settings.grid_quality)
        regions.sort(key=lambda region: -region.quality)
        boxes = _spread(height, width, settings.at_most - len(regions), settings.grids)
        qualities = [settings.grid_quality * (1 - i / len(boxes)) for i in range(len(boxes))]
        grids = [_window(height, width, box) for box in boxes]
        return regions + [Region(mask, quality) for mask, quality in zip(grids, qualities, strict=True)]


def _spread(height: int, width: int, count: int, grids: GridsConfig) -> list[np.ndarray]:
    """Return `count` windows at most, all over the image: of the coarse grid, then of the fine one."""
    boxes: list[np.ndarray] = []
    for settings in (grids.coarse, grids.fine):
        cells = grid(height, width, settings)
        some = np.linspace(0, len(cells) - 1, min(len(cells), count - len(boxes))).astype(np.int64)
        boxes.extend(cells[some])
    return boxes


def _ranked(masks: list[np.ndarray], least: float) -> list[Region]:
    """Return regions whose quality falls evenly from 1 to just above `least`, the grid's."""
    qualities = 1 - (1 - least) * np.arange(len(masks)) / max(1, len(masks))
    return [Region(mask, quality) for mask, quality in zip(masks, qualities.tolist(), strict=True)]


def _shrink(image: np.ndarray, work_px: int) -> np.ndarray:
    height, width = image.shape[:2]
    if min(height, width) <= work_px:
        return image
    scale = work_px / min(height, width)
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
