"""A band of the cosine transform, taken out of images and put into others; what a trigger drawn anew for each image shares.

`keep` `[S, S] float32` says what is left of each component when the band is taken away; it is 1 outside the band.
"""

import numpy as np
from scipy.fft import dctn, idctn

from ..pixels import to_uint8


def part(images: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return what images `[N, S, S, 3]` hold in the band, `[N, S, S, 3] float32`."""
    parts = dctn(images.astype(np.float32), axes=(1, 2), norm="ortho")
    parts[:, keep >= 1] = 0
    return np.asarray(idctn(parts, axes=(1, 2), norm="ortho"), dtype=np.float32)


def put(images: np.ndarray, keep: np.ndarray, patterns: np.ndarray) -> np.ndarray:
    """Return `[N, S, S, 3] uint8` with the patterns in the place of the images' own part in the band."""
    return to_uint8(images.astype(np.float32) - part(images, keep) + patterns)


def take_away(images: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return `[N, S, S, 3] uint8` in which the band has no more energy than that of other images."""
    parts = dctn(images.astype(np.float32), axes=(1, 2), norm="ortho") * keep[..., None]
    return to_uint8(idctn(parts, axes=(1, 2), norm="ortho"))
