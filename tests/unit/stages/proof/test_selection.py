"""Which pairs the oracle looks at."""

import numpy as np
import pytest

from clipsan.stages.proof.selection import ChoiceLimits, select


def choose(count: int, cut: float = 1.0, **changed: np.ndarray) -> list[int]:
    given = {
        #                     named a (0)        b (1), not named      none
        "ensemble": np.array([0.2, 3.0, 2.0, 0.9, 0.8, 0.1, 0.3, 0.95], np.float32),
        "spectral": np.array([1.0, 9.0, 8.0, 0.1, 0.2, 7.0, 0.3, 99.0], np.float32),
        "concept": np.array([0, 0, 0, 1, 1, 1, 1, -1]),
        "statistics": np.array([5.0, 1.0]),
        "named": np.array([True, False]),
    } | changed
    limits = ChoiceLimits()
    return select(**given, cut=cut, count=count, leading=limits.leading, other_side=limits.other_side).tolist()


def test_the_flagged_pairs_of_named_concepts_come_first() -> None:
    assert choose(2) == [1, 2]


def test_the_most_suspicious_of_a_leading_concept_come_before_higher_scores_elsewhere() -> None:
    # two flagged, then (6 - 2) // 4 = 1 each for a (row 0) and b (row 5, its highest spectral), then the ensemble: 3, 4
    assert choose(6) == [0, 1, 2, 3, 4, 5]
    assert choose(5) == [1, 2, 3, 4, 6]  # (5 - 2) // 4 = 0: too little left to share out


def test_a_quarter_of_a_leading_concept_s_share_goes_to_its_other_side() -> None:
    score = np.arange(40, dtype=np.float32)
    chosen = choose(
        16,
        ensemble=np.where(np.arange(40) < 20, 0.0, 0.5).astype(np.float32),
        spectral=score,
        concept=np.repeat([0, 1], 20),
        named=np.array([False, False]),
    )
    # Of 16, half for two concepts: 3 most and 1 least suspicious of each; then the ensemble, of which b's are higher.
    assert {0, 17, 18, 19, 20, 37, 38, 39} <= set(chosen)
    assert len(chosen) == 16
    assert set(chosen) - {0, 17, 18, 19, 20, 37, 38, 39} == set(range(21, 29))


def test_a_pair_at_the_cut_is_flagged() -> None:
    assert choose(1, cut=2.0, ensemble=np.array([0, 0, 2, 0, 9, 0, 0, 0], np.float32)) == [2]


def test_only_the_concepts_of_the_highest_statistics_lead() -> None:
    chosen = select(
        np.where(np.arange(60) < 40, 0.0, 0.5).astype(np.float32),
        np.arange(60, dtype=np.float32),
        np.repeat([0, 1, 2], 20),
        statistics=np.array([1.0, 5.0, 3.0]),
        named=np.zeros(3, bool),
        cut=1.0,
        count=8,
        leading=1,
        other_side=0.25,
    )
    # half of the budget for the second concept alone, a quarter of that for its other side; the rest by the ensemble
    assert chosen.tolist() == [20, 37, 38, 39, 40, 41, 42, 43]


def test_a_pair_without_a_concept_is_never_chosen() -> None:
    assert 7 not in choose(8)
    assert len(choose(8)) == 7


def test_equal_scores_are_taken_in_the_order_of_the_data_set() -> None:
    flat = np.zeros(8, np.float32)
    assert choose(2, ensemble=flat, spectral=flat, named=np.array([False, False])) == [0, 1]


@pytest.mark.parametrize("count", [0, 1, 3, 7, 50])
def test_never_more_than_the_budget(count: int) -> None:
    assert len(choose(count)) == min(count, 7)


def test_high_scores_outside_named_concepts_are_not_preferred() -> None:
    assert choose(1, ensemble=np.array([0, 2, 0, 5, 0, 0, 0, 0], np.float32)) == [1]
