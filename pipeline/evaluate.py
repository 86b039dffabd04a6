"""`clipsan evaluate`: zero-shot accuracy of a model, and under an attack its ASR and accuracy under trigger."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.cluster import ray_session
from pipeline.commit import fingerprint, missing_parts, read_parts, write_text
from pipeline.config import ConfigError, as_tree, load
from pipeline.evaluate_settings import EvaluateConfig, EvaluationAttack
from pipeline.evaluate_work import EvaluateWork, predictions
from pipeline.passes import run_pass
from pipeline.run_folder import RunFolder, open_run, part_rows, write_summary
from pipeline.tracking import log_run, metrics_of
from pipeline.train_data import reject_reasons
from stages.clip_model import Clip, load_clip
from stages.evaluation.attack_success import Aim, attack_figures, clean_figures
from stages.evaluation.figures import Figure, as_json, as_summary, as_table, check_units
from stages.evaluation.zero_shot import class_embeddings
from stages.samples import Unit
from stages.sources import identity, list_units
from stages.triggers import build_trigger

__all__ = ["EvaluateConfig", "EvaluationAttack", "Plan", "command", "make_plan", "run_evaluate", "run_plan"]

EVALUATE_VERSION = 2
"""Raised when the code comes to predict something else from the same settings, so that old parts are refused."""
FIGURES_TABLE = "figures.parquet"
FIGURES_RECORDS = "figures.json"
"""The tidy table of all figures, twice; a row is a stages.evaluation.figures.Figure."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An evaluation, checked before any worker starts."""

    config: EvaluateConfig
    units: list[Unit]
    names: list[str]
    clip: Clip
    aim: Aim | None
    mark: str

    def describe(self) -> str:
        """Return the plan as text for --dry-run."""
        c = self.config
        attack = "none" if c.attack is None else f"{', '.join(c.attack.names)} ({c.attack.convention})"
        lines = [
            f"data       {len(self.units)} units of {len({u.shard for u in self.units})} shards ({c.data.kind})",
            f"model      {self.clip.fingerprint[:12]}",
            f"classes    {len(self.names)}, {len(c.templates)} templates",
            f"attack     {attack}",
            f"workers    {c.cluster.worker_count()} x {c.cluster.threads_per_worker} threads",
            f"out        {c.out}  ({self.mark[:12]})",
        ]
        return "\n".join(lines) + "\n"


def command(file: str | None, overrides: list[str], dry_run: bool) -> int:
    """Run the verb from the command line."""
    plan = make_plan(load(EvaluateConfig, file, overrides, verb="evaluate"))
    if dry_run:
        sys.stdout.write(plan.describe())
        return 0
    summary = run_plan(plan)
    figures = summary["evaluation"]
    shown = [f"{name} {value:.2f}" for name, value in figures.items() if name.endswith("_pct")]
    sys.stdout.write(f"evaluate: {figures['images']:,} images, {', '.join(shown)}; look at {summary['path']}\n")
    return 0


def read_classes(classes: list[str] | str) -> list[str]:
    """Return the class names by index.

    Raises:
        ConfigError: the file is missing or does not hold names for the indices 0, 1, 2, ...
    """
    stored: Any = classes
    if isinstance(classes, str):
        try:
            stored = yaml.safe_load(Path(classes).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"classes={classes}: not a readable YAML file: {' '.join(str(error).split())}") from None
    if isinstance(stored, dict) and sorted(stored, key=str) == sorted(range(len(stored)), key=str):
        stored = [stored[index] for index in range(len(stored))]
    if not isinstance(stored, list) or not stored or not all(isinstance(name, str) and name.strip() for name in stored):
        raise ConfigError(f"classes={classes}: needs a list of names, or a mapping from 0, 1, 2, ... to names")
    return stored


def make_plan(settings: EvaluateConfig) -> Plan:
    """Check everything that can be checked before a worker starts.

    Raises:
        ConfigError, ValueError, OSError: no data, an unreadable model, an unknown target or victim, an unusable trigger.
    """
    names = read_classes(settings.classes)
    aim = None
    if settings.attack is not None:
        aim = settings.attack.aim(names)
        for strand in settings.attack.strands:
            build_trigger(strand.trigger)
    units = list_units(settings.data)
    clip = load_clip(settings.model)
    tree = as_tree(settings)
    for name in ("out", "cluster", "tracking", "classes", "data", "model"):
        del tree[name]
    mark = fingerprint(
        {
            "version": EVALUATE_VERSION,
            **identity(settings.data, units),
            "model": clip.fingerprint,
            "classes": names,
            "settings": tree,
        }
    )
    return Plan(settings, units, names, clip, aim, mark)


