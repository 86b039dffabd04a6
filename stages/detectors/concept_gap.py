"""The gap between poison and its concept.

Natural variety trails off: far out in a concept there are always fewer pairs than half as far. Poisoned pairs share one
trigger and stand together, with nearly nothing between them and the bulk. That is asked without any scale of its own.
"""

from dataclasses import dataclass

import numpy as np

from stages.detectors.concept_moments import BIN_CENTRES, BINS, bin_index

NEAREST = 4.0
"""Robust standard deviations below which a group is not told from the bulk: clean concepts have such shoulders."""
FARTHEST = 120.0
CUTS = np.geomspace(NEAREST, FARTHEST, 120)
Z = 1.96
"""Of a two-sided 95 % interval."""


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


def find_gaps(histograms: np.ndarray) -> Gaps:
    """Return the clearest gap in each concept's distances.

    For a cut t let b be the pairs at t or beyond and m those in [t/2, t). The share is Wilson's lower bound of b / (b + m),
    largest over t in [4, 120]. A tail that falls off as t^-a stays at 2^-a, an exponential or log-normal one, in robust
    standard deviations, below .6; n poisoned pairs far enough out reach n / (n + 3.84). Of equally good cuts the middle
    one is kept.

    Args:
        histograms: `[C, BINS]` counts of the pairs' distances in robust standard deviations, in the bins of `bin_index`.
    """
    from_top = np.concatenate(
        [np.cumsum(histograms[:, ::-1], axis=1)[:, ::-1], np.zeros((len(histograms), 1), histograms.dtype)], axis=1
    )
    beyond = from_top[:, np.searchsorted(BIN_CENTRES, CUTS)].astype(np.float64)
    half = from_top[:, np.searchsorted(BIN_CENTRES, CUTS / 2)].astype(np.float64)
    share = wilson_low(beyond, half)
    best = share.max(axis=1)
    tied = share >= best[:, None] - 1e-12
    middle = np.array([np.flatnonzero(row)[row.sum() // 2] for row in tied], dtype=np.int64)
    rows = np.arange(len(histograms))
    found = best > 0
    return Gaps(
        share=best,
        cut=np.where(found, CUTS[middle] / np.sqrt(2), np.inf),
        beyond=np.where(found, beyond[rows, middle], 0).astype(np.int64),
    )


def distance_histograms(distance: np.ndarray, rows: list[np.ndarray]) -> np.ndarray:
    """Return `[C, BINS] int64` counts of the distances `[n, C]` of each concept's rows."""
    return np.stack([np.bincount(bin_index(distance[part, c]), minlength=BINS) for c, part in enumerate(rows)])


def wilson_low(successes: np.ndarray, trials: np.ndarray) -> np.ndarray:
    """Return the lower end of Wilson's 95 % interval of a share; 0 where there are no trials."""
    n = np.maximum(trials, 1)
    p = successes / n
    spread = Z * np.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    low = (p + Z * Z / (2 * n) - spread) / (1 + Z * Z / n)
    return np.asarray(np.where(successes > 0, np.maximum(low, 0.0), 0.0))
