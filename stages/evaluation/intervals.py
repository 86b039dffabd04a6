"""Intervals of uncertainty for measured figures: 95 %, as fractions of the same unit as the figure."""

from collections.abc import Callable

import numpy as np
from scipy.special import ndtri

CONFIDENCE = 0.95
RESAMPLES = 10_000
"""Bootstrap draws for counted rates, where a draw costs microseconds."""
FEW = 10
"""A rate with fewer hits, or fewer misses, than this many images gets Wilson's interval: see `rate_interval`."""


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a proportion, for independent trials.

    It stays inside [0, 1] and is right near 0 and 1, where the usual plus-minus interval has no width. `successes` need
    not be whole: an image that several strands try counts with the share of them that succeed.

    Raises:
        ValueError: there are no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"a proportion needs 0 <= successes <= trials and a trial, not {successes} of {trials}")
    low, high = wilson_ends(np.asarray(successes), np.asarray(trials), float(ndtri(0.5 + CONFIDENCE / 2)))
    return float(low), float(high)


def wilson_ends(successes: np.ndarray, trials: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Return both ends of Wilson's interval of many proportions, `z` standard errors wide on each side; trials are at least 1."""
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low = np.where(successes == 0, 0.0, (centre - spread) / scale)
    return low, np.where(successes == trials, 1.0, (centre + spread) / scale)


def rate_interval(hits: np.ndarray, trials: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """Return the interval of the rate `hits.sum() / trials.sum()`: percentile bootstrap over images, or Wilson's.

    What is resampled is the image, with all of its trials: predictions for the same image under several triggers, or of
    several captions of one picture, are not independent, and rows drawn singly would give an interval that is too
    narrow. Images with the same counts are exchangeable, so a draw is one multinomial over the distinct counts.

    Near 0 and 1 the bootstrap fails: of 0 hits in n every draw has 0 hits, and the interval has no width; with 2 true
    hits expected in 500 it covers the truth 86 times in 100 instead of 95 (tests/unit/test_intervals.py). So a rate with
    fewer than FEW images' worth of hits or of misses gets Wilson's interval, with the image as the trial.

    Args:
        hits: `[N]` whole numbers, successes of each image.
        trials: `[N]` whole numbers, trials of each image; images without one play no part.
        seed: of the draws.

    Raises:
        ValueError: there is no trial, or an image with more hits than trials.
    """
    pairs = np.stack([hits, trials], axis=1).astype(np.int64)[trials > 0]
    if not len(pairs) or (pairs[:, 0] > pairs[:, 1]).any() or (pairs < 0).any():
        raise ValueError("a rate needs at least one trial, and no more hits than trials")
    images = len(pairs)
    effective = images * pairs[:, 0].sum() / pairs[:, 1].sum()
    kinds, counts = np.unique(pairs, axis=0, return_counts=True)
    if min(effective, images - effective) < FEW or len(kinds) == 1:
        return wilson(float(effective), images)
    drawn = np.random.default_rng(seed).multinomial(images, counts / images, size=RESAMPLES) @ kinds
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)


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
