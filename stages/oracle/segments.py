"""Segments of an image by colour alone: superpixels, and what becomes of them as the most alike neighbours merge."""

import numpy as np
from skimage.color import rgb2lab
from skimage.segmentation import felzenszwalb

from ..stage import Fraction, Positive, config


@config
class CutConfig:
    """How an image is cut into superpixels."""

    scale: Positive = 100.0
    """Felzenszwalb's preference for large superpixels; of 50, 100 and 200 the best on COCO photos, and better than SLIC."""
    smallest: Fraction = 1 / 200
    """Smallest superpixel, as a share of the image; it bounds their number, too."""


def segments(image: np.ndarray, settings: CutConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes of the merge tree of an image's superpixels, all but the image itself, the most distinct first.

    Superpixels as Felzenszwalb and Huttenlocher (2004) cut them; then the two neighbours whose union loses least
    merge (Ward 1963: the rise of the squared Lab distance to the mean colour) until one segment is left. Each segment
    on the way is a candidate; the dearer its own merging, the more it is a thing of its own.

    Args:
        image: `[H, W, 3] uint8`.
        settings: of the superpixels.

    Returns:
        Masks `[N, H, W] bool`, N less than 2 / `settings.smallest`; and the heights at which they merge as fractions of the
        last one, `[N] float64`, falling.
    """
    smallest = max(2, round(settings.smallest * image.shape[0] * image.shape[1]))
    cut = felzenszwalb(image, scale=settings.scale, sigma=0.8, min_size=smallest)
    names, cut = np.unique(cut, return_inverse=True)
    cut = cut.reshape(image.shape[:2])
    if len(names) < 2:
        return np.zeros((0, *cut.shape), dtype=bool), np.zeros(0)
    lab = rgb2lab(image)
    area = np.bincount(cut.ravel()).astype(np.float64)
    mean = np.stack([np.bincount(cut.ravel(), lab[..., c].ravel()) for c in range(3)], axis=1) / area[:, None]
    members, heights = merge(area, mean, neighbours(cut, len(names)))
    order = np.argsort(-heights, kind="stable")
    return members[order][:, cut], heights[order]


def neighbours(cut: np.ndarray, count: int) -> np.ndarray:
    """Return which segments of a label map `[H, W]` with values below `count` share an edge, `[count, count] bool`."""
    near = np.zeros((count, count), dtype=bool)
    for a, b in ((cut[:, 1:], cut[:, :-1]), (cut[1:], cut[:-1])):
        near[a, b] = near[b, a] = True
    np.fill_diagonal(near, False)
    return near


def merge(area: np.ndarray, mean: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge neighbours by Ward's rule until one segment is left.

    Args:
        area: `[S] float64`, pixels of each superpixel, S at least 2.
        mean: `[S, 3] float64`, its mean colour.
        near: `[S, S] bool`, which touch; the graph is connected.

    Returns:
        `[2S - 2, S] bool`: the superpixels in each node but the root; and the height at which each merges, as a
        fraction of the last one (1 for all where the last costs nothing).
    """
    area, mean, near, count = area.copy(), mean.copy(), near.copy(), len(area)
    members, heights = np.eye(2 * count - 2, count, dtype=bool), np.zeros(2 * count - 2)
    slots = np.arange(count)  # the node that each row stands for
    cost = np.full((count, count), np.inf)

    def price(row: int) -> None:
        others = np.flatnonzero(near[row])
        loss = area[row] * area[others] / (area[row] + area[others]) * ((mean[row] - mean[others]) ** 2).sum(1)
        cost[row] = cost[:, row] = np.inf
        cost[row, others] = cost[others, row] = loss

    for row in range(count):
        price(row)
    height = 0.0
    for node in range(count, 2 * count - 1):
        kept, gone = (int(i) for i in np.unravel_index(np.argmin(cost), cost.shape))
        # With neighbours alone Ward's cost falls now and then; heights must rise for a segment to outlast its parts.
        height = max(height, float(np.sqrt(cost[kept, gone])))
        heights[slots[[kept, gone]]] = height
        if node < len(members):
            members[node] = members[slots[kept]] | members[slots[gone]]
        mean[kept] = (area[kept] * mean[kept] + area[gone] * mean[gone]) / (area[kept] + area[gone])
        area[kept] += area[gone]
        near[kept] |= near[gone]
        near[:, kept] |= near[:, gone]
        near[gone] = near[:, gone] = near[kept, kept] = False
        cost[gone] = cost[:, gone] = np.inf
        slots[kept] = node
        price(kept)
    return members, heights / height if height else np.ones_like(heights)
