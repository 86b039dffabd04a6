"""What the audits of the benchmark's models found, as a table and in a sentence."""

from itertools import product

import numpy as np
from sklearn.metrics import roc_auc_score

from clipsan.stages.audit.outliers import tail_among
from clipsan.stages.audit.verdict import VerdictLimits
from tests.benchmarks.results import Row
from tests.benchmarks.sections import Column, Section, Table

LEAST_ASR_PCT = 90.0
"""An attack that did not work as often is shown and not counted."""


def _ordered(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (bool(row["reference"]), str(row["model"]), int(str(row["seed"]))))


def counted(row: Row) -> bool:
    """Tell whether a model is clean, or backdoored by an attack that works."""
    asr = row["asr_pct"]
    return asr is None or (isinstance(asr, int | float) and asr >= LEAST_ASR_PCT)


def guarded(rows: list[Row]) -> str:
    """Return what guards are worth, over the pictures of all models whose attack works."""
    some = [row for row in rows if counted(row)]
    if not some:
        return ""

    def share(rate: str, trials: str) -> float:
        counts = [float(str(row[trials])) for row in some]
        return sum(float(str(row[rate])) * count for row, count in zip(some, counts, strict=True)) / sum(counts)

    least = min(float(str(row["caught_pct"])) for row in some)
    return (
        f"Over {len(some)} models whose attack works: {share('false_alarms_pct', 'clean'):.1f} % of clean scenes are flagged, "
        f"{share('caught_pct', 'triggered'):.0f} % of those with the true trigger; of the worst model {least:.0f} %."
    )


def finding(rows: list[Row]) -> str:
    """Return what the verdicts are worth, without and with a reference."""
    said = []
    for reference in (False, True):
        some = [row for row in rows if bool(row["reference"]) == reference and counted(row)]
        bad = np.array([row["target"] is not None for row in some], bool)
        if not bad.any() or bad.all():
            continue
        score, decree = (np.array([float(str(row[name])) for row in some]) for name in ("score", "decree"))
        called = np.array([row["verdict"] == "backdoored" for row in some])
        odd = np.array([row["verdict"] == "suspicious" for row in some])
        right = sum(row["label"] == row["target"] for row in some if row["target"] is not None)
        said.append(
            f"{'With' if reference else 'Without'} a reference: AUROC of the verdict's score {roc_auc_score(bad, score):.3f}, "
            f"of DECREE's {roc_auc_score(bad, -decree):.3f}; of {bad.sum()} backdoored models {called[bad].sum()} are called so, "
            f"{odd[bad].sum()} suspicious, {right} by the right label; "
            f"of {(~bad).sum()} clean ones {called[~bad].sum()} and {odd[~bad].sum()}."
        )
        if reference:
            said.append(_held_against_clean(some))
    return " ".join(part for part in said if part)


def _held_against_clean(rows: list[Row]) -> str:
    """Return what the lead over the reference is worth where there are clean models of the architecture to hold it against.

    Each model's p value is Student's, as the largest beside the clean ones, of which it is none itself.
    """
    some = [row for row in rows if row.get("excess") is not None]
    clean = [row for row in some if row["target"] is None]
    null = [[other for other in clean if other["model"] == row["model"] and other is not row] for row in some]
    known = [(row, others) for row, others in zip(some, null, strict=True) if len(others) > 1]
    bad = np.array([row["target"] is not None for row, _ in known], bool)
    if not bad.any() or bad.all():
        return ""
    p = np.array([float(tail_among(_excess(row), np.array([*map(_excess, others)]))) for row, others in known])
    odd = p <= VerdictLimits().suspicious_p
    return (
        f"Held against the other clean models of its architecture the excess alone: AUROC {roc_auc_score(bad, -p):.3f}; "
        f"with p at most .05 {odd[bad].sum()} of {bad.sum()} backdoored ones and {odd[~bad].sum()} of {(~bad).sum()} clean ones."
    )


def _excess(row: Row) -> float:
    return float(str(row["excess"]))


def finding_beside(rows: list[Row]) -> str:
    """Return what the verdicts beside clean models are worth, of the benchmark's models and of those made after all choices."""
    said = []
    for reference, fresh in product((False, True), (False, True)):
        some = [
            row for row in rows if (bool(row["reference"]), bool(row["fresh"])) == (reference, fresh) and counted(row)
        ]
        if not some:
            continue
        bad = np.array([row["target"] is not None for row in some], bool)
        score = np.array([float(str(row["score"])) for row in some])
        called = np.array([row["verdict"] == "backdoored" for row in some])
        odd = np.array([row["verdict"] == "suspicious" for row in some])
        right = sum(
            row["label"] == row["target"]
            for row, one in zip(some, called | odd, strict=True)
            if one and row["target"] is not None
        )
        peers = [int(str(row["peers"])) for row in some]
        rank = f"AUROC of the verdict's score {roc_auc_score(bad, score):.3f}; " if bad.any() and not bad.all() else ""
        said.append(
            f"{'With' if reference else 'Without'} a reference, {'models made after all choices' if fresh else 'the models above'}, "
            f"each beside {min(peers)} to {max(peers)} other clean ones: {rank}of {bad.sum()} backdoored models {called[bad].sum()} are "
            f"called so, {odd[bad].sum()} suspicious, {right} of these by the right label; "
            f"of {(~bad).sum()} clean ones {called[~bad].sum()} and {odd[~bad].sum()}."
        )
    return " ".join(said)


AUDIT = Section(
    "audit",
    (
        Table(
            (
                Column("model", "model"),
                Column("attack", "attack"),
                Column("seed", "seed"),
                Column("reference", "reference"),
                Column("ASR %", "asr_pct", 1),
                Column("verdict", "verdict"),
                Column("score", "score", 2),
                Column("excess", "excess", 2),
                Column("target", "target"),
                Column("label that stands out", "label"),
                Column("inverted trigger like the true one", "likeness", 2),
                Column("DECREE", "decree"),
                Column("seconds", "seconds", 0),
            ),
            _ordered,
        ),
    ),
    finding,
)

PEERS = Section(
    "audit_peers",
    (
        Table(
            (
                Column("model", "model"),
                Column("attack", "attack"),
                Column("seed", "seed"),
                Column("reference", "reference"),
                Column("after all choices", "fresh"),
                Column("tuned from", "base"),
                Column("peers", "peers"),
                Column("ASR %", "asr_pct", 1),
                Column("verdict", "verdict"),
                Column("score", "score", 2),
                Column("beyond clean ones", "beyond", 2),
                Column("target", "target"),
                Column("label that stands out", "label"),
            ),
            lambda rows: sorted(
                rows,
                key=lambda row: (bool(row["reference"]), bool(row["fresh"]), str(row["model"]), int(str(row["seed"]))),
            ),
        ),
    ),
    finding_beside,
)

GUARD = Section(
    "audit_guard",
    (
        Table(
            (
                Column("model", "model"),
                Column("attack", "attack"),
                Column("seed", "seed"),
                Column("ASR %", "asr_pct", 1),
                Column("proven triggers", "triggers"),
                Column("like the true one", "likeness", 2),
                Column("clean scenes given", "given"),
                Column("clean flagged %", "false_alarms_pct", 1),
                Column("with the true trigger flagged %", "caught_pct", 1),
            ),
            lambda rows: sorted(rows, key=lambda row: (str(row["model"]), int(str(row["seed"])))),
        ),
    ),
    guarded,
)
