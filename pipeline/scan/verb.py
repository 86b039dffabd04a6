"""`clipsan scan`: from pairs and a suspect model to verdicts, a report and a clean copy."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from clipsan.stages.detectors import Findings
from clipsan.stages.report.page import render
from clipsan.stages.verdicts import Cut, Judge, Reason, Verdict, place_cut

from ..core.cluster import ray_session
from ..core.commit import missing_parts, write_text
from ..core.config import ConfigError, as_tree, load
from ..core.parts import Parts
from ..core.pass_old import run_pass
from ..core.run_folder import RunFolder, open_run, part_rows, write_summary
from ..data.pixels import Pictures
from ..data.rewrite import rewrite
from ..proof.inquiry import Inquiry
from ..proof.prove import Proof, prove
from ..proof.repair_set import write_repair_set
from ..proof.views import Views
from ..tracking.record import data_input, metrics_of
from ..tracking.send import log_run
from . import work as scan_passes
from .output import accused_mask, column, count_pairs, detection_summary, manifest_uids, save_uid_lists, truth_mask
from .plan import Plan, ScanConfig, make_plan
from .report import build_report
from .statistics import embed_pairs, score_pairs

__all__ = ["Plan", "ScanConfig", "closing_line", "command", "make_plan", "run_scan"]

CONCEPTS_IN_SUMMARY = 20


def command(file: str | None, overrides: list[str], dry_run: bool) -> int:
    """Run the verb from the command line."""
    settings = load(ScanConfig, file, overrides, verb="scan")
    plan = make_plan(settings)
    if dry_run:
        sys.stdout.write(plan.describe())
        return 0
    summary = run_scan(plan)
    sys.stdout.write(closing_line(summary) + "\n")
    return 0


def closing_line(summary: dict[str, Any]) -> str:
    """Return the last line of a scan: what happened, and what to look at."""
    counts = summary["counts"]
    named = ", ".join(summary["targets"]) or "none"
    proven = ", ".join(
        f"{t['id']} ({t['kind']}, flips {t['flip_rate_pct']:.0f} % to {t['targets'][0]})"
        for t in summary.get("proof", {}).get("triggers", [])
    )
    return (
        f"scan: {counts['pairs_in']:,} pairs, {counts['verdicts'][Verdict.POISONED.value]:,} poisoned, "
        f"{counts['flagged']:,} flagged, {counts['rejected']:,} rejected in {summary['seconds']:.0f} s; "
        f"target concept: {named}"
        + (f"; proven trigger: {proven}" if proven else "")
        + f"; look at {summary['report']}"
    )


def run_scan(plan: Plan) -> dict[str, Any]:
    """Run the scan, or what is left of it, and return its summary."""
    started = time.monotonic()
    settings = plan.config
    folder = _open(plan)
    parts = [unit.index for unit in plan.units]
    quarantine = frozenset(reason.value for reason in (*settings.quarantine, Reason.PROVEN_TRIGGER))
    with ray_session(settings.cluster):
        embeddings = embed_pairs(plan, folder)
        rows = part_rows(embeddings)
        if not sum(rows.values()):
            raise ConfigError(f"data: none of the pairs could be read; {folder.rejected} says why")
        findings = score_pairs(plan, folder, embeddings, rows)
        cut = _cut(plan, folder, parts, findings)
        inquiry = _inquiry(plan, folder, Parts(embeddings, rows), findings, cut)
        proof = prove(inquiry) if inquiry is not None else Proof()
        _judge(plan, folder, embeddings, parts, findings, cut, proof)
        repair_pairs = write_repair_set(inquiry, proof) if inquiry is not None else 0
        for kind in settings.write:
            rewrite(
                settings.data,
                plan.units,
                kind,
                quarantine=quarantine,
                verdicts=folder.verdicts,
                out=folder.root / kind,
                done=folder.work / f"write-{kind}",
                mark=plan.verdict_mark,
                cluster=settings.cluster,
            )
        save_uid_lists(folder, parts, quarantine)
        counts = count_pairs(folder, parts)
        truth = truth_mask(folder.scores, parts, manifest_uids(settings.manifest)) if settings.manifest else None
        if truth is not None and not truth.any():
            sys.stderr.write(
                f"manifest={settings.manifest}: it names none of the scanned pairs, so nothing is measured\n"
            )
        measurable = truth is not None and truth.any() and not truth.all()
        detection = detection_summary(folder.scores, parts, truth) if truth is not None and measurable else None
        page = build_report(
            source=settings.data,
            units=plan.units,
            folder=folder,
            embeddings=embeddings,
            counts=counts,
            findings=findings,
            cut=cut,
            detection=detection,
            truth=truth,
            proof=proof,
            settings=settings,
            mark=plan.verdict_mark,
        )
    seconds = round(time.monotonic() - started, 1)
    write_text(folder.report, render(dataclasses.replace(page, seconds=seconds)))
    summary = {
        "verb": "scan",
        "fingerprint": plan.verdict_mark,
        "seconds": seconds,
        "counts": counts.tree(),
        "targets": list(findings.targets),
        "cut": {"value": cut.value, "meaning": cut.meaning},
        "concepts": findings.concepts[:CONCEPTS_IN_SUMMARY],
        "detectors": findings.detectors,
        **({"proof": proof.figures() | {"repair_pairs": repair_pairs}} if inquiry is not None else {}),
        "report": str(folder.report),
    }
    if detection is not None:
        summary["detection"] = detection
    if truth is not None:
        summary["poisoned"] = int(truth.sum())
        summary["poisoned_proven"] = int(
            (truth & accused_mask(folder.verdicts, parts, frozenset({Reason.PROVEN_TRIGGER.value}))).sum()
        )
        summary["poisoned_flagged"] = int((truth & (column(folder.scores, parts, "ensemble") >= cut.value)).sum())
    write_summary(folder, summary)
    files = [folder.report, folder.run_yaml, folder.summary]
    inputs = [data_input(settings.data, plan.units, "scan")]
    if settings.trusted is not None:
        inputs.append(data_input(settings.trusted, plan.trusted_units, "trusted"))
    log_run(
        settings.tracking,
        verb="scan",
        root=folder.root,
        tree=as_tree(settings),
        metrics=metrics_of(summary),
        files=files,
        tags={"clipsan.suspect": plan.model_fingerprint},
        inputs=inputs,
    )
    return summary


def _open(plan: Plan) -> RunFolder:
    settings = plan.config
    return open_run(settings.out, verb="scan", tree=as_tree(settings), fingerprint=plan.mark)


def _cut(plan: Plan, folder: RunFolder, parts: list[int], findings: Findings) -> Cut:
    ensemble = column(folder.scores, parts, "ensemble")
    return place_cut(ensemble, plan.config.decision, findings.threshold, findings.calibration)


def _inquiry(plan: Plan, folder: RunFolder, embeddings: Parts, findings: Findings, cut: Cut) -> Inquiry | None:
    """Return what the proof works on; None without an oracle."""
    settings = plan.config
    if settings.oracle is None or plan.proof_mark is None:
        return None
    return Inquiry(
        pictures=Pictures(settings.data, settings.embed.max_pixels),
        units=plan.units,
        model=settings.model,
        layers=plan.layers,
        oracle=settings.oracle,
        settings=settings.proof,
        seed=settings.seed,
        cluster=settings.cluster,
        folder=folder,
        embeddings=embeddings,
        findings=findings,
        cut=cut.value,
        fingerprint=plan.proof_mark,
    )


def _judge(
    plan: Plan, folder: RunFolder, embeddings: Path, parts: list[int], findings: Findings, cut: Cut, proof: Proof
) -> None:
    """Write the verdicts."""
    judge = Judge(cut.value, frozenset(findings.targets), findings.mixture_speaks, proof.triggers)
    todo = missing_parts(folder.verdicts, parts, plan.verdict_mark)
    args = (judge, Views.of(proof), embeddings, folder.scores, folder.verdicts, plan.verdict_mark)
    for _ in run_pass("verdict", todo, scan_passes.JudgeWork, args, cluster=plan.config.cluster, total=len(parts)):
        pass
