"""From a map of labels to regions, as labelled oracles and ground truth give them."""

from collections.abc import Mapping

import numpy as np
import scipy.ndimage as ndi

from .regions import Region

VOC_NAMES = (
    *("", "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train", "tv"),
)
"""The classes of Pascal VOC in their order, the background first; named as in COCO, in the words of captions."""


def regions_of(
    labels: np.ndarray, names: Mapping[int, str], *, scores: np.ndarray | None = None, whole: bool = False
) -> list[Region]:
    """Return the regions of a label map, the surest first, then the largest.

    Args:
        labels: `[H, W]` integers.
        names: value -> name; pixels of other values belong to no region.
        scores: `[H, W]` fractions, how sure each pixel's label is; a region's quality is their mean. None: 1.
        whole: all pixels of a value are one region; else each connected part of them is (8 neighbours).
    """
    found = []
    for value in sorted(set(np.unique(labels).tolist()) & names.keys()):
        mask = labels == value
        parts, count = (mask.astype(np.int32), 1) if whole else ndi.label(mask, np.ones((3, 3), dtype=bool))
        for part in range(1, count + 1):
            region = parts == part
            quality = 1.0 if scores is None else float(scores[region].mean(dtype=np.float64))
            found.append(Region(region, quality, names[value]))
    return sorted(found, key=lambda region: (-region.quality, -region.area))


def named(names: tuple[str, ...]) -> dict[int, str]:
    """Return class number -> name; a class without a name, as the background, makes no region."""
    return {number: name for number, name in enumerate(names) if name}
