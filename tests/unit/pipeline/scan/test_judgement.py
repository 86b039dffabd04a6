"""What a scan says of a data set as a whole."""

import numpy as np

from clipsan.pipeline.proof.prove import Proof
from clipsan.pipeline.scan.passes import Judgement
from clipsan.stages.captions import NO_WORDS
from clipsan.stages.detectors import Findings
from clipsan.stages.dossier.dossier import rate_of
from clipsan.stages.dossier.residual import Residual
from clipsan.stages.verdicts import Cut


def residual(target: str) -> Residual:
    return Residual(
        id=f"of {target}",
        targets=(target,),
        side=8,
        flips=rate_of(9, 10),
        control=rate_of(0, 10),
        uids=("a",),
        offset=np.ones((8, 8, 3), np.float32),
        gain=np.ones((8, 8, 1), np.float32),
        covers=np.ones((8, 8), bool),
    )


def test_concept_is_named_by_the_statistics_or_by_a_proven_trigger() -> None:
    findings = Findings(("banana",), [], 0.7, 1.0, "", False, {}, NO_WORDS)
    proof = Proof(dossiers=(residual("kite"), residual("banana")))
    assert Judgement(findings, Cut(1.0, ""), proof).targets == ("banana", "kite")
    assert Judgement(findings, Cut(1.0, ""), Proof()).targets == ("banana",)
