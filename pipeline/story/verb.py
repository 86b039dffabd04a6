"""`clipsan run`: the whole story as one command for a batch queue.

Scan -> quarantine and clean copy -> compact set -> repair -> evaluation before and after -> report -> registry. A step that
is finished is skipped, so the same command after a kill goes on where it was. Its exit status is for a scheduler: see STATUS.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipsan.stages.model.clip import load_clip
from clipsan.stages.report.story import render
from clipsan.stages.sources import identity, list_units

from ..core.cluster import ray_session
from ..core.commit import fingerprint, write_text
from ..core.config import as_tree, load
from ..core.run_folder import RunFolder, open_run, write_summary
from ..tracking.record import TrackingConfig, data_input, metrics_of
from ..tracking.send import below, log_folder, log_run, registered
from .report import build_report
from .settings import RunConfig
from .steps import STEPS, RepairStep, ScanStep, Step, proven

__all__ = ["STATUS", "RunConfig", "command", "run_story"]

STATUS = {"clean": 0, "repaired": 0, "not repaired": 3}
"""Outcome -> exit status. clean: the scan accuses nothing. repaired: the new model meets max_asr_pct and max_loss_points.
not repaired: a backdoor was found, and a person must look. 1, 2 and 130 are those of every verb."""

SHOWN = ("clean_accuracy_pct", "asr_pct", "accuracy_under_trigger_pct", "retrieval_r1_pct", "rebound_asr_pct")
"""Figures of an evaluation that the last lines tell."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the story ended."""

    name: str
    """A key of STATUS."""
    why: str
    """In one sentence."""


def command(file: str | None, overrides: list[str], dry_run: bool) -> int:
    """Run the verb from the command line; return an exit status of STATUS."""
    settings = load(RunConfig, file, overrides, verb="run")
    if dry_run:
        sys.stdout.write(describe(settings))
        return 0
    summary = run_story(settings)
    sys.stdout.write(closing(summary))
    return STATUS[summary["outcome"]]


def describe(settings: RunConfig) -> str:
    """Return the plan of every step as text, after the checks that a start would make."""
    steps = _steps(settings, Path(settings.out).expanduser().resolve(), settings.tracking)
    for step in steps:
        step.check()
    lines = []
    for step in steps:
        lines += [f"{step.name}", *(f"  {line}" for line in step.describe().splitlines())]
    limits = [
        f"{name} at most {value:g} {unit}"
        for name, value, unit in (
            ("ASR", settings.max_asr_pct, "%"),
            ("loss of accuracy", settings.max_loss_points, "points"),
        )
        if value is not None
    ]
    demand = " and ".join(limits) or "nothing"
    when = "always" if settings.force else "where the scan names a concept or proves a trigger"
    lines += ["story", f"  repair     {when}", f"  asked for  {demand}", f"  out        {settings.out}"]
    return "\n".join(lines) + "\n"


def run_story(settings: RunConfig) -> dict[str, Any]:
    """Run the steps, or what is left of them; return the summary of the whole."""
    started = time.monotonic()
    root = Path(settings.out).expanduser().resolve()
    for step in _steps(settings, root, settings.tracking):
        step.check()
    tree = as_tree(settings)
    units = list_units(settings.data)
    mark = fingerprint({**identity(settings.data, units), "model": load_clip(settings.model).fingerprint})
    folder = open_run(settings.out, verb="run", tree=tree, fingerprint=mark)
    with below(settings.tracking, verb="run", root=folder.root, tree=tree) as tracking:
        done, idle = _do(_steps(settings, folder.root, tracking), settings)
    summary = _summary(settings, folder, mark, done, idle)
    summary["seconds"] = round(time.monotonic() - started, 1)
    write_text(folder.report, render(build_report(settings, folder, summary)))
    write_summary(folder, summary)
    _log(settings, folder, tree, summary)
    return summary


