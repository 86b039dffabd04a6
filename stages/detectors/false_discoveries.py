"""Which of many concepts are named: chances by what most of them show, and a false discovery rate over all."""

import numpy as np

TAIL_FROM = 0.5
"""Quantile from which on the statistics are taken for a tail."""
TAIL_TO = 0.95
"""Quantile beyond which nothing is learned from them: targets of backdoors may be there."""


def tail_chances(statistics: np.ndarray) -> np.ndarray:
    """Return for each concept the chance that a clean one shows as much, `[C] float64`.

    The data set is its own null: most of its concepts are clean. A statistic is a squared distance; above their median the
    roots are taken to fall off exponentially. The rate is fitted to those between the median and the 95th percentile, those
    beyond counting as being there (a censored sample), so that poisoned concepts do not widen their own null. With few
    concepts the rate is uncertain, and the chance is averaged over that: (1 + x / (k m))^-k for k concepts of the tail and their
    mean excess m. On clean data sets (one of rendered scenes with 44 concepts, one of photos with 363) the smallest chance found is
    about one in the number of concepts, as it must be; roots, not logarithms or the statistics themselves, give that. Up to
    the median the chance is the share of concepts that show as much.
    """
    if not len(statistics):
        return np.zeros(0)
    roots = np.sqrt(np.maximum(statistics, 0.0))
    start, stop = np.quantile(roots, [TAIL_FROM, TAIL_TO])
    tail = roots[roots > start]
    uncensored = max(int((tail <= stop).sum()), 1)
    excess = max(float((np.minimum(tail, stop) - start).sum()), 1e-9)
    beyond = np.maximum(roots - start, 0.0)
    share = len(tail) / len(roots)
    as_much = 1 - np.searchsorted(np.sort(roots), roots) / len(roots)
    return np.asarray(np.where(roots > start, share * (1 + beyond / excess) ** -uncensored, as_much))


def named_by_rate(chances: np.ndarray, rate: float) -> np.ndarray:
    """Return which hypotheses are rejected at a false discovery rate (Benjamini and Hochberg 1995), `[C] bool`."""
    if not len(chances):
        return np.zeros(0, dtype=bool)
    ascending = np.sort(chances)
    passed = ascending <= rate * np.arange(1, len(chances) + 1) / len(chances)
    if not passed.any():
        return np.zeros(len(chances), dtype=bool)
    return np.asarray(chances <= ascending[np.flatnonzero(passed)[-1]])
