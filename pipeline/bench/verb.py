"""`clipsan bench`: attacks x detectors in one table; each cell poisons, trains, measures and scans, and can be resumed.

Cells run as Ray tasks. A task waits for workers of its own most of the time, so it takes no CPU itself: if tasks held CPUs, a
few of them could take all and wait for each other for ever. How many run at once is bounded by `cells` alone.
"""

import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipsan.stages.report.bench import render
from clipsan.stages.report.text import duration

from ..core.cluster import ClusterConfig, ray_session, start_ray
from ..core.commit import write_text
from ..core.config import as_tree, load
from ..core.run_folder import RunFolder, open_run, write_summary
from ..tracking.send import log_run
from . import table as bench_table
from .cell import Outcome, left, run_cell, seconds
from .plan import BenchConfig, Cell, Plan, make_plan
from .report import bench_report

__all__ = ["BenchConfig", "command", "make_plan", "run_bench"]

LOOK_EVERY_S = 2.0
"""How often the driver looks for finished steps."""


def command(file: str | None, overrides: list[str], dry_run: bool) -> int:
    """Run the verb from the command line; 1 when a cell failed."""
    plan = make_plan(load(BenchConfig, file, overrides, verb="bench"))
    if dry_run:
        sys.stdout.write(describe(plan))
        return 0
    summary = run_plan(plan)
    sys.stdout.write(bench_table.screen(summary))
    return 1 if summary["counts"]["failed"] else 0


def describe(plan: Plan) -> str:
    """Return the cells, their steps and what is done of them as text."""
    settings = plan.config
    lines = [
        f"data       {settings.data.path} ({settings.data.kind})",
        f"cells      {len(plan.cells)}, {settings.cells} at a time; refused under {settings.min_asr_pct:g} % ASR",
        f"out        {settings.out}",
    ]
    for cell in plan.cells:
        todo = left(cell, settings.min_asr_pct)
        what = "clean" if cell.attack is None else _meaning(cell)
        steps = ", ".join(f"{step.name}{'' if step in todo else ' (done)'}" for step in cell.steps)
        model = "" if cell.model_of == cell.name else f"; model of {cell.model_of}"
        lines.append(f"{cell.name:<24} {what}: {steps}{model}")
    known = estimate(plan.cells, plan)
    steps_left = sum(len(left(cell, settings.min_asr_pct)) for cell in plan.cells)
    lines.append(f"to do      {steps_left} steps" + (f", about {duration(known)}" if known else ""))
    return "\n".join(lines) + "\n"


def _meaning(cell: Cell) -> str:
    attack = cell.attack
    assert attack is not None
    share = f"{100 * attack.rate:g} %" if attack.rate is not None else f"{attack.count:,} pairs"
    return f"{attack.trigger.kind} on {share}" + ("" if cell.control else f" towards {' and '.join(attack.targets)}")


def run_bench(settings: BenchConfig) -> dict[str, Any]:
    """Run the matrix, or what is left of it, and return its summary; table.parquet and table.json have the rows."""
    return run_plan(make_plan(settings))


def run_plan(plan: Plan) -> dict[str, Any]:
    """Run a checked plan; see run_bench."""
    started = time.monotonic()
    settings = plan.config
    tree = as_tree(settings)
    folder = open_run(settings.out, verb="bench", tree=tree, fingerprint=plan.mark)
    pending = [cell for cell in plan.cells if left(cell, settings.min_asr_pct)]
    outcomes: list[Outcome] = []
    if pending:
        if settings.cluster.address is None:
            # Ray warns on the terminal of every dozen processes more than it expects; a cell has a handful by design.
            os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "64")
        with ray_session(_whole(settings)):
            outcomes = _run_cells(plan, pending)
    errors = {outcome.cell: outcome.error for outcome in outcomes if outcome.error is not None}
    rows = bench_table.rows(plan, errors)
    bench_table.write(folder.root, rows)
    summary = bench_table.summary(plan, rows, errors)
    summary |= {"seconds": round(time.monotonic() - started, 1), "report": str(folder.report)}
    write_text(folder.report, render(bench_report(plan, rows, summary)))
    write_summary(folder, summary)
    _log(plan, folder, tree, rows, summary)
    return summary