def run_evaluate(settings: EvaluateConfig) -> dict[str, Any]:
    """Evaluate and return the figures of DESIGN's `evaluation` (percent, intervals as `*_ci95`)."""
    figures: dict[str, Any] = run_plan(make_plan(settings))["evaluation"]
    return figures


def run_plan(plan: Plan) -> dict[str, Any]:
    """Run a checked plan, or what is left of it, and return its summary."""
    started = time.monotonic()
    settings = plan.config
    tree = as_tree(settings)
    folder = open_run(settings.out, verb="evaluate", tree=tree, mark=plan.mark, passes={"predictions": len(plan.units)})
    indices = [unit.index for unit in plan.units]
    with ray_session(settings.cluster):
        table = _predictions(plan, folder, indices)
    figures = _figures(plan, table)
    _write_figures(folder, figures)
    rejected = sum(part_rows(folder.rejected).values())
    summary: dict[str, Any] = {
        "verb": "evaluate",
        "fingerprint": plan.mark,
        "seconds": round(time.monotonic() - started, 1),
        "counts": {"pairs_in": table.num_rows + rejected, "evaluated": table.num_rows, "rejected": rejected},
        "rejected_reasons": reject_reasons(list(read_parts(folder.rejected, indices, ["reason"]))),
        "evaluation": _summary(plan, figures),
        "path": str(folder.summary),
    }
    check_units(summary)
    write_summary(folder, summary)
    log_run(
        settings.tracking,
        verb="evaluate",
        root=folder.root,
        tree=tree,
        metrics=metrics_of(summary["evaluation"]),
        files=[folder.run_yaml, folder.summary, folder.root / FIGURES_TABLE, folder.root / FIGURES_RECORDS],
    )
    return summary


def _predictions(plan: Plan, folder: RunFolder, indices: list[int]) -> pa.Table:
    """Predict what is not predicted yet and return all predictions."""
    settings = plan.config
    parts = folder.root / "predictions"
    missing = set(missing_parts(parts, indices, plan.mark))
    pieces = [unit for unit in plan.units if unit.index in missing]
    classes, keyed = class_embeddings(plan.clip, plan.names, settings.templates), None
    if settings.attack is not None and settings.attack.text_key is not None:
        templates = [f"{settings.attack.text_key} {template}" for template in settings.templates]
        keyed = class_embeddings(plan.clip, plan.names, templates)
    args = (settings, settings.model, classes, keyed, parts, folder.rejected, plan.mark)
    for _ in run_pass(
        "evaluate", pieces, EvaluateWork, args, cluster=settings.cluster, total=len(plan.units), heavy=True
    ):
        pass
    table = pa.concat_tables(read_parts(parts, indices))
    if not table.num_rows:
        raise ConfigError(f"no image of {settings.data.path} has a label and can be read: see {folder.rejected}")
    return table


def _figures(plan: Plan, table: pa.Table) -> list[Figure]:
    found = predictions(table)
    return clean_figures(found) + ([] if plan.aim is None else attack_figures(found, plan.aim))


def _summary(plan: Plan, figures: list[Figure]) -> dict[str, Any]:
    """Return the figures as nested names (DESIGN's `evaluation`): those of the whole attack, then those of each strand."""
    summary = as_summary([figure for figure in figures if not figure.strand])
    attack = plan.config.attack
    if attack is None:
        return summary
    summary |= {"target": attack.target, "convention": attack.convention}
    if attack.also:
        own = {name: as_summary([figure for figure in figures if figure.strand == name]) for name in attack.names}
        summary["strands"] = [{"strand": name, **found} for name, found in own.items()]
    return summary


def _write_figures(folder: RunFolder, figures: list[Figure]) -> None:
    path = folder.root / FIGURES_TABLE
    temporary = path.with_suffix(".tmp")
    pq.write_table(as_table(figures), temporary)
    temporary.replace(path)
    write_text(folder.root / FIGURES_RECORDS, as_json(figures))
