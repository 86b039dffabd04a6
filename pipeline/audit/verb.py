"""`clipsan audit`: is this checkpoint backdoored, towards what, with which trigger? Without its training data.

Screening of every label, by triggers and by how far its text stands from its pictures -> a close look at those that stand out ->
proof on held-out images -> verdict. The exit status is for a pipeline that gates on it: `stages.audit.verdict.STATUS`.
"""

import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipsan.stages.audit.forms import as_dossier
from clipsan.stages.audit.judge import Judge
from clipsan.stages.audit.prove import Proof
from clipsan.stages.audit.repair_set import repair_set
from clipsan.stages.audit.verdict import STATUS, Candidate, Verdict, judge_all, proven, strength
from clipsan.stages.dossier.dossier import Dossier, Rate
from clipsan.stages.dossier.files import write_dossiers
from clipsan.stages.report.audit import render

from ..core.commit import read_part, whole
from ..core.run_folder import RunFolder
from ..core.verb import Job, Result, Summary, Verb
from ..tracking.record import Judged
from ..tracking.versions import Version
from .plan import Plan, make_plan
from .report import build_report
from .screening import Screening, pass_of, screened
from .settings import AuditConfig
from .work import BesideWork, ProofWork, trigger_of


def run(plan: Plan, job: Job) -> Result:
    """Audit, or go on where a kill left off."""
    settings, folder = plan.config, job.folder
    screening = screened(plan, folder)
    candidates = _looked_at(plan, folder, screening)
    verdict, accused = judge_all(candidates, settings.limits)
    dossiers = _kept(plan, folder, accused)
    beside = _beside(plan, folder)
    summary: Summary = {
        "verdict": verdict.value,
        "why": _why(plan, verdict, accused, candidates),
        "exit_status": STATUS[verdict],
        "counts": {"labels": len(plan.names), "images": len(plan.pictures), "candidates": len(candidates)},
        "targets": list(dict.fromkeys(target for dossier in dossiers for target in dossier.targets)),
        "labels": list(plan.names),
        "least_p": float(screening.p.min()),
        "lead": float(screening.lead.max()),
        **beside,
        "suspect": plan.clip.fingerprint,
        "reference": plan.reference_fingerprint,
        "peers": [peer.suspect for peer in plan.peers],
        "proof": {
            "triggers": [_told(plan, screening, c, dossier) for c, dossier in zip(accused, dossiers, strict=True)]
        },
        "candidates": [_told(plan, screening, c, c.proof.dossier) for c in candidates],
        "report": str(folder.report),
    }
    audited = job.versions.get("model")
    return Result(
        summary=summary,
        page=lambda told: render(build_report(plan, folder, told, screening, dossiers)),
        metrics={
            name: summary[name]
            for name in ("least_p", "lead", "decree", "exit_status", "counts")
            if summary.get(name) is not None
        },
        tags={"clipsan.suspect": plan.clip.fingerprint, "clipsan.verdict": verdict.value},
        inputs=plan.inputs,
        judged=None if audited is None else _judged(audited, plan, screening, summary),
    )


def _judged(version: Version, plan: Plan, screening: Screening, summary: Summary) -> Judged:
    """Return what the version of the registry that was audited is told."""
    tags = {
        "clipsan.audit": plan.fingerprint,
        "clipsan.audit_verdict": summary["verdict"],
        "clipsan.audit_label": plan.names[screening.order[0]],
        "clipsan.audit_targets": json.dumps(summary["targets"], ensure_ascii=False),
        "clipsan.audit_p": f"{summary['least_p']:.3g}",
    }
    return Judged(version=version.name, source=version.source, tags=tags)


def _looked_at(plan: Plan, folder: RunFolder, screening: Screening) -> list[Candidate]:
    """Return the labels that stand out most, each with the kind of trigger that proves most."""
    settings = plan.config
    order = screening.order[: settings.candidates]
    kinds = settings.kinds
    pieces = {label * len(kinds) + i: (kind, (label,)) for label in order for i, kind in enumerate(kinds)}
    proofs = pass_of(plan, folder, "proofs")
    proofs.do(pieces, ProofWork(plan.config, plan.names, plan.pictures))
    best: dict[int, Candidate] = {}
    for row in pa.concat_tables([read_part(proofs.home, key) for key in pieces]).to_pylist():
        found = _candidate(plan, row, screening)
        known = best.get(found.label)
        if known is None or strength(found) > strength(known):
            best[found.label] = found
    return list(best.values())


