"""Algorithm 2: hand-made counts against hand-computed scores."""

from math import comb

import pyarrow as pa
import pytest

from clipsan.stages.proof.affected import AffectedLimits, LabelEvidence, affected_labels

LIMITS = AffectedLimits()


def evidence(**counts: tuple[int, int]) -> pa.Table:
    """Rows of (examined, accepted) pairs a label."""
    claims = [label for label, (examined, _) in counts.items() for _ in range(examined)]
    proven = [i < accepted for examined, accepted in counts.values() for i in range(examined)]
    return pa.table({"claim": pa.array(claims, pa.string()), "proven": pa.array(proven, pa.bool_())})


def by_label(found: tuple[LabelEvidence, ...]) -> dict[str, LabelEvidence]:
    return {e.label: e for e in found}


def test_one_target_stands_out_and_its_figures_are_those_of_the_formulas() -> None:
    found = by_label(
        affected_labels(evidence(banana=(20, 12), dog=(10, 1), bus=(10, 1), lemon=(10, 0), cup=(10, 2)), limits=LIMITS)
    )
    banana = found["banana"]
    assert [label for label, e in found.items() if e.affected] == ["banana"]
    assert (banana.examined, banana.accepted) == (20, 12)
    # Counts 12 1 1 0 2: median 1, deviations 11 0 0 1 1, so MAD 1.
    assert banana.z == pytest.approx(11 / 1.4826)
    # 16 accepted in all; banana is 20 of 60 examined.
    tail = sum(comb(16, k) * (1 / 3) ** k * (2 / 3) ** (16 - k) for k in range(12, 17))
    assert banana.p_value == pytest.approx(tail)
    assert list(found)[:2] == ["banana", "cup"]


def test_four_accepted_pairs_are_too_few_and_five_are_enough() -> None:
    labels = ["a", "b", "c", "d"]
    assert not any(e.affected for e in affected_labels(evidence(banana=(50, 4)), labels, limits=LIMITS))
    five = by_label(affected_labels(evidence(banana=(50, 5)), labels, limits=LIMITS))
    assert five["banana"].affected
    # All other counts are 0: the scale is one pair, not 0.
    assert five["banana"].z == 5
    assert five["a"].examined == five["a"].accepted == 0
    assert five["a"].p_value == 1


def test_false_proofs_that_fall_everywhere_accuse_nobody() -> None:
    spread = evidence(a=(100, 6), b=(100, 5), c=(100, 7), d=(100, 6), e=(100, 5))
    assert not any(e.affected for e in affected_labels(spread, limits=LIMITS))


def test_the_prior_is_that_of_the_examined_pairs() -> None:
    # Two labels have about as many accepted pairs, but one was examined ten times as often.
    found = by_label(
        affected_labels(evidence(often=(500, 20), seldom=(50, 22), x=(50, 20), y=(50, 20), z=(50, 1)), limits=LIMITS)
    )
    assert not found["often"].affected
    assert found["seldom"].p_value < 1e-3


def test_nothing_examined_accuses_nobody() -> None:
    assert affected_labels(evidence(), limits=LIMITS) == ()
    assert not any(e.affected for e in affected_labels(evidence(), ["a", "b"], limits=LIMITS))
    none = pa.table({"claim": pa.array([None], pa.string()), "proven": pa.array([False])})
    assert affected_labels(none, limits=LIMITS) == ()
