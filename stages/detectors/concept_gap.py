"""The gap between poison and its concept.

Natural variety trails off: far out in a concept there are always fewer pairs than half as far. Poisoned pairs share one
trigger and stand together, with nearly nothing between them and the bulk. That is asked without any scale of its own.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from ..evaluation.intervals import wilson_ends
from ..stage import Positive, Weight, config
from .concept_moments import BIN_CENTRES, BINS, bin_index

ALL_LAYERS = -1
"""The view of a concept that takes the mean distance over its layers."""


@config
class GapConfig:
    """What counts as a gap; the distances are in robust standard deviations."""

    nearest: Positive = 3.0
    """Below which a group is not told from the bulk. Poison that is a quarter of its concept widens the scale and stands at 3 to
    5; at 3 the largest clean concept that is wide enough to be named has a share of .56."""
    farthest: Positive = 120.0
    """Beyond which no cut is tried."""
    steps: Annotated[int, Field(ge=2)] = 120
    """Cuts that are tried, evenly on a logarithmic scale."""
    z: Weight = 1.96
    """Of the lower bound of a share; 1.96 is that of a two-sided 95 % interval."""
    single_layer: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """How much less a gap is worth that a single layer shows: there are more of them to find one in. In clean data the largest was
    .57 on photos and .76 on rendered scenes; four yellow corners gave .90 in the last layer and nothing in the others."""

    def __post_init__(self) -> None:
        if self.nearest >= self.farthest:
            raise ValueError("nearest must be below farthest")

    @property
    def cuts(self) -> np.ndarray:
        """`[steps] float64`: the distances at which a cut is tried."""
        return np.geomspace(self.nearest, self.farthest, self.steps)


@dataclass(frozen=True, slots=True)
class Gaps:
    """The clearest gap of every concept."""

    share: np.ndarray
    """`[C] float64` in [0, 1]: of the pairs beyond half the distance, the share that lies beyond the whole; Wilson's lower
    bound, so that a dozen pairs must stand quite alone where a hundred may have stragglers."""
    cut: np.ndarray
    """`[C] float64`: distance in the middle of the gap, on a logarithmic scale; infinite where nothing lies out."""
    beyond: np.ndarray
    """`[C] int64`: pairs beyond the gap."""
    view: np.ndarray
    """`[C] int64`: the layer whose distances are looked at, or ALL_LAYERS."""


def clearest_views(histograms: np.ndarray, least: float, settings: GapConfig) -> Gaps:
    """Return the gaps of the mean distances, or of a single layer where only that one has a gap worth naming.

    Args:
        histograms: `[1 + L, C, BINS]` counts of the mean distances, then of those in each layer.
        least: share above which a gap is worth naming.
    """
    best = find_gaps(histograms[0], settings)
    for layer, counts in enumerate(histograms[1:]):
        own = find_gaps(counts, settings, layer)
        better = (own.share > least) & (own.share > best.share)
        best = Gaps(
            *(np.where(better, getattr(own, name), getattr(best, name)) for name in ("share", "cut", "beyond", "view"))
        )
    return best


def find_gaps(histograms: np.ndarray, settings: GapConfig, view: int | np.ndarray = ALL_LAYERS) -> Gaps:
    """Return the clearest gap in each concept's distances.

    For a cut t let b be the pairs at t or beyond and m those in [t/2, t). The share is Wilson's lower bound of b / (b + m),
    largest over the cuts of the settings. A tail that falls off as t^-a stays at 2^-a, an exponential or log-normal one, in robust
    standard deviations, below .65; n poisoned pairs far enough out reach n / (n + 3.84). Of equally good cuts the middle
    one is kept.

    Args:
        histograms: `[C, BINS]` counts of the pairs' distances in robust standard deviations, in the bins of `bin_index`.
        view: what they are distances in, for each concept or for all; the share of a single layer is lowered.
    """
    cuts = settings.cuts
    views = np.broadcast_to(np.asarray(view, dtype=np.int64), len(histograms))
    from_top = np.concatenate(
        [np.cumsum(histograms[:, ::-1], axis=1)[:, ::-1], np.zeros((len(histograms), 1), histograms.dtype)], axis=1
    )
    beyond = from_top[:, np.searchsorted(BIN_CENTRES, cuts)].astype(np.float64)
    half = from_top[:, np.searchsorted(BIN_CENTRES, cuts / 2)].astype(np.float64)
    share = wilson_low(beyond, half, settings.z)
    best = share.max(axis=1)
    tied = share >= best[:, None] - 1e-12
    middle = np.array([np.flatnonzero(row)[row.sum() // 2] for row in tied], dtype=np.int64)
    rows = np.arange(len(histograms))
    found = best > 0
    return Gaps(
        share=np.maximum(best - settings.single_layer * (views != ALL_LAYERS), 0.0),
        cut=np.where(found, cuts[middle] / np.sqrt(2), np.inf),
        beyond=np.where(found, beyond[rows, middle], 0).astype(np.int64),
        view=views,
    )


def distance_histograms(distance: np.ndarray, rows: list[np.ndarray]) -> np.ndarray:
    """Return `[C, BINS] int64` counts of the distances `[n, C]` of each concept's rows."""
    return np.stack([np.bincount(bin_index(distance[part, c]), minlength=BINS) for c, part in enumerate(rows)])


@dataclass(frozen=True, slots=True)
class Farthest:
    """How far out the pictures of some concepts lie: one with several captions once, where it lies farthest."""

    concepts: np.ndarray
    """`[m] int64`."""
    pictures: np.ndarray
    """`[m] uint64`: the same where the picture is the same; no two of a concept are."""
    bins: np.ndarray
    """`[m] int64`: of `bin_index`."""

    @classmethod
    def of(cls, concepts: np.ndarray, pictures: np.ndarray, bins: np.ndarray) -> "Farthest":
        """Gather pairs: `[n]` of each."""
        order = np.lexsort((-bins, pictures, concepts))
        concepts, pictures, bins = concepts[order], pictures[order], bins[order]
        first = np.append(True, (concepts[1:] != concepts[:-1]) | (pictures[1:] != pictures[:-1]))[: len(order)]
        return cls(concepts[first], pictures[first], bins[first])

    def __add__(self, other: "Farthest") -> "Farthest":
        both = ((self.concepts, other.concepts), (self.pictures, other.pictures), (self.bins, other.bins))
        return Farthest.of(*(np.concatenate(columns) for columns in both))

    def histograms(self, concepts: int) -> np.ndarray:
        """Return `[C, BINS] int64` counts of the pictures of so many concepts."""
        return np.bincount(self.concepts * BINS + self.bins, minlength=concepts * BINS).reshape(concepts, BINS)


def wilson_low(successes: np.ndarray, trials: np.ndarray, z: float) -> np.ndarray:
    """Return the lower end of Wilson's interval of a share; 0 where there are no trials."""
    low, _ = wilson_ends(successes, np.maximum(trials, 1), z)
    return np.asarray(np.maximum(low, 0.0))
