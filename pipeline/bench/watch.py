"""The cells of `clipsan bench` as Ray tasks, and what is said of them while they run.

A task waits for workers of its own most of the time, so it takes no CPU itself: if tasks held CPUs, a few of them could take all
and wait for each other for ever. How many run at once is bounded by `cells` alone.
"""

import contextlib
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipsan.stages.report.text import duration

from ..core.cluster import start_ray
from ..core.config import ConfigError
from ..core.masking import what_stopped
from .cell import Cell
from .plan import Plan
from .table import cell_line

LOOK_EVERY_S = 2.0
"""How often the driver looks for finished steps."""


@dataclass(frozen=True, slots=True)
class CellEnd:
    """How a cell ended."""

    cell: str
    error: str | None = None
    """What stopped it, in one line."""


def run_cell(cell: Cell, log: Path, min_asr_pct: float, before: CellEnd | None) -> CellEnd:
    """Do what is left of a cell; never raises.

    Args:
        cell: what to do.
        log: file that takes what the verbs say, progress above all: they run in a worker process, which has no terminal.
        min_asr_pct: a model whose ASR is lower is not scanned.
        before: how the cell ended that trains this cell's model, where that is another one.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8", buffering=1) as file, contextlib.redirect_stderr(file):
        try:
            if before is not None and before.error is not None:
                raise ConfigError(f"its model is that of {before.cell}, which failed")
            for step in cell.steps:
                if step.name == "scan" and not cell.is_admitted(min_asr_pct):
                    break
                if not step.done:
                    sys.stderr.write(f"{step.name}\n")
                    step.run()
        except Exception as error:
            # Whatever it is, the other cells go on; the log has the rest of it.
            traceback.print_exc(file=file)
            return CellEnd(cell.name, what_stopped(error))
    return CellEnd(cell.name)


def run_cells(plan: Plan, pending: Sequence[Cell]) -> list[CellEnd]:
    """Run the cells, `cells` at a time, and say on the screen what becomes of them."""
    start_ray()
    import ray

    task = ray.remote(num_cpus=0, max_retries=1)(run_cell)
    waiting = list(pending)
    running: dict[Any, Cell] = {}
    refs: dict[str, Any] = {}
    ends: list[CellEnd] = []
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
            ends.append(_end(ref, running.pop(ref)))
            screen.cell(ends[-1])
    return ends


def _end(ref: Any, cell: Cell) -> CellEnd:
    import ray

    try:
        end: CellEnd = ray.get(ref)
    except ray.exceptions.RayError as error:
        return CellEnd(cell.name, what_stopped(error))
    return end


class _Screen:
    """Says on standard error which steps and cells are finished, and how long the rest may take."""

    def __init__(self, plan: Plan, pending: Sequence[Cell]) -> None:
        self._plan = plan
        self._cells = {cell.name: cell for cell in pending}
        self._open = {cell.name: cell.left(plan.config.min_asr_pct) for cell in pending}
        self._ended = len(plan.cells) - len(pending)

    def steps(self) -> None:
        """Say which steps were finished since the last look."""
        for name, steps in self._open.items():
            done = [step for step in steps if step.done]
            for step in done:
                steps.remove(step)
                self._say(f"{name} {step.name} done in {duration(self._cells[name].seconds()[step.name])}")

    def cell(self, end: CellEnd) -> None:
        """Say how a cell ended."""
        cell, minimum = self._cells[end.cell], self._plan.config.min_asr_pct
        self._ended += 1
        self._open.pop(cell.name)
        rest = self._plan.estimate([self._cells[name] for name in self._open])
        progress = f"{self._ended}/{len(self._plan.cells)} cells" + (f", about {duration(rest)} left" if rest else "")
        if end.error is not None:
            self._say(f"{cell.name} FAILED: {end.error} ({progress})")
            return
        self._say(f"{cell_line(cell, minimum)} ({progress})")

    def _say(self, words: str) -> None:
        sys.stderr.write(f"bench: {words}\n")
        sys.stderr.flush()
