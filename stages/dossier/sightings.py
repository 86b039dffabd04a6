"""Proven regions as pictures that can be laid over one another: how alike two of them are, and at which shift."""

import io
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
from PIL import Image
from scipy import fft

from ..oracle.regions import from_runs
from ..stage import Share, config
from .match import NOISE

MIDDLE = 127.5
"""Pixels are transformed about it, so that single precision does: the measure does not change."""


@config
class LikenessLimits:
    """How two regions are laid over one another."""

    min_overlap: Share = 0.6
    """Two regions are compared where they share at least this part of the smaller one."""
    tie: Share = 0.1
    """Likenesses this close count as equal when the shift is chosen."""


@dataclass(frozen=True)
class Sighting:
    """One proven region of one pair."""

    uid: str
    claim: str
    mask: np.ndarray
    """`[S, S] bool`."""
    picture: np.ndarray
    """`[S, S, 3] uint8`, 0 outside the mask."""
    flips: int
    control_flips: int
    trials: int
    spectra: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    """What `spectrum` has made, by size."""

    @cached_property
    def box(self) -> tuple[int, int, int, int]:
        """Top, left, height, width of the mask."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(rows[0]), int(columns[0]), int(rows[-1] + 1 - rows[0]), int(columns[-1] + 1 - columns[0])

    @property
    def room(self) -> int:
        """Twice the smallest power of two that holds the box: what `spectrum` needs so that no shift wraps around."""
        return 2 << (max(self.box[2:]) - 1).bit_length()

    def spectrum(self, size: int) -> np.ndarray:
        """Return the transforms of what the box holds, zero-padded to `size`: picture, mask, sum over channels and of squares."""
        if size not in self.spectra:
            top, left, height, width = self.box
            box = np.s_[top : top + height, left : left + width]
            mask = self.mask[box].astype(np.float32)
            pixels = (self.picture[box].astype(np.float32) - MIDDLE) * mask[..., None]
            planes = np.stack([*np.moveaxis(pixels, -1, 0), mask, pixels.sum(-1), (pixels**2).sum(-1)])
            self.spectra[size] = np.asarray(fft.rfft2(planes, (size, size)))
        return self.spectra[size]


def read_sightings(evidence: pa.Table) -> list[Sighting]:
    """Return the proven regions of an evidence table, by uid.

    `region_png` is the whole image at the model's input size, or the region's box cut from it.

    Raises:
        ValueError: its size is neither.
    """
    names = ["uid", "claim", "proven", "flips", "control_flips", "trials", "mask_runs", "mask_height", "mask_width"]
    rows = evidence.filter(evidence.column("proven")).select([*names, "region_png"]).to_pylist()
    return [_sighting(row) for row in sorted(rows, key=lambda row: str(row["uid"]))]


def _sighting(row: dict[str, object]) -> Sighting:
    mask = from_runs(row["mask_runs"], row["mask_height"], row["mask_width"])  # type: ignore[arg-type]
    with Image.open(io.BytesIO(row["region_png"]), formats=["PNG"]) as png:  # type: ignore[arg-type]
        pixels = np.asarray(png.convert("RGBA"))[..., :3]
    made = Sighting(
        uid=str(row["uid"]),
        claim=str(row["claim"]),
        mask=mask,
        picture=np.zeros((*mask.shape, 3), np.uint8),
        flips=int(row["flips"]),  # type: ignore[call-overload]
        control_flips=int(row["control_flips"]),  # type: ignore[call-overload]
        trials=int(row["trials"]),  # type: ignore[call-overload]
    )
    top, left, height, width = made.box
    if pixels.shape[:2] == mask.shape:
        made.picture[mask] = pixels[mask]
    elif pixels.shape[:2] == (height, width):
        made.picture[top : top + height, left : left + width] = pixels
        made.picture[~mask] = 0
    else:
        raise ValueError(f"{made.uid}: a region of {height} x {width} cannot have a picture of {pixels.shape[:2]}")
    return made


def likeness(a: Sighting, b: Sighting, limits: LikenessLimits) -> tuple[float, int, int]:
    """Return how alike two regions are at the best shift, and that shift: rows and columns that b lies beyond a.

    The measure is Lin's concordance of the pixels that both masks cover, all channels together:
    2 cov / (var a + var b + (mean a - mean b)^2), with `NOISE`^2 added above and below. Unlike the correlation it asks
    for the same levels, so a flat patch is known by its colour and two smooth gradients are not alike. 1 is equal; 0 or
    less is unrelated, also where no shift gives enough overlap. Of shifts that are as good, within `limits.tie`, the one
    with the largest overlap is taken, then the most alike, then the smallest. Sums over all shifts come from Fourier
    transforms, as in Padfield, Masked object registration in the Fourier domain (2012).

    Every pixel of both boxes counts, whatever the image's size: a patch of fine grain is alike at one shift alone, and with every
    n-th row and column 15 of 16 patches at random places, for n = 4, would be unlike. What is transformed is the boxes, so the
    cost grows as the regions' area and not the image's.
    """
    size = max(a.room, b.room)
    fa, fb = np.conj(a.spectrum(size)), b.spectrum(size)
    products = np.stack(
        [
            (fa[:3] * fb[:3]).sum(0),  # a b
            fa[3] * fb[3],  # pixels in common
            fa[4] * fb[3],  # sum of a where b is
            fa[3] * fb[4],
            fa[5] * fb[3],  # sum of squares
            fa[3] * fb[5],
        ]
    )
    ab, shared, sum_a, sum_b, square_a, square_b = fft.irfft2(products, (size, size))
    shared = shared.round()
    smaller = min(float(fa[3, 0, 0].real), float(fb[3, 0, 0].real))
    count = 3 * np.maximum(shared, 1.0)
    mean_a, mean_b = sum_a / count, sum_b / count
    covariance = ab / count - mean_a * mean_b
    spread = square_a / count - mean_a**2 + square_b / count - mean_b**2 + (mean_a - mean_b) ** 2
    score = (2 * covariance + NOISE**2) / (spread + NOISE**2)
    score[shared < max(limits.min_overlap * smaller, 1.0) - 0.5] = -1.0
    near = np.argwhere(score >= score.max() - limits.tie)
    shifts = np.where(near > size // 2, near - size, near) + np.subtract(b.box[:2], a.box[:2])
    at = tuple(near.T)
    # a pattern that repeats itself fits at several shifts, the same place among them where there is one
    best = np.lexsort((np.abs(shifts).sum(1), -score[at].round(2), -shared[at]))[0]
    return float(score[tuple(near[best])]), int(shifts[best, 0]), int(shifts[best, 1])
