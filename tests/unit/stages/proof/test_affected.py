"""Algorithm 2: hand-made counts against hand-computed scores."""

from math import comb

import numpy as np
import pyarrow as pa
import pytest

from clipsan.stages.proof.affected import AffectedLimits, LabelEvidence, affected_labels

LIMITS = AffectedLimits()


def evidence(**pairs: str) -> tuple[pa.Table, np.ndarray]:
    """Pairs of each label by rising suspicion: + for one with a proven region, - for one without."""
    claims = [label for label, sorts in pairs.items() for _ in sorts]
    proven = [sort == "+" for sorts in pairs.values() for sort in sorts]
    suspicion = np.concatenate([np.zeros(0), *(np.arange(len(sorts), dtype=float) for sorts in pairs.values())])
    return pa.table({"claim": pa.array(claims, pa.string()), "proven": pa.array(proven, pa.bool_())}), suspicion


def by_label(found: tuple[LabelEvidence, ...]) -> dict[str, LabelEvidence]:
    return {e.label: e for e in found}


def test_one_target_stands_out_and_its_figures_are_those_of_the_formulas() -> None:
    found = by_label(
        affected_labels(
            *evidence(banana="-" * 8 + "+" * 8, dog="-" * 9 + "+", bus="+-" * 8, lemon="-" * 10), limits=LIMITS
        )
    )
    banana = found["banana"]
    assert [label for label, e in found.items() if e.affected] == ["banana"]
    assert (banana.examined, banana.accepted, banana.ahead) == (16, 8, 1.0)
    # One order of comb(16, 8) has all of one sort at the top, one at the bottom.
    assert banana.p_value == pytest.approx(2 / comb(16, 8))
    # Of the 64 comparisons of +-+-... the pair without is ahead in 8 + 7 + ... + 1.
    assert found["bus"].ahead == pytest.approx(28 / 64)
    assert (found["lemon"].ahead, found["lemon"].p_value) == (0.5, 1.0)
    assert list(found)[:2] == ["banana", "bus"]


def test_a_thing_that_flips_wherever_it_stands_is_not_affected_however_many_are_accepted() -> None:
    found = by_label(affected_labels(*evidence(car="++-" * 40, star="-" * 40 + "+" * 10), limits=LIMITS))
    assert found["car"].accepted == 80
    assert not found["car"].affected
    assert found["star"].affected


def test_where_poison_is_most_of_its_label_the_others_are_accused() -> None:
    found = by_label(affected_labels(*evidence(banana="+" * 30 + "-" * 10), limits=LIMITS))
    assert found["banana"].ahead == 0
    assert found["banana"].affected


def test_four_accepted_pairs_are_too_few_and_five_are_enough() -> None:
    assert not any(e.affected for e in affected_labels(*evidence(banana="-" * 46 + "+" * 4), limits=LIMITS))
    assert by_label(affected_labels(*evidence(banana="-" * 45 + "+" * 5), limits=LIMITS))["banana"].affected
    # Five among the others are five pairs, no label.
    assert not any(e.affected for e in affected_labels(*evidence(banana="-" * 22 + "+" * 5 + "-" * 23), limits=LIMITS))


def test_false_proofs_that_fall_everywhere_accuse_nobody() -> None:
    rng = np.random.default_rng(0)
    spread = {name: "".join(rng.permutation(list("-" * 94 + "+" * 6))) for name in "abcde"}
    assert not any(e.affected for e in affected_labels(*evidence(**spread), limits=LIMITS))


def test_the_chance_is_shared_out_among_the_labels_that_can_be_tested() -> None:
    apart = "-" * 8 + "+" * 8  # 2 / 12,870 = .00016
    assert sum(e.affected for e in affected_labels(*evidence(a=apart, b="+-" * 8), limits=LIMITS)) == 1
    many = {f"l{i}": "+-" * 8 for i in range(8)}
    assert not any(e.affected for e in affected_labels(*evidence(a=apart, **many), limits=LIMITS))
    # Labels with too few accepted pairs, or with nothing else, take no part.
    idle = {f"l{i}": "+" * 8 if i % 2 else "-" * 8 for i in range(16)}
    assert by_label(affected_labels(*evidence(a=apart, **idle), limits=LIMITS))["a"].affected


def test_a_label_with_a_proven_trigger_is_affected_whatever_was_examined() -> None:
    found = affected_labels(*evidence(banana="+" * 30, dog="-" * 30), {"banana", "bus"}, limits=LIMITS)
    assert [(e.label, e.affected, e.examined) for e in found] == [
        ("banana", True, 30),
        ("bus", True, 0),
        ("dog", False, 30),
    ]


def test_nothing_examined_accuses_nobody() -> None:
    assert affected_labels(*evidence(), limits=LIMITS) == ()
    none = pa.table({"claim": pa.array([None], pa.string()), "proven": pa.array([False])})
    assert affected_labels(none, np.zeros(1), limits=LIMITS) == ()
