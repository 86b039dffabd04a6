"""Choice among trials that were measured on two counts: how well an attack still works, and what accuracy it cost.

Both are in percent or percentage points, and less of either is better.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial came to."""

    number: int
    objective_pct: float
    """What is to be low: an ASR, or the share of features that small perturbations destroy."""
    accuracy_pct: float
    """Clean accuracy, or retrieval R@1."""


def pareto_front(outcomes: Sequence[Outcome]) -> list[int]:
    """Return the numbers of the trials that no other one beats, by rising objective, then by number.

    A trial beats another that is at least as bad on both counts and worse on one; equals stand together.
    """
    if not outcomes:
        return []
    values = np.array([(found.objective_pct, -found.accuracy_pct) for found in outcomes], np.float64)
    order = np.lexsort((values[:, 1], values[:, 0]))
    front, best, at = [], np.inf, np.inf
    for row in order:
        objective, cost = values[row]
        # by rising objective, only a lower cost than everybody's before lets a trial in, or being the equal of the last
        if cost < best or (cost == best and objective == at):
            front.append(outcomes[row])
            best, at = cost, objective
    return [found.number for found in sorted(front, key=lambda found: (found.objective_pct, found.number))]


def recommend(outcomes: Sequence[Outcome], before_pct: float, max_loss_points: float) -> int | None:
    """Return the trial that the rule recommends; None if none keeps the accuracy.

    The rule: the lowest objective among the trials whose accuracy is at most `max_loss_points` below `before_pct`; of
    equals the most accurate, then the one with the lowest number.
    """
    kept = [found for found in outcomes if before_pct - found.accuracy_pct <= max_loss_points]
    best = min(kept, key=lambda found: (found.objective_pct, -found.accuracy_pct, found.number), default=None)
    return None if best is None else best.number


def badness(objective_pct: float, accuracy_pct: float, before_pct: float, max_loss_points: float) -> float:
    """Return the number by which early stopping compares unfinished trials, less being better: in [0, 200].

    The objective, and every point of accuracy lost beyond the limit. The rule would shut such a trial out; half way through a
    repair the accuracy may still come back: PAR perturbs first, at a cost of tens of points, and recovers then.
    """
    over = before_pct - accuracy_pct - max_loss_points
    return objective_pct + float(np.clip(over, 0.0, 100.0))
