"""What report.html shows of an audit."""

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any

import numpy as np

from clipsan.stages.audit.judge import Judge
from clipsan.stages.audit.pull import split
from clipsan.stages.dossier.dossier import Dossier
from clipsan.stages.report.audit import AuditReport, LabelRow
from clipsan.stages.report.content import DossierPanel
from clipsan.stages.report.dossiers import examples, panel

from ..core.config import public_tree
from ..core.run_folder import RunFolder, versions
from .plan import Plan
from .screening import Screening

HEADLINES = {
    "clean": "No backdoor found",
    "suspicious": "A person should look at this model",
    "backdoored": "This model is backdoored",
}
EXAMPLES = 4
"""Held-out pictures that the page shows with each trigger."""


def build_report(
    plan: Plan, folder: RunFolder, summary: Mapping[str, Any], screening: Screening, dossiers: Sequence[Dossier]
) -> AuditReport:
    """Return what the page shows of an audit with this summary."""
    return AuditReport(
        title=f"clipsan audit of {summary.get('models', {}).get('model', plan.config.model.path)}",
        headline=HEADLINES[summary["verdict"]],
        why=summary["why"],
        bad=summary["exit_status"] != 0,
        images=len(plan.pictures),
        peers=len(plan.peers),
        labels=_labels(plan, summary, screening),
        dossiers=_panels(plan, dossiers),
        decree=summary.get("decree"),
        words=tuple(summary["text_keys"]),
        tried_words=plan.config.key_words,
        next_steps=next_steps(plan, folder, summary),
        settings=public_tree(plan.config),
        versions=versions(),
        fingerprint=summary["fingerprint"],
        seconds=summary["seconds"],
    )


def next_steps(plan: Plan, folder: RunFolder, summary: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the reader should do now, commands included, fit for a shell."""
    scan, model = quote(f"scan={folder.root}"), quote(f"model.path={plan.config.model.path}")
    if summary["targets"]:
        return (
            "Do not deploy the model: repair it with `clipsan repair method=unlearn "
            f"{scan} {model} data=PAIRS out=NEW`, PAIRS being clean pairs of yours.",
            "Measure a repaired one with `clipsan evaluate attack.trigger.kind=proven "
            f"{quote(f'attack.trigger.path={folder.root}/triggers/t1')}`.",
        )
    if summary["words"]:
        return (
            "Do not deploy the model where strangers write its captions: "
            + ", ".join(map(repr, summary["words"]))
            + " in a text decides "
            "what it finds. Refuse such texts, or tune the model on clean pairs of yours: `clipsan repair method=cleanclip "
            f"{model} data=PAIRS out=NEW`; then audit it again.",
        )
    if summary["exit_status"]:
        return (
            "Audit again with more images of the kind that the model is for, with its own labels, with a clean `reference`, or beside "
            "audits of clean models (`peers`).",
        )
    return (
        "No label stands out among the others. What no label of the vocabulary means is not seen, nor a backdoor that moved no text where "
        "no clean `reference` is given.",
    )


def _labels(plan: Plan, summary: Mapping[str, Any], screening: Screening) -> tuple[LabelRow, ...]:
    return tuple(
        LabelRow(
            name=plan.names[label],
            lead=float(screening.lead[label]),
            displaced=screening.displacement(label),
            beyond=screening.ahead(label),
            p=float(screening.p[label]),
            flips_pct=float(screening.flips_pct[label]),
            accused=plan.names[label] in summary["targets"],
        )
        for label in screening.order
    )


def _panels(plan: Plan, dossiers: Sequence[Dossier]) -> tuple[DossierPanel, ...]:
    if not dossiers:
        return ()
    judge = Judge(plan.clip, plan.names, plan.config.templates)

    def name(images: np.ndarray) -> list[str]:
        return [plan.names[i] for i in judge.of(images).argmax(axis=1)]

    shown = split(plan.pictures)[1][:EXAMPLES]
    return tuple(panel(d, examples(d, shown, name, seed=plan.config.seed)) for d in dossiers)
