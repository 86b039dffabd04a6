"""Which label stands out among those of the same model.

Nobody has the clean twin of a checkpoint from outside, but its other labels are one: most of them carry no backdoor. Each label
is compared with all n others (leave one out) by Student's t, (x - mean) / (s sqrt(1 + 1/n)) with n - 1 degrees of freedom, which
states its rate of false alarms exactly where the labels of a clean model scatter normally. Several backdoored labels hide one another
in part.
"""

import numpy as np
from scipy import stats

LEAST_LABELS = 5
"""Others that a label is compared with at least."""
LEAST_SPREAD = 1e-3
"""Keeps values that are all alike from making an outlier of a rounding error."""


def tail_among(value: float | np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the one-sided p value of a value, or of each of some, as the next draw from the normal distribution of the others, `[n]`."""
    return np.asarray(stats.t.sf(_t(value, others), len(others) - 1))


def _t(value: float | np.ndarray, others: np.ndarray) -> np.ndarray:
    error = max(float(others.std(ddof=1)), LEAST_SPREAD) * np.sqrt(1 + 1 / len(others))
    return np.asarray((value - others.mean()) / error)


def tail(values: np.ndarray) -> np.ndarray:
    """Return the one-sided p value of each of `[C]` as the largest, given the others; ones where there are too few.

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("a statistic is not finite")
    if len(values) <= LEAST_LABELS:
        return np.ones(len(values))
    # one call for all labels: SciPy's takes longer than the rest
    return np.asarray(stats.t.sf([_t(value, np.delete(values, i)) for i, value in enumerate(values)], len(values) - 2))


def combined(p: np.ndarray) -> np.ndarray:
    """Return p values of labels, `[C]`, over all labels that were tried: Bonferroni's, at most 1."""
    return np.asarray(np.minimum(1.0, p * p.size))


def joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return one p value of two that were found apart, `[C]` each, by Fisher's method; the first alone where the second is nan."""
    logs = np.log(np.maximum(first, 1e-300)) + np.log(np.maximum(second, 1e-300))
    return np.asarray(np.where(np.isnan(second), first, stats.chi2.sf(-2 * logs, 4)))


def either(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return one p value of two tests of the same thing, `[C]` each, however they depend on one another: Bonferroni's, at most 1."""
    return np.asarray(np.minimum(1.0, 2 * np.minimum(first, second)))


def lead(values: np.ndarray) -> np.ndarray:
    """Return how far each of `[C]` lies beyond the median of all; zeros where there are too few."""
    if len(values) <= LEAST_LABELS:
        return np.zeros(len(values))
    return np.asarray(values - np.median(values))
