"""How well scores separate poisoned pairs from the rest, when the truth is known.

`scores` is `[N]` float, higher being more suspicious; `poisoned` is `[N]` bool. Pairs of equal score are never put
into an order of their own: they count together, or by the expectation under a random order. AUROC alone hides the
base rate (at 0.01 % poison, AUROC .99 can mean a precision below 1 %), hence the figures at a review budget.
"""

from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from ..stage import part_of

BUDGETS = (0.001, 0.01, 0.1)
"""Shares of all pairs that somebody is willing to review."""
CURVE_POINTS = 200
"""Most points of a curve in a report."""


def detection_figures(scores: np.ndarray, poisoned: np.ndarray) -> dict[str, Any]:
    """Return the figures of one detector, in the shape of summary.json.

    `{auroc, average_precision, recall_at: {"0.001": ...}, precision_at: {"0.001": ...}, fpr95}`, all fractions.

    Raises:
        ValueError: as `auroc`.
    """
    return {
        "auroc": auroc(scores, poisoned),
        "average_precision": average_precision(scores, poisoned),
        "recall_at": {str(budget): recall_at(scores, poisoned, budget) for budget in BUDGETS},
        "precision_at": {str(budget): precision_at(scores, poisoned, budget) for budget in BUDGETS},
        "fpr95": fpr_at_95_tpr(scores, poisoned),
    }


def auroc(scores: np.ndarray, poisoned: np.ndarray) -> float:
    """Return the probability that a poisoned pair scores higher than a clean one; ties count half.

    Raises:
        ValueError: lengths differ, a score is not finite, or all pairs or none are poisoned.
    """
    _check(scores, poisoned)
    return float(roc_auc_score(poisoned, scores))


def average_precision(scores: np.ndarray, poisoned: np.ndarray) -> float:
    """Return sum over thresholds of (gain in recall) * precision; pairs of equal score share one threshold.

    Raises:
        ValueError: as `auroc`.
    """
    _check(scores, poisoned)
    return float(average_precision_score(poisoned, scores))


def recall_at(scores: np.ndarray, poisoned: np.ndarray, budget: float) -> float:
    """Return the share of poison among the `budget` (fraction of all pairs) highest scores.

    Raises:
        ValueError: as `auroc`, or the budget is not in (0, 1].
    """
    return _hits(scores, poisoned, budget)[0] / int(poisoned.sum())


def precision_at(scores: np.ndarray, poisoned: np.ndarray, budget: float) -> float:
    """Return the share of the `budget` highest scores that is poison; errors as `recall_at`."""
    hits, reviewed = _hits(scores, poisoned, budget)
    return hits / reviewed


def fpr_at_95_tpr(scores: np.ndarray, poisoned: np.ndarray) -> float:
    """Return the share of clean pairs at or above the highest threshold that catches at least 95 % of the poison.

    Raises:
        ValueError: as `auroc`.
    """
    _check(scores, poisoned)
    false_rate, true_rate, _ = roc_curve(poisoned, scores, drop_intermediate=False)
    return float(false_rate[np.argmax(true_rate >= 0.95 - 1e-12)])


def roc_points(scores: np.ndarray, poisoned: np.ndarray) -> np.ndarray:
    """Return `[P, 2] float64`, false-positive and true-positive rate from (0, 0) to (1, 1), P <= 200.

    Errors as `auroc`. The points serve a linear and a logarithmic axis of the false-positive rate alike.
    """
    _check(scores, poisoned)
    false_rate, true_rate, _ = roc_curve(poisoned, scores)
    smallest = 1.0 / (len(poisoned) - int(poisoned.sum()))
    decades = np.log10(np.maximum(false_rate, smallest)) / max(-np.log10(smallest), 1.0)
    return _thinned(false_rate, true_rate, np.abs(np.diff(false_rate)) + np.abs(np.diff(decades)))


def pr_points(scores: np.ndarray, poisoned: np.ndarray) -> np.ndarray:
    """Return `[P, 2] float64`, recall and precision, the strictest threshold first, P <= 200; errors as `auroc`."""
    _check(scores, poisoned)
    precision, recall, _ = precision_recall_curve(poisoned, scores, drop_intermediate=True)
    return _thinned(recall[::-1], precision[::-1], np.abs(np.diff(recall[::-1])))


def _check(scores: np.ndarray, poisoned: np.ndarray) -> None:
    if scores.shape != poisoned.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and truth {poisoned.shape} must be two columns of one length")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    if not 0 < int(poisoned.sum()) < len(poisoned):
        raise ValueError("detection figures need both poisoned and clean pairs")


def _hits(scores: np.ndarray, poisoned: np.ndarray, budget: float) -> tuple[float, int]:
    """Return the expected number of poisoned pairs within the budget, and the number of pairs that it pays for.

    The budget is rounded down to whole pairs, but pays for one at least. Where it cuts through pairs of equal score,
    each of them is drawn with the same chance.
    """
    _check(scores, poisoned)
    if not 0 < budget <= 1:
        raise ValueError(f"a budget is a fraction in (0, 1], not {budget}")
    reviewed = max(1, part_of(budget, len(scores)))
    cut = np.partition(scores, len(scores) - reviewed)[len(scores) - reviewed]
    above, level = scores > cut, scores == cut
    share = (reviewed - int(above.sum())) / int(level.sum())
    return float(poisoned[above].sum() + share * poisoned[level].sum()), reviewed


def _thinned(x: np.ndarray, y: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return `[P, 2]`: at most 200 points, even along the curve by `steps` (`[P - 1]`) and y; the ends stay."""
    points = np.stack([x, y], axis=1).astype(np.float64)
    if len(points) <= CURVE_POINTS:
        return points
    length = np.concatenate([[0.0], np.cumsum(steps + np.abs(np.diff(y)))])
    keep = np.unique(np.minimum(np.searchsorted(length, np.linspace(0.0, length[-1], CURVE_POINTS)), len(x) - 1))
    keep[-1] = len(x) - 1
    thinned: np.ndarray = points[keep]
    return thinned
