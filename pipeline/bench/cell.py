"""One cell of `clipsan bench`, run as a Ray task: the verbs one after the other, each with its own run folder."""

import contextlib
import json
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.commit import write_text
from ..core.config import ConfigError
from ..core.run_folder import read_summary
from ..evaluate import verb as evaluate
from ..evaluate.settings import EvaluateConfig
from ..poison import verb as poison
from ..poison.plan import PoisonConfig
from ..scan import verb as scan
from ..scan.plan import ScanConfig
from ..train import verb as train
from .plan import Cell, Step

ERROR_LENGTH = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a cell ended."""

    cell: str
    error: str | None = None
    """What stopped it, in one line."""


def run_cell(cell: Cell, log: Path, min_asr_pct: float, before: Outcome | None) -> Outcome:
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
                if step.name == "scan" and not is_admitted(cell, min_asr_pct):
                    break
                _run(step)
        except Exception as error:
            # Whatever it is, the other cells go on; the log has the rest of it.
            traceback.print_exc(file=file)
            return Outcome(cell.name, f"{type(error).__name__}: {' '.join(str(error).split())[:ERROR_LENGTH]}")
    return Outcome(cell.name)


def is_admitted(cell: Cell, min_asr_pct: float) -> bool:
    """Tell whether the cell's model is worth a scan: any control's, and that of an attack that works."""
    if cell.control:
        return True
    asr = asr_pct(cell)
    return asr is not None and asr >= min_asr_pct


def asr_pct(cell: Cell) -> float | None:
    """Return the measured ASR, None before it is measured or without an attack."""
    step = cell.step("evaluate")
    if step is None or not step.done:
        return None
    asr = read_summary(step.folder)["evaluation"].get("asr_pct")
    return None if asr is None else float(asr)


def left(cell: Cell, min_asr_pct: float) -> list[Step]:
    """Return the steps that are still to do; the scan of a model that is known to be refused is not."""
    evaluated = cell.step("evaluate")
    refused = evaluated is not None and evaluated.done and not is_admitted(cell, min_asr_pct)
    return [step for step in cell.steps if not step.done and not (refused and step.name == "scan")]


def _run(step: Step) -> None:
    if step.done:
        return
    sys.stderr.write(f"{step.name}\n")
    write_text(step.mark_file, step.mark)
    settings: Any = step.settings
    match settings:
        case PoisonConfig():
            poison.VERB.start(settings)
        case train.TrainConfig():
            train.VERB.start(settings)
        case EvaluateConfig():
            evaluate.VERB.start(settings)
        case ScanConfig():
            scan.VERB.start(settings)


def seconds(cell: Cell) -> dict[str, float]:
    """Return step -> seconds of the finished steps, each as its last run took."""
    summaries = {step.name: step.folder / "summary.json" for step in cell.steps if step.done}
    return {name: float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) for name, path in summaries.items()}
