"""`clipsan scan`: from pairs and a suspect model to verdicts, a report and a clean copy."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from clipsan.stages.detectors.trigger_words import in_summary
from clipsan.stages.report.page import render
from clipsan.stages.verdicts import Verdict, place_cut

from ..core.verb import Job, Result, Summary, Verb
from ..proof.prove import Proof, prove
from ..proof.repair_set import write_repair_set
from ..tracking.record import DataInput, data_input
from . import losses
from .inputs import difference
from .output import Counts, Measured, count_pairs, save_uid_lists
from .passes import Judgement, Scan, embed_pairs, inquiry_of, judge_pairs, score_pairs, write_copy
from .plan import Plan, ScanConfig, make_plan
from .report import build_report, saturation_warning
from .sizing import forecast

CONCEPTS_IN_SUMMARY = 20


def run(plan: Plan, job: Job) -> Result:
    """Run the scan, or what is left of it."""
    settings = plan.config
    scan = embed_pairs(plan, job.folder)
    findings = score_pairs(scan)
    cut = place_cut(scan.scores.column("ensemble"), settings.decision, findings.threshold, findings.calibration)
    inquiry = inquiry_of(scan, findings, cut)
    judgement = Judgement(findings, cut, prove(inquiry) if inquiry is not None else Proof())
    judge_pairs(scan, judgement)
    repair_pairs = write_repair_set(inquiry, judgement.proof) if inquiry is not None else 0
    for kind in settings.write:
        write_copy(scan, kind)
    save_uid_lists(scan)
    counts = count_pairs(scan)
    measured = Measured.of(scan.scores, settings.manifest) if settings.manifest is not None else None
    page = build_report(scan, judgement, counts, measured)
    return Result(
        summary=_summary(scan, judgement, counts, measured, repair_pairs),
        page=lambda summary: render(dataclasses.replace(page, seconds=summary["seconds"])),
        tags={"clipsan.suspect": plan.model_fingerprint},
        inputs=_inputs(plan),
    )


def _summary(scan: Scan, judgement: Judgement, counts: Counts, measured: Measured | None, repair_pairs: int) -> Summary:
    findings, cut = judgement.findings, judgement.cut
    proven = {"proof": judgement.proof.figures() | {"repair_pairs": repair_pairs}}
    return {
        "fingerprint": scan.plan.verdict_fingerprint,
        "counts": counts.tree(),
        **counts.losses.tree(scan.plan.config.max_lost_shards_pct),
        **({"saturated": findings.saturated} if findings.saturated else {}),
        "targets": list(judgement.targets),
        "cut": {"value": cut.value, "meaning": cut.meaning},
        **({"trigger_words": in_summary(findings.trigger_words)} if findings.targets else {}),
        "concepts": findings.concepts[:CONCEPTS_IN_SUMMARY],
        "detectors": findings.detectors,
        **(proven if scan.plan.config.oracle is not None else {}),
        "report": str(scan.folder.report),
        **(measured.figures(scan, cut.value) if measured is not None else {}),
    }


def _inputs(plan: Plan) -> list[DataInput]:
    named = {"scan": plan.pairs, "trusted": plan.trusted}
    return [data_input(data.source, data.units, name) for name, data in named.items() if data is not None]


def closing(summary: Summary) -> str:
    """Return the last line of a scan: what happened, and what to look at."""
    counts = summary["counts"]
    words = summary.get("trigger_words", {"concepts": {}})["concepts"]
    named = ", ".join(_with_words(target, words.get(target, ())) for target in summary["targets"]) or "none"
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
        + _saturation(summary.get("saturated", {}), counts)
        + losses.closing(summary)
    )


def _with_words(target: str, words: Sequence[Mapping[str, Any]]) -> str:
    """Return a named concept with its trigger words."""
    said = ", ".join(f"“{one['word']}”" for one in words)
    return f"{target} with the word{'s' if len(words) > 1 else ''} {said}" if said else target


def _saturation(saturated: dict[str, int], counts: dict[str, Any]) -> str:
    """Return what the closing line says of features that the cache could not hold."""
    if not saturated:
        return ""
    return f"; {saturation_warning(saturated, sum(counts['verdicts'].values()))}"


VERB = Verb(
    name="scan",
    config=ScanConfig,
    plan=make_plan,
    run=run,
    closing=closing,
    status=losses.status,
    forecast=forecast,
    changed=lambda plan, before: difference(before, plan.pairs.units),
    on_stores=True,
)
