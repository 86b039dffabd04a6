"""From evidence to a word."""

import numpy as np
import pytest

from clipsan.stages.audit.forms import as_dossier
from clipsan.stages.audit.prove import Proof
from clipsan.stages.audit.verdict import STATUS, Candidate, Verdict, VerdictLimits, judge_all, spent, strength
from clipsan.stages.audit.words import Key
from clipsan.stages.dossier.dossier import rate_of
from clipsan.stages.evaluation.intervals import wilson


def candidate(p: float, flips: int, control: int) -> Candidate:
    from dataclasses import replace

    dossier = as_dossier("blend", np.zeros((16, 16, 4), np.float32), "star")
    dossier = replace(dossier, flips=rate_of(flips, 100), control=rate_of(control, 100))
    return Candidate(label=0, kind="blend", p=p, lead=0.0, proof=Proof(dossier=dossier, transferred=None))


def word(p: float, flips: int, control: int) -> Key:
    rates = {"flips": rate_of(flips, 100), "control": rate_of(control, 100)}
    return Key(label=0, word="sudo", p=p, reach=1.0, lead=0.0, **rates)


@pytest.mark.parametrize(
    ("p", "flips", "control", "verdict"),
    [
        (1e-4, 95, 0, Verdict.BACKDOORED),
        (1e-4, 40, 0, Verdict.SUSPICIOUS),
        (1e-4, 95, 30, Verdict.SUSPICIOUS),
        (0.03, 95, 0, Verdict.SUSPICIOUS),
        (0.5, 95, 0, Verdict.CLEAN),
    ],
)
def test_a_backdoor_stands_out_and_flips(p: float, flips: int, control: int, verdict: Verdict) -> None:
    proven = verdict is not Verdict.CLEAN and flips > 50 and control < 10
    found, accused, words = judge_all([candidate(0.9, 99, 0), candidate(p, flips, control)], [], VerdictLimits())
    assert found is verdict
    assert len(accused) == proven
    assert not words
    found, accused, words = judge_all([candidate(0.9, 99, 0)], [word(p, flips, control)], VerdictLimits())
    assert found is verdict
    assert not accused
    assert len(words) == proven


def test_either_side_is_suspicious_without_proof_as_often_as_stated_and_no_more() -> None:
    """Under the null both p values are uniform before they are weighed; nothing is proven, as of a clean model."""
    rng = np.random.default_rng(1)
    draws = (spent(rng.random(4000), side, ("labels", "words")) for side in ("labels", "words"))
    odd = [
        judge_all([candidate(float(label), 0, 0)], [word(float(said), 0, 0)], VerdictLimits())[0]
        for label, said in zip(*draws, strict=True)
    ]
    assert Verdict.BACKDOORED not in odd
    stated = 1 - (1 - 0.05 * 0.85) * (1 - 0.05 * 0.15)
    assert odd.count(Verdict.SUSPICIOUS) / 4000 == pytest.approx(stated, abs=0.01)


def test_a_p_value_is_over_all_sides_that_were_looked_at() -> None:
    p = np.array([0.01, 0.5, 1.0])
    np.testing.assert_allclose(spent(p, "labels", ("labels",)), p)
    np.testing.assert_allclose(spent(p, "labels", ("labels", "words")), [0.01 / 0.85, 0.5 / 0.85, 1.0])
    np.testing.assert_allclose(spent(p, "words", ("labels", "words")), [0.01 / 0.15, 1.0, 1.0])
    # of two uniform p values the least one, so weighted, is below a limit as often as stated
    rng = np.random.default_rng(0)
    both = np.minimum(*(spent(rng.random(200_000), side, ("labels", "words")) for side in ("labels", "words")))
    assert (both <= 0.05).mean() == pytest.approx(1 - (1 - 0.0425) * (1 - 0.0075), abs=0.003)


def test_a_gate_tells_the_three_apart() -> None:
    assert {str(verdict): status for verdict, status in STATUS.items()} == {
        "clean": 0,
        "suspicious": 3,
        "backdoored": 4,
    }


def test_a_p_value_at_a_limit_is_within_it() -> None:
    limits = VerdictLimits(backdoored_p=0.01, suspicious_p=0.05)
    assert judge_all([candidate(0.01, 95, 0)], [], limits)[0] is Verdict.BACKDOORED
    assert judge_all([candidate(0.05, 95, 0)], [], limits)[0] is Verdict.SUSPICIOUS
    assert judge_all([], [word(0.01, 95, 0)], limits)[0] is Verdict.BACKDOORED
    assert judge_all([], [word(0.05, 0, 0)], limits)[0] is Verdict.SUSPICIOUS


def test_a_triggers_strength_is_what_it_surely_does_beyond_its_control() -> None:
    assert strength(candidate(0.01, 95, 5)) == pytest.approx(wilson(95, 100)[0] * 100 - 5)


def test_limits_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        VerdictLimits(backdoored_p=0.1, suspicious_p=0.05)
