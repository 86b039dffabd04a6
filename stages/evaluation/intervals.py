"""Intervals of uncertainty for measured figures: 95 %, as fractions of the same unit as the figure."""

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import norm

CONFIDENCE = 0.95


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a proportion, for independent trials.

    For accuracy, ASR and other counted rates. It stays inside [0, 1] and is right near 0 and 1, where the usual
    plus-minus interval has no width.

    Raises:
        ValueError: there are no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"a proportion needs 0 <= successes <= trials and a trial, not {successes} of {trials}")
    z = float(norm.ppf(0.5 + CONFIDENCE / 2))
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == trials else (centre + spread) / scale
    return low, high


def bootstrap_interval(
    statistic: Callable[..., float],
    *columns: np.ndarray,
    seed: int,
    strata: np.ndarray | None = None,
    resamples: int = 1000,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of `statistic(*columns)`, drawing rows `[N]` with replacement.

    For figures that are no proportion of independent trials (AUROC, average precision, a median). Rows are drawn
    jointly from all columns. With `strata` (`[N]`, any values) each value keeps its number of rows: use it for AUROC
    and the like, which are undefined when a draw holds no poisoned pair.

    Raises:
        ValueError: there are no rows, or columns differ in length.
    """
    if not columns or len({len(column) for column in columns}) != 1 or not len(columns[0]):
        raise ValueError("a bootstrap needs columns of one length, and a row")
    labels = np.zeros(len(columns[0])) if strata is None else strata
    groups = [np.flatnonzero(labels == value) for value in np.unique(labels)]
    rng = np.random.default_rng(seed)
    values = np.empty(resamples)
    for draw in range(resamples):
        rows = np.concatenate([group[rng.integers(len(group), size=len(group))] for group in groups])
        values[draw] = statistic(*(column[rows] for column in columns))
    low, high = np.quantile(values, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)
