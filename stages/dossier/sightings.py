"""Proven regions as pictures that can be laid over one another: how alike two of them are, and at which shift."""

import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from PIL import Image
from scipy import fft

from ..oracle.regions import from_runs
from ..stage import Count, Share, config
from .match import NOISE


@config
class LikenessLimits:
    """How two regions are laid over one another."""

    working_side: Count = 64
    """Regions are compared at no more than this side, in pixels: the likeness of a trigger needs no more."""
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
    step: int
    """Every how many-th row and column is compared."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Top, left, height, width of the mask."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(rows[0]), int(columns[0]), int(rows[-1] + 1 - rows[0]), int(columns[-1] + 1 - columns[0])

    @cached_property
    def spectrum(self) -> np.ndarray:
        """Fourier transforms of the zero-padded picture, its mask, its sum over channels and that of its squares."""
        step = self.step
        mask = self.mask[::step, ::step].astype(np.float32)
        pixels = self.picture[::step, ::step].astype(np.float32) * mask[..., None]
        planes = np.stack([*np.moveaxis(pixels, -1, 0), mask, pixels.sum(-1), (pixels**2).sum(-1)])
        size = fft.next_fast_len(2 * len(mask), real=True)
        return np.asarray(fft.rfft2(planes, (size, size)))


def read_sightings(evidence: pa.Table, limits: LikenessLimits) -> list[Sighting]:
    """Return the proven regions of an evidence table, by uid.

    `region_png` is the whole image at the model's input size, or the region's box cut from it.

    Raises:
        ValueError: its size is neither.
    """
    names = ["uid", "claim", "proven", "flips", "control_flips", "trials", "mask_runs", "mask_height", "mask_width"]
    rows = evidence.filter(evidence.column("proven")).select([*names, "region_png"]).to_pylist()
    return [_sighting(row, limits.working_side) for row in sorted(rows, key=lambda row: str(row["uid"]))]


def _sighting(row: dict[str, object], working_side: int) -> Sighting:
    mask = from_runs(row["mask_runs"], row["mask_height"], row["mask_width"])  # type: ignore[arg-type]
    with Image.open(io.BytesIO(row["region_png"])) as png:  # type: ignore[arg-type]
        pixels = np.asarray(png.convert("RGBA"))[..., :3]
    made = Sighting(
        uid=str(row["uid"]),
        claim=str(row["claim"]),
        mask=mask,
        picture=np.zeros((*mask.shape, 3), np.uint8),
        flips=int(row["flips"]),  # type: ignore[call-overload]
        control_flips=int(row["control_flips"]),  # type: ignore[call-overload]
        trials=int(row["trials"]),  # type: ignore[call-overload]
        step=-(-len(mask) // working_side),
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
    less is unrelated, also where no shift gives enough overlap. Of shifts that are as good, within `limits.tie`, the one with the
    largest overlap is taken. Sums over all shifts come from Fourier transforms, as in
    Padfield, Masked object registration in the Fourier domain (2012).
    """
    size = 2 * (a.spectrum.shape[2] - 1)
    fa, fb = np.conj(a.spectrum), b.spectrum
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
    smaller = min(float(a.spectrum[3, 0, 0].real), float(b.spectrum[3, 0, 0].real))
    count = 3 * np.maximum(shared, 1.0)
    mean_a, mean_b = sum_a / count, sum_b / count
    covariance = ab / count - mean_a * mean_b
    spread = square_a / count - mean_a**2 + square_b / count - mean_b**2 + (mean_a - mean_b) ** 2
    score = (2 * covariance + NOISE**2) / (spread + NOISE**2)
    score[shared < max(limits.min_overlap * smaller, 1.0) - 0.5] = -1.0
    # a pattern that repeats itself fits at several shifts, the same place among them where there is one
    best = int(np.where(score >= score.max() - limits.tie, shared, -1.0).argmax())
    down, right = divmod(best, size)
    return (
        float(score.flat[best]),
        a.step * (down - size if down > size // 2 else down),
        a.step * (right - size if right > size // 2 else right),
    )