def _do(steps: list[Step], settings: RunConfig) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Do the steps one after the other; return their summaries, and why the others had nothing to do."""
    done: dict[str, dict[str, Any]] = {}
    idle: dict[str, str] = {}
    with ray_session(settings.cluster):
        for step in steps:
            why = step.idle(done)
            if why is None:
                sys.stderr.write(f"run: {step.name} -> {step.folder}\n")
                done[step.name] = step.run()
            else:
                sys.stderr.write(f"run: no {step.name}, because {why}\n")
                idle[step.name] = why
    return done, idle


def _log(settings: RunConfig, folder: RunFolder, tree: Any, summary: dict[str, Any]) -> None:
    """Log the whole, and what of its steps could not be logged when they ended."""
    files = [folder.report, folder.run_yaml, folder.summary]
    inputs = [data_input(settings.data, list_units(settings.data), "scan")]
    metrics = metrics_of({name: value for name, value in summary.items() if name not in ("steps", "triggers")})
    logged = log_run(
        settings.tracking, verb="run", root=folder.root, tree=tree, metrics=metrics, files=files, inputs=inputs
    )
    if logged is None:
        return
    where = dict(log_folder(settings.tracking, folder.root))
    version = registered(where.get(folder.root / RepairStep.name))
    if version is not None and version != summary["registered"]:
        summary["registered"] = version
        write_summary(folder, summary)


def closing(summary: Mapping[str, Any]) -> str:
    """Return the last lines on the screen."""
    steps = summary["steps"]
    lines = [f"{name:<12} {step['said']}" for name, step in steps.items()]
    lines += [f"{name:<12} skipped: {why}" for name, why in summary["skipped"].items()]
    lines += [f"{kind:<12} {path}" for kind, path in summary["copies"].items()]
    if summary["after"]:
        lines += [f"{'':<32}{'before':>10}{'after':>10}", *table(summary)]
    if summary["checkpoint"]:
        lines.append(f"model        {summary['checkpoint']}" + _version(summary))
    lines += [
        f"evidence     {steps[ScanStep.name]['report']}",
        f"report       {summary['report']}",
        f"{summary['outcome']:<12} {summary['why']} ({summary['seconds']:.0f} s)",
    ]
    return "\n".join(lines) + "\n"


def table(summary: Mapping[str, Any]) -> list[str]:
    """Return the figures before and after as lines for the screen."""
    before, after = summary["before"], summary["after"]
    return [
        f"{name.removesuffix('_pct').replace('_', ' '):<32}{before[name]:>8.1f} %{after[name]:>8.1f} %"
        for name in SHOWN
        if name in before and name in after
    ]


def _version(summary: Mapping[str, Any]) -> str:
    return f" ({summary['registered']})" if summary["registered"] else ""


def _steps(settings: RunConfig, root: Path, tracking: TrackingConfig) -> list[Step]:
    return [step(settings, root, tracking) for step in STEPS]


def _summary(
    settings: RunConfig,
    folder: RunFolder,
    mark: str,
    done: Mapping[str, dict[str, Any]],
    idle: Mapping[str, str],
) -> dict[str, Any]:
    found = done[ScanStep.name]
    repaired = done.get(RepairStep.name)
    outcome = judge(settings, found, repaired)
    copies = {kind: folder.root / ScanStep.name / kind for kind in ("clean", "quarantine")}
    told = repaired or {}
    return {
        "verb": "run",
        "fingerprint": mark,
        "outcome": outcome.name,
        "why": outcome.why,
        "exit_status": STATUS[outcome.name],
        "counts": found["counts"],
        "targets": accused(found),
        "triggers": proven(found),
        "copies": {kind: str(path) for kind, path in copies.items() if path.is_dir()},
        "before": told.get("before"),
        "after": told.get("after"),
        "suspect": told.get("suspect"),
        "method": told.get("method"),
        "checkpoint": told.get("checkpoint"),
        "registered": told.get("registered"),
        "steps": {
            name: {
                "path": str(folder.root / name),
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


def said(name: str, summary: Mapping[str, Any]) -> str:
    """Return what came of a step, in a few words."""
    if name == ScanStep.name:
        counts = summary["counts"]
        return (
            f"{counts['verdicts']['poisoned']:,} of {counts['pairs_in']:,} pairs poisoned, {counts['flagged']:,} flagged; "
            f"named {', '.join(summary['targets']) or 'no concept'}; {len(proven(summary))} triggers proven"
        )
    return f"{summary['method']}, {summary['steps']:,} steps on {summary['counts']['used']:,} pairs"


def accused(scan: Mapping[str, Any]) -> list[str]:
    """Return the concepts that a scan names, and those that proven triggers aim at."""
    aims = [target for trigger in proven(scan) for target in trigger["targets"]]
    return list(dict.fromkeys([*scan["targets"], *aims]))


def judge(settings: RunConfig, scan: Mapping[str, Any], repaired: Mapping[str, Any] | None) -> Outcome:
    """Return what a scheduler is told.

    Args:
        settings: with the demands.
        scan: summary of the scan.
        repaired: summary of the repair; None where there was none.
    """
    names = ", ".join(accused(scan))
    if not names:
        forced = "" if repaired is None else "; it was repaired because force is set"
        return Outcome("clean", f"the scan names no concept and proves no trigger{forced}")
    if repaired is None:
        return Outcome("not repaired", f"a backdoor towards {names} was found")
    before, after = repaired["before"] or {}, repaired["after"] or {}
    if settings.max_asr_pct is not None:
        asr = after.get("asr_pct")
        if asr is None:
            return Outcome(
                "not repaired",
                f"a backdoor towards {names} was found and a repair made, but its ASR was not measured: give evaluate, with an "
                "attack where no trigger is proven (max_asr_pct: null asks for no figure)",
            )
        if asr > settings.max_asr_pct:
            return Outcome(
                "not repaired",
                f"the repaired model has an ASR of {asr:.1f} %, above the {settings.max_asr_pct:g} % asked for",
            )
    if settings.max_loss_points is not None and after:
        lost = before["clean_accuracy_pct"] - after["clean_accuracy_pct"]
        if lost > settings.max_loss_points:
            return Outcome(
                "not repaired",
                f"the repair cost {lost:.1f} points of clean accuracy, above the {settings.max_loss_points:g} allowed",
            )
    measured = f", ASR {before['asr_pct']:.1f} % -> {after['asr_pct']:.1f} %" if "asr_pct" in after else ""
    return Outcome("repaired", f"a backdoor towards {names} was found and repaired{measured}")
