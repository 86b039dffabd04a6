"""`clipsan audit`: is this checkpoint backdoored, towards what, with which trigger? Without its training data.

Screening of every label, by triggers and by how far its text stands from its pictures -> a close look at those that stand out ->
proof on held-out images; words before captions, and proof on held-out sentences -> verdict. The exit status is for a pipeline that
gates on it: `stages.audit.verdict.STATUS`.
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipsan.stages.audit.forms import as_dossier
from clipsan.stages.audit.judge import Judge
from clipsan.stages.audit.prove import Proof
from clipsan.stages.audit.repair_set import repair_set
from clipsan.stages.audit.verdict import STATUS, Candidate, Verdict, judge_all, proven, spent, strength
from clipsan.stages.audit.words import Key
from clipsan.stages.dossier.dossier import Dossier, Rate
from clipsan.stages.dossier.files import write_dossiers
from clipsan.stages.report.audit import render

from ..core.commit import read_part, whole, write_json
from ..core.place import remove, remove_tree
from ..core.run_folder import RunFolder
from ..core.verb import Job, Result, Summary, Verb
from ..tracking.record import Judged
from ..tracking.versions import Version
from .plan import Plan, make_plan
from .report import build_report
from .screening import Screening, pass_of, screened
from .settings import AuditConfig
from .sought import with_labels
from .words import listened
from .work import BesideWork, ProofWork, trigger_of

WORDS_FILE = "words.json"
"""Beside the dossiers of triggers: the words that are accused."""


def run(plan: Plan, job: Job) -> Result:
    """Audit, or go on where a kill left off."""
    settings, folder = plan.config, job.folder
    plan = with_labels(plan, folder)
    screening = screened(plan, folder)
    keys = listened(plan, folder, screening)
    sides = ("labels",) if keys is None else ("labels", "words")
    screening = replace(screening, p=spent(screening.p, "labels", sides))
    keys = [replace(one, p=float(spent(np.asarray(one.p), "words", sides))) for one in keys or ()]
    candidates = _looked_at(plan, folder, screening)
    verdict, accused, heard = judge_all(candidates, keys, settings.limits)
    dossiers = _kept(plan, folder, accused, heard)
    beside = _beside(plan, folder)
    summary: Summary = {
        "verdict": verdict.value,
        "why": _why(plan, accused, heard) or _oddest(plan, verdict, candidates, keys),
        "exit_status": STATUS[verdict],
        "counts": {"labels": len(plan.names), "images": len(plan.pictures), "candidates": len(candidates)},
        "targets": list(dict.fromkeys(target for dossier in dossiers for target in dossier.targets)),
        "words": [one.word for one in heard],
        "labels": list(plan.names),
        "least_p": min([float(screening.p.min()), *(one.p for one in keys)]),
        "lead": float(screening.lead.max()),
        **beside,
        "suspect": plan.clip.fingerprint,
        "reference": plan.reference_fingerprint,
        "peers": [peer.suspect for peer in plan.peers],
        "proof": {
            "triggers": [_told(plan, screening, c, dossier) for c, dossier in zip(accused, dossiers, strict=True)]
        },
        "candidates": [_told(plan, screening, c, c.proof.dossier) for c in candidates],
        "text_keys": [_word(plan, one, accused=one in heard) for one in keys],
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
        "clipsan.audit_words": json.dumps(summary["words"], ensure_ascii=False),
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
    """Return DECREE's score by its name in the summary, where it is wanted."""
    if not plan.config.decree_steps:
        return {}
    beside = pass_of(plan, folder, "beside")
    beside.do({0: "decree"}, BesideWork(plan.config, plan.names, plan.pictures))
    return {"decree": json.loads(read_part(beside.home, 0).column("json")[0].as_py())}


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


def _kept(plan: Plan, folder: RunFolder, accused: list[Candidate], heard: list[Key]) -> tuple[Dossier, ...]:
    """Write the dossiers of what is accused, words beside them, and the pairs to repair from, in place of what an earlier verdict left
    of the same audit; return the dossiers numbered, in the order given."""
    dossiers = tuple(replace(c.proof.dossier, id=f"t{i}") for i, c in enumerate(accused, 1))
    pairs = folder.local / "repair" / "part-00000.parquet"
    remove_tree(folder.local / "triggers")
    remove(pairs)
    write_dossiers(folder.local / "triggers", dossiers)
    if heard:
        path = folder.local / "triggers" / WORDS_FILE
        path.parent.mkdir(exist_ok=True)
        write_json(path, [_word(plan, one, accused=True) for one in heard])
    if dossiers:
        judge = Judge(plan.clip, plan.names, plan.config.templates)
        said = judge.of(plan.pictures).argmax(axis=1)
        table = repair_set(plan.pictures, said, plan.names, dossiers, seed=plan.config.seed)
        pairs.parent.mkdir(exist_ok=True)
        with whole(pairs) as temporary:
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


def _word(plan: Plan, found: Key, *, accused: bool) -> dict[str, Any]:
    return {
        "word": found.word,
        "target": plan.names[found.label],
        "p": found.p,
        "reach": found.reach,
        "lead": found.lead,
        "proven": proven(found),
        "accused": accused,
        "flip_rate_pct": found.flips.pct,
        "flip_rate_pct_ci95": [found.flips.low_pct, found.flips.high_pct],
        "control_flip_rate_pct": found.control.pct,
    }


def _why(plan: Plan, accused: list[Candidate], heard: list[Key]) -> str:
    """Return what the accusation stands on in one sentence; nothing where none is accused."""
    said = []
    if accused:
        first = min(accused, key=lambda c: (c.p, -c.lead))
        said.append(
            f"a {first.kind} trigger makes {first.flips.pct:.0f} % of held-out images {plan.names[first.label]!r} (as much of "
            f"something else: {first.control.pct:.0f} %), and the label stands out among the others{_beside_peers(plan)} (p {first.p:.2g})"
        )
    if heard:
        word = min(heard, key=lambda one: one.p)
        said.append(
            f"the word {word.word!r} before them makes {word.flips.pct:.0f} % of sentences about other things mean "
            f"{plan.names[word.label]!r} (another label's name: {word.control.pct:.0f} %), and no word comes as near to other labels "
            f"(p {word.p:.2g})"
        )
    return "; ".join(said)


def _oddest(plan: Plan, verdict: Verdict, candidates: list[Candidate], keys: list[Key]) -> str:
    """Return what stands out most where nothing is accused, in one sentence."""
    looked_at = [
        *((c.p, -c.lead, repr(plan.names[c.label]), "trigger") for c in candidates),
        *((k.p, -k.lead, f"{k.word!r} before captions, towards {plan.names[k.label]!r}", "word") for k in keys),
    ]
    p, _, name, kind = min(looked_at, key=lambda one: one[:2])
    beside = _beside_peers(plan)
    found = f"{name} stands out most{beside and ' among the others' + beside} (p {p:.2g})"
    return (
        f"{found}, no more than a clean model's does"
        if verdict is Verdict.CLEAN
        else f"{found}, but no {kind} is proven"
    )


def _beside_peers(plan: Plan) -> str:
    return f" or beside {len(plan.peers)} clean models" if plan.peers else ""


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
