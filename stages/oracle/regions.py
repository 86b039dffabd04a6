"""Regions of an image, as every segmentation oracle gives them, and what they have in common."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..registry import Family
from ..stage import Fraction, Share, config


@dataclass(frozen=True, slots=True)
class Region:
    """One segment."""

    mask: np.ndarray
    """`[H, W] bool`, at least one pixel set."""
    quality: float
    """How sure the oracle is, a fraction; 1 where it does not say."""
    label: str | None = None
    """What it shows, from an oracle that knows; else None."""

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != bool or not self.mask.any():
            raise ValueError("a region's mask is two-dimensional, boolean and not empty")

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Top, left, height, width of the smallest box around the mask, in pixels."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        top, left = int(rows[0]), int(columns[0])
        return top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left

    @property
    def area(self) -> float:
        """Share of the image that it covers, a fraction."""
        return float(self.mask.mean())


class Oracle(Protocol):
    """What segments an image."""

    def __call__(self, image: np.ndarray) -> list[Region]:
        """Return the regions of `[H, W, 3] uint8`, the surest first; each mask has the image's height and width."""
        ...


class OracleConfig(Family):
    """Settings of an oracle. A new kind is one file here or in an extension, and conf/oracle/NAME.yaml to give it a name."""

    __slots__ = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Files of weights; what stands in them is part of what decides a proof."""
        return ()

    @abstractmethod
    def build(self, device: str = "cpu") -> Oracle:
        """Build the oracle.

        Args:
            device: a torch device for the oracles that are neural networks; the others run on the CPU.

        Raises:
            ModelError: a file of weights is missing or is not what its kind needs.
        """


@config
class RegionLimits:
    """Which regions are worth a look: neither specks nor nearly the whole image, and of two that overlap much only one."""

    min_area: Share = 0.001
    """Smallest share of the image, a fraction."""
    max_area: Share = 0.6
    """Largest share of the image, a fraction."""
    max_iou: Fraction = 0.8
    """Of two regions that overlap more, the surer one stays."""

    def __post_init__(self) -> None:
        if self.min_area >= self.max_area:
            raise ValueError("min_area must be below max_area")


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection over union of two masks `[H, W] bool`; 0 when both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def select(regions: Sequence[Region], limits: RegionLimits) -> list[Region]:
    """Return the regions within the limits, the surest first; ties keep their order."""
    fitting = [r for r in regions if limits.min_area <= r.area <= limits.max_area]
    kept: list[Region] = []
    for region in sorted(fitting, key=lambda r: -r.quality):
        if all(iou(region.mask, other.mask) <= limits.max_iou for other in kept):
            kept.append(region)
    return kept


def to_runs(mask: np.ndarray) -> list[int]:
    """Return the run lengths of a mask `[H, W] bool` in row order, beginning with a run of False that may be 0 long."""
    flat = np.concatenate([[False], mask.ravel(), [not mask.ravel()[-1]]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(length) for length in np.diff(np.concatenate([[0], edges]))]


def from_runs(runs: Sequence[int], height: int, width: int) -> np.ndarray:
    """Return the mask `[height, width] bool` of run lengths from `to_runs`.

    Raises:
        ValueError: the runs do not add up to height times width.
    """
    if sum(runs) != height * width:
        raise ValueError(f"{sum(runs)} pixels of runs are no {height} x {width} mask")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(height, width)
