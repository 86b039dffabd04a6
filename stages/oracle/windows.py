"""Square windows of an image: those whose border follows edges, and a grid that leaves no place out."""

from dataclasses import field

import numpy as np

from ..stage import Count, Fraction, config


@config
class EdgeConfig:
    """Which windows are tried for a sharp border."""

    smallest: Fraction = 0.07
    """Smallest side of a window, as a fraction of the image's shorter side."""
    largest: Fraction = 0.375
    """Largest side, as the same fraction."""
    steps: Count = 16
    """Sides between the two, in geometric progression."""
    bands: Count = 3
    """Ranges of sides that get the same number of windows, so that the many small ones do not crowd out the large."""
    tried: Count = 200
    """Places of one side that are looked at, the best first."""
    overlap: Fraction = 0.6
    """Intersection over union above which the weaker of two windows of one band is dropped."""


@config
class GridConfig:
    """Windows at even distances."""

    side: Fraction
    """Of a window, as a fraction of the image's shorter side."""
    stride: Fraction
    """Largest distance of two, as the same fraction."""


@config
class GridsConfig:
    """Two grids of windows that leave no place out.

    Together the defaults have, on 64 px, a window whose intersection over union is at least .5 for every square of 8 to 16 px
    at every place; of pairs of even grids whose coarser one has no more than 64 windows this is the smallest. A bound below:
    squares of 8 px alone need 155 windows, because none has that overlap with more than 21 of their 57 x 57 places.
    """

    coarse: GridConfig = field(default_factory=lambda: GridConfig(side=18 / 64, stride=7 / 64))
    """Of which windows are taken first."""
    fine: GridConfig = field(default_factory=lambda: GridConfig(side=11 / 64, stride=3 / 64))
    """Of which the rest is taken."""


def follow_edges(image: np.ndarray, count: int, settings: EdgeConfig) -> np.ndarray:
    """Return the windows whose border is sharp on all four sides, as a pasted patch's is.

    A window's score is the mean difference of colour across each of its sides (the largest of the three channels),
    of the four sides the least; a side on the image's border is left out. All places of all sides are scored; of
    each band the best ones that do not overlap are taken, and the bands take turns.

    Args:
        image: `[H, W, 3] uint8`.
        count: how many at most.
        settings: sides, and how many of each are tried.

    Returns:
        `[N, 4] int64`: top, left, height, width in pixels.
    """
    shorter = min(image.shape[:2])
    ends = settings.smallest * shorter, settings.largest * shorter
    sides = np.unique(np.rint(np.geomspace(*ends, settings.steps)).astype(int))
    bands = np.array_split(sides[sides >= 2], settings.bands)
    across, down = _edge_sums(image)
    most = -(-count // settings.bands)
    found = [_sharpest(across, down, band, settings.tried) for band in bands if len(band)]
    chosen = [_apart(windows, most, settings.overlap) for windows in found]
    turns = [windows[turn] for turn in range(count) for windows in chosen if turn < len(windows)]
    return np.array(turns, dtype=np.int64).reshape(-1, 4)[:count]


def grid(height: int, width: int, settings: GridConfig) -> np.ndarray:
    """Return `[N, 4] int64` windows (top, left, height, width) at even distances, the outermost on the border.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        settings: side and stride.
    """
    side_px = max(1, round(settings.side * min(height, width)))
    stride_px = max(1.0, settings.stride * min(height, width))

    def places(length: int) -> np.ndarray:
        free = length - side_px
        return np.rint(np.linspace(0, free, int(np.ceil(free / stride_px)) + 1)).astype(np.int64)

    tops, lefts = np.meshgrid(places(height), places(width), indexing="ij")
    return np.stack([tops.ravel(), lefts.ravel(), *np.full((2, tops.size), side_px)], axis=1)


def _edge_sums(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the running sums, both `[H + 1, W + 1] float64`, of the difference across each line between pixels.

    The first at [r, c] sums rows before r of the line left of column c; the second columns before c of the line
    above row r. Lines on the border of the image have an infinite difference: they never are the least.
    """
    height, width = image.shape[:2]
    values = image.astype(np.int16)
    across, down = np.zeros((height + 1, width + 1)), np.zeros((height + 1, width + 1))
    across[1:, 1:-1] = np.abs(np.diff(values, axis=1)).max(2).cumsum(0)
    down[1:-1, 1:] = np.abs(np.diff(values, axis=0)).max(2).cumsum(1)
    return across, down


def _sharpest(across: np.ndarray, down: np.ndarray, sides: np.ndarray, tried: int) -> np.ndarray:
    """Return `[N, 5] float64`: score, top, left, height, width of the best places of each side, best first."""
    found = []
    for side in sides.tolist():
        vertical = (across[side:] - across[:-side]) / side
        vertical[:, [0, -1]] = np.inf
        horizontal = (down[:, side:] - down[:, :-side]) / side
        horizontal[[0, -1]] = np.inf
        score = np.minimum(vertical[:, :-side], vertical[:, side:])
        score = np.minimum(score, np.minimum(horizontal[:-side], horizontal[side:])).ravel()
        best = np.argpartition(-score, tried)[:tried] if score.size > tried else np.arange(score.size)
        top, left = np.divmod(best, vertical.shape[1] - side)
        found.append(np.stack([score[best], top, left, *np.full((2, len(best)), side)], axis=1))
    windows = np.concatenate(found)
    return windows[np.lexsort((windows[:, 3], windows[:, 2], windows[:, 1], -windows[:, 0]))]


def _apart(windows: np.ndarray, count: int, overlap: float) -> np.ndarray:
    """Return `[N, 4]`: the first `count` that do not overlap one before them by more than that."""
    boxes, kept = windows[:, 1:], list[np.ndarray]()
    area = boxes[:, 2] * boxes[:, 3]
    alive = np.ones(len(boxes), dtype=bool)
    while len(kept) < count and alive.any():
        one = boxes[int(np.argmax(alive))]
        kept.append(one)
        rows = np.minimum(boxes[:, 0] + boxes[:, 2], one[0] + one[2]) - np.maximum(boxes[:, 0], one[0])
        columns = np.minimum(boxes[:, 1] + boxes[:, 3], one[1] + one[3]) - np.maximum(boxes[:, 1], one[1])
        shared = np.clip(rows, 0, None) * np.clip(columns, 0, None)
        alive &= shared <= overlap * (area + one[2] * one[3] - shared)
    return np.array(kept).reshape(-1, 4)
