"""From evidence to a word."""

import numpy as np
import pytest

from clipsan.stages.audit.forms import as_dossier
from clipsan.stages.audit.prove import Proof
from clipsan.stages.audit.verdict import STATUS, Candidate, Verdict, VerdictLimits, judge_all
from clipsan.stages.dossier.dossier import rate_of


def candidate(p: float, flips: int, control: int) -> Candidate:
    from dataclasses import replace

    dossier = as_dossier("blend", np.zeros((16, 16, 4), np.float32), "star")
    dossier = replace(dossier, flips=rate_of(flips, 100), control=rate_of(control, 100))
    return Candidate(label=0, kind="blend", p=p, lead=0.0, proof=Proof(dossier=dossier, transferred=None))


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
    found, accused = judge_all([candidate(0.9, 99, 0), candidate(p, flips, control)], VerdictLimits())
    assert found is verdict
    assert len(accused) == (verdict is not Verdict.CLEAN and flips > 50 and control < 10)


def test_a_gate_tells_the_three_apart() -> None:
    assert len(set(STATUS.values())) == 3
    assert STATUS[Verdict.CLEAN] == 0


def test_limits_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        VerdictLimits(backdoored_p=0.1, suspicious_p=0.05)