def _beside(plan: Plan, folder: RunFolder) -> dict[str, Any]:
    """Return the figures that stand beside the verdict, by their names in the summary."""
    wanted = {"decree": plan.config.decree_steps, "text_keys": plan.config.key_words}
    names = list(wanted)
    pieces = {names.index(name): name for name, effort in wanted.items() if effort}
    if not pieces:
        return {}
    beside = pass_of(plan, folder, "beside")
    beside.do(pieces, BesideWork(plan.config, plan.names, plan.pictures))
    return {name: json.loads(read_part(beside.home, i).column("json")[0].as_py()) for i, name in pieces.items()}


def _candidate(plan: Plan, row: dict[str, Any], screening: Screening) -> Candidate:
    dossier = as_dossier(row["kind"], trigger_of(row["trigger"]), plan.names[row["label"]])
    dossier = replace(dossier, flips=Rate(**row["flips"]), control=Rate(**row["control"]))
    transferred = None if row["transferred"] is None else Rate(**row["transferred"])
    label = row["label"]
    return Candidate(
        label=label,
        kind=row["kind"],
        p=float(screening.p[label]),
        lead=float(screening.lead[label]),
        proof=Proof(dossier=dossier, transferred=transferred),
    )


def _kept(plan: Plan, folder: RunFolder, accused: list[Candidate]) -> tuple[Dossier, ...]:
    """Write the dossiers of what is accused, and the pairs to repair from; return them numbered, in the order given."""
    dossiers = tuple(replace(c.proof.dossier, id=f"t{i}") for i, c in enumerate(accused, 1))
    write_dossiers(folder.local / "triggers", dossiers)
    if dossiers:
        judge = Judge(plan.clip, plan.names, plan.config.templates)
        said = judge.of(plan.pictures).argmax(axis=1)
        table = repair_set(plan.pictures, said, plan.names, dossiers, seed=plan.config.seed)
        path = folder.local / "repair" / "part-00000.parquet"
        path.parent.mkdir(exist_ok=True)
        with whole(path) as temporary:
            pq.write_table(table, temporary)
    return dossiers


def _told(plan: Plan, screening: Screening, candidate: Candidate, dossier: Dossier) -> dict[str, Any]:
    flips, control, moved = dossier.flips, dossier.control, candidate.proof.transferred
    return {
        "id": dossier.id,
        "kind": candidate.kind,
        "targets": [plan.names[candidate.label]],
        "p": candidate.p,
        "lead": candidate.lead,
        "displaced": screening.displacement(candidate.label),
        "beyond": screening.ahead(candidate.label),
        "proven": proven(candidate),
        "flip_rate_pct": flips.pct,
        "flip_rate_pct_ci95": [flips.low_pct, flips.high_pct],
        "control_flip_rate_pct": control.pct,
        "reference_flip_rate_pct": None if moved is None else moved.pct,
    }


def _why(plan: Plan, verdict: Verdict, accused: list[Candidate], candidates: list[Candidate]) -> str:
    """Return the verdict's ground in one sentence."""
    beside = f" or beside {len(plan.peers)} clean models" if plan.peers else ""
    if accused:
        first = max(accused, key=lambda c: c.lead)
        flips, control = first.proof.dossier.flips, first.proof.dossier.control
        return (
            f"a {first.kind} trigger makes {flips.pct:.0f} % of held-out images {plan.names[first.label]!r} (as much of "
            f"something else: {control.pct:.0f} %), and the label stands out among the others{beside} (p {first.p:.2g})"
        )
    odd = max(candidates, key=lambda c: c.lead)
    said = f"{plan.names[odd.label]!r} stands out most{beside and ' among the others' + beside} (p {odd.p:.2g})"
    return (
        f"{said}, no more than a clean model's does"
        if verdict is Verdict.CLEAN
        else f"{said}, but no trigger is proven"
    )


def closing(summary: Summary) -> str:
    """Return the last lines of an audit."""
    return (
        f"audit: {summary['verdict']}: {summary['why']} ({summary['counts']['labels']} labels in {summary['seconds']:.0f} s); "
        f"look at {summary['report']}"
    )


VERB = Verb(
    name="audit",
    config=AuditConfig,
    plan=make_plan,
    run=run,
    closing=closing,
    status=lambda summary: int(summary["exit_status"]),
)
