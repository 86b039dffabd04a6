"""The Pareto front and the rule of a sweep, against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipsan.stages.search.pareto import Outcome, badness, pareto_front, recommend

PERCENT = st.integers(0, 6).map(float)
OUTCOMES = st.lists(st.tuples(PERCENT, PERCENT), max_size=12).map(
    lambda found: [Outcome(i, objective, accuracy) for i, (objective, accuracy) in enumerate(found)]
)


def beats(a: Outcome, b: Outcome) -> bool:
    as_good = a.objective_pct <= b.objective_pct and a.accuracy_pct >= b.accuracy_pct
    return as_good and (a.objective_pct < b.objective_pct or a.accuracy_pct > b.accuracy_pct)


@given(OUTCOMES)
def test_the_front_is_what_nothing_beats(outcomes: list[Outcome]) -> None:
    expected = [b for b in outcomes if not any(beats(a, b) for a in outcomes)]
    expected.sort(key=lambda found: (found.objective_pct, found.number))
    assert pareto_front(outcomes) == [found.number for found in expected]


@given(OUTCOMES, PERCENT, st.integers(0, 3))
def test_the_rule_by_brute_force(outcomes: list[Outcome], before: float, limit: int) -> None:
    best: Outcome | None = None
    for found in outcomes:
        if before - found.accuracy_pct > limit:
            continue
        if (
            best is None
            or found.objective_pct < best.objective_pct
            or (found.objective_pct == best.objective_pct and found.accuracy_pct > best.accuracy_pct)
        ):
            best = found
    number = recommend(outcomes, before, limit)
    assert number == (None if best is None else best.number)
    # the one recommended stands on the front
    assert number is None or number in pareto_front(outcomes)


@given(OUTCOMES.filter(bool), PERCENT, st.integers(0, 3))
def test_among_trials_that_kept_their_accuracy_early_stopping_orders_as_the_rule_does(
    outcomes: list[Outcome], before: float, limit: int
) -> None:
    kept = [found for found in outcomes if before - found.accuracy_pct <= limit]
    values = {found.number: badness(found.objective_pct, found.accuracy_pct, before, limit) for found in kept}
    number = recommend(outcomes, before, limit)
    if number is not None:
        assert values[number] == min(values.values())


def test_what_is_perturbed_and_works_goes_on_before_what_is_untouched_and_before_what_is_destroyed() -> None:
    # PAR on a patch after 7 of 60 steps, at three learning rates: objective and accuracy as measured
    perturbed, untouched, destroyed = (
        badness(*found, 69.5, 3.0) for found in ((17.0, 33.8), (58.2, 57.2), (99.8, 5.7))
    )
    assert perturbed < untouched < destroyed


@pytest.mark.parametrize(
    ("objective", "accuracy", "expected"),
    [(30.0, 70.0, 30.0), (30.0, 68.0, 30.0), (30.0, 67.5, 30.5), (0.0, 0.0, 68.0), (100.0, 90.0, 100.0)],
)
def test_badness_by_hand(objective: float, accuracy: float, expected: float) -> None:
    assert badness(objective, accuracy, 70.0, 2.0) == pytest.approx(expected)


def test_of_equals_the_more_accurate_then_the_first() -> None:
    found = [Outcome(3, 0.0, 70.0), Outcome(1, 0.0, 70.0), Outcome(2, 0.0, 71.0), Outcome(0, 0.0, 60.0)]
    assert recommend(found, 71.0, 5.0) == 2
    assert recommend([found[0], found[1]], 71.0, 5.0) == 1
    assert recommend(found, 90.0, 5.0) is None
    assert pareto_front([]) == []
    assert np.isfinite(badness(0.0, 0.0, 1e9, 0.0))