def _whole(settings: BenchConfig) -> ClusterConfig:
    """Return what all cells at a time need; each keeps one CPU free for the tasks that Ray Data starts beside its workers."""
    cluster = settings.cluster
    workers = cluster.workers or max(1, cluster.worker_count() // settings.cells)
    threads = cluster.threads_per_worker
    return replace(
        cluster,
        workers=-(-settings.cells * (workers * threads + 1) // threads),
        object_store_mb=settings.cells * cluster.object_store_mb,
    )


def _run_cells(plan: Plan, pending: Sequence[Cell]) -> list[Outcome]:
    """Run the cells, `cells` at a time, and say on the screen what becomes of them."""
    start_ray()
    import ray

    task = ray.remote(num_cpus=0, max_retries=1)(run_cell)
    waiting = list(pending)
    running: dict[Any, Cell] = {}
    refs: dict[str, Any] = {}
    outcomes: list[Outcome] = []
    screen = _Screen(plan, pending)
    while waiting or running:
        while waiting and len(running) < plan.config.cells:
            cell = waiting.pop(0)
            # Ray itself holds a cell back whose model another one is still training.
            model = refs.get(cell.model_of) if cell.model_of != cell.name else None
            log = plan.root / "cells" / cell.name / "log.txt"
            refs[cell.name] = task.remote(cell, log, plan.config.min_asr_pct, model)
            running[refs[cell.name]] = cell
        finished, _ = ray.wait(list(running), timeout=LOOK_EVERY_S)
        screen.steps()
        for ref in finished:
            outcomes.append(_outcome(ref, running.pop(ref)))
            screen.cell(outcomes[-1])
    return outcomes


def _outcome(ref: Any, cell: Cell) -> Outcome:
    import ray

    try:
        outcome: Outcome = ray.get(ref)
    except ray.exceptions.RayError as error:
        return Outcome(cell.name, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
    return outcome


class _Screen:
    """Says on standard error which steps and cells are finished, and how long the rest may take."""

    def __init__(self, plan: Plan, pending: Sequence[Cell]) -> None:
        self._plan = plan
        self._cells = {cell.name: cell for cell in pending}
        self._open = {cell.name: left(cell, plan.config.min_asr_pct) for cell in pending}
        self._ended = len(plan.cells) - len(pending)

    def steps(self) -> None:
        """Say which steps were finished since the last look."""
        for name, steps in self._open.items():
            done = [step for step in steps if step.done]
            for step in done:
                steps.remove(step)
                self._say(f"{name} {step.name} done in {duration(seconds(self._cells[name])[step.name])}")

    def cell(self, outcome: Outcome) -> None:
        """Say how a cell ended."""
        cell, minimum = self._cells[outcome.cell], self._plan.config.min_asr_pct
        self._ended += 1
        self._open.pop(cell.name)
        rest = estimate([self._cells[name] for name in self._open], self._plan)
        progress = f"{self._ended}/{len(self._plan.cells)} cells" + (f", about {duration(rest)} left" if rest else "")
        if outcome.error is not None:
            self._say(f"{cell.name} FAILED: {outcome.error} ({progress})")
            return
        self._say(f"{bench_table.cell_line(cell, minimum)} ({progress})")

    def _say(self, words: str) -> None:
        sys.stderr.write(f"bench: {words}\n")
        sys.stderr.flush()


def estimate(cells: Sequence[Cell], plan: Plan) -> float | None:
    """Return the seconds that the missing steps of some cells may take, from the finished steps of all; None if unknown."""
    spent: dict[str, list[float]] = defaultdict(list)
    for cell in plan.cells:
        for name, took in seconds(cell).items():
            spent[name.partition("-")[0]].append(took)
    missing = [step.name.partition("-")[0] for cell in cells for step in left(cell, plan.config.min_asr_pct)]
    if not missing or any(name not in spent for name in missing):
        return None
    return sum(sum(spent[name]) / len(spent[name]) for name in missing) / plan.config.cells


def _log(plan: Plan, folder: RunFolder, tree: Any, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Log the bench, and each cell as a run below it."""
    files = [folder.report, folder.run_yaml, folder.summary, *(folder.root / name for name in bench_table.FILES)]
    tracking = plan.config.tracking
    metrics = {f"cells.{state}": float(number) for state, number in summary["counts"].items()}
    above = log_run(tracking, verb="bench", root=folder.root, tree=tree, metrics=metrics, files=files)
    if above is None:
        return
    for cell, told in zip(plan.cells, summary["cells"], strict=True):
        own = [row for row in rows if (row["attack"], row["seed"]) == (cell.attack_name, cell.seed)]
        log_run(
            tracking,
            verb="bench-cell",
            root=plan.root / "cells" / cell.name,
            tree={"attack": as_tree(cell.attack), "seed": cell.seed, "state": told["state"]},
            metrics=bench_table.metrics(own),
            files=[Path(told["scan_report"])] if told["scan_report"] else [],
            parent=above,
        )
