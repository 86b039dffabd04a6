"""The oracle that knows the answer: masks given beforehand. For tests, and as the upper bound of the other oracles."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np

from clipsan.stages.oracle.label_maps import regions_of
from clipsan.stages.oracle.regions import Region


class UnknownImageError(LookupError):
    """There is no ground truth for this image."""


class GroundTruth:
    """Looks the regions of an image up by its decoded pixels; a changed image is another image.

    A user who has the true masks of suspect images has no need of a scan.
    """

    def __init__(self, known: Mapping[str, list[Region]]) -> None:
        """Take `pixel_key` of an image -> its regions, the surest first."""
        self._known = known

    @classmethod
    def of_maps(cls, known: Iterable[tuple[np.ndarray, np.ndarray, Mapping[int, str]]]) -> Self:
        """Build the oracle from images, label maps and names of their values; each value is one region.

        Args:
            known: image `[H, W, 3] uint8`, label map `[H, W]` integers, value -> name.

        Raises:
            ValueError: a label map has another size than its image.
        """
        regions = {}
        for image, labels, names in known:
            if labels.shape != image.shape[:2]:
                raise ValueError(f"a label map of {labels.shape} pixels does not fit an image of {image.shape[:2]}")
            regions[pixel_key(image)] = regions_of(labels, names, whole=True)
        return cls(regions)

    def __call__(self, image: np.ndarray) -> list[Region]:
        """Return the regions of `[H, W, 3] uint8`.

        Raises:
            UnknownImageError: the image is none of those whose truth is known.
        """
        try:
            return list(self._known[pixel_key(image)])
        except KeyError:
            raise UnknownImageError(f"no ground truth for this image of {image.shape[:2]} pixels") from None


def pixel_key(image: np.ndarray) -> str:
    """Return the SHA-256 (hexadecimal) of an image's size and pixels `[H, W, 3] uint8`."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
