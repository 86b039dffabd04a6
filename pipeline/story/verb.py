"""`clipsan run`: the whole story as one command for a batch queue.

Scan -> quarantine and clean copy -> compact set -> repair -> evaluation before and after -> report -> registry. A step that
is finished is skipped, so the same command after a kill goes on where it was. Its exit status is for a scheduler: see STATUS.
"""

import sys
from collections.abc import Mapping, Sequence

from clipsan.stages.report.story import render

from ..core.run_folder import RunFolder
from ..core.verb import Job, Result, Summary, Verb
from ..tracking.record import data_input
from .ending import accused, judge, said
from .plan import Plan, make_plan, steps_of
from .report import build_report
from .settings import RunConfig
from .steps import RepairStep, ScanStep, Step, proven

SHOWN = ("clean_accuracy_pct", "asr_pct", "accuracy_under_trigger_pct", "retrieval_r1_pct", "rebound_asr_pct")
"""Figures of an evaluation that the last lines tell."""


def run(plan: Plan, job: Job) -> Result:
    """Do the steps, or what is left of them."""
    settings, folder = plan.config, job.folder
    done, idle = _do(steps_of(settings, job.tracking, job.versions))
    summary = _summary(settings, folder, done, idle)
    return Result(
        summary=summary,
        page=lambda told: render(build_report(settings, folder, told)),
        metrics={name: value for name, value in summary.items() if name not in ("steps", "triggers")},
        inputs=[data_input(settings.data, plan.units, "scan")],
        step_with_model=RepairStep.name,
    )


def _do(steps: Sequence[Step]) -> tuple[dict[str, Summary], dict[str, str]]:
    """Do the steps one after the other; return their summaries, and why the others had nothing to do."""
    done: dict[str, Summary] = {}
    idle: dict[str, str] = {}
    for step in steps:
        why = step.idle(done)
        if why is None:
            sys.stderr.write(f"run: {step.name} -> {step.folder}\n")
            done[step.name] = step.run()
        else:
            sys.stderr.write(f"run: no {step.name}, because {why}\n")
            idle[step.name] = why
    return done, idle


def _summary(settings: RunConfig, folder: RunFolder, done: Mapping[str, Summary], idle: Mapping[str, str]) -> Summary:
    found = done[ScanStep.name]
    repaired = done.get(RepairStep.name)
    ending = judge(settings, found, repaired)
    copies = {kind: folder.local / ScanStep.name / kind for kind in ("clean", "quarantine")}
    told = repaired or {}
    return {
        "outcome": ending.name,
        "why": ending.why,
        "exit_status": ending.exit_status,
        "counts": found["counts"],
        "targets": accused(found),
        "triggers": proven(found),
        "copies": {kind: str(path) for kind, path in copies.items() if path.is_dir()},
        "before": told.get("before"),
        "after": told.get("after"),
        "suspect": told.get("suspect"),
        "unseen": told.get("unseen"),
        "blind": told.get("blind"),
        "method": told.get("method"),
        "checkpoint": told.get("checkpoint"),
        "registered": told.get("registered"),
        "steps": {
            name: {
                "path": str(folder.local / name),
                "fingerprint": summary["fingerprint"],
                "seconds": summary["seconds"],
                "report": summary.get("report"),
                "said": said(name, summary),
            }
            for name, summary in done.items()
        },
        "skipped": dict(idle),
        "report": str(folder.report),
    }


def closing(summary: Summary) -> str:
    """Return the last lines on the screen."""
    steps = summary["steps"]
    lines = [f"{name:<12} {step['said']}" for name, step in steps.items()]
    lines += [f"{name:<12} skipped: {why}" for name, why in summary["skipped"].items()]
    lines += [f"{kind:<12} {path}" for kind, path in summary["copies"].items()]
    if summary["after"]:
        lines += [f"{'':<32}{'before':>10}{'after':>10}", *table(summary)]
    if summary["checkpoint"]:
        lines.append(
            f"model        {summary['checkpoint']}" + (f" ({summary['registered']})" if summary["registered"] else "")
        )
    lines += [
        f"evidence     {steps[ScanStep.name]['report']}",
        f"report       {summary['report']}",
        f"{summary['outcome']:<12} {summary['why']} ({summary['seconds']:.0f} s)",
    ]
    return "\n".join(lines) + "\n"


def table(summary: Summary) -> list[str]:
    """Return the figures before and after as lines for the screen."""
    before, after = summary["before"], summary["after"]
    return [
        f"{name.removesuffix('_pct').replace('_', ' '):<32}{before[name]:>8.1f} %{after[name]:>8.1f} %"
        for name in SHOWN
        if name in before and name in after
    ]


VERB = Verb(
    name="run",
    config=RunConfig,
    plan=make_plan,
    run=run,
    closing=closing,
    status=lambda summary: int(summary["exit_status"]),
    has_steps=True,
)
