"""`clipsan evaluate`: what a model can do, and what an attack makes of it.

Zero-shot accuracy, ASR and accuracy under trigger; on request retrieval, a linear probe, perturbation resistivity, and
all of the attack's figures again after benign fine-tuning.
"""

import sys
import time
from typing import Any

import pyarrow.parquet as pq

from clipsan.stages.evaluation.figures import Figure, as_json, as_summary, as_table

from ..core.cluster import ray_session
from ..core.commit import read_parts, write_text
from ..core.config import as_tree, load
from ..core.run_folder import RunFolder, open_run, part_rows, write_summary
from ..tracking.record import data_input, metrics_of
from ..tracking.send import log_run
from ..train.data import reject_reasons
from .passes import fitted_probe, perturbed, predicted, probe_figures, rebounded, retrieved, zero_shot_figures
from .plan import EVALUATE_VERSION, Plan, make_plan, read_classes
from .settings import EvaluateConfig, EvaluationAttack, ProbeConfig, ReboundConfig, ResistivityConfig, RetrievalConfig

__all__ = [
    "EVALUATE_VERSION",
    "EvaluateConfig",
    "EvaluationAttack",
    "Plan",
    "ProbeConfig",
    "ReboundConfig",
    "ResistivityConfig",
    "RetrievalConfig",
    "command",
    "make_plan",
    "read_classes",
    "run_evaluate",
    "run_plan",
]

FIGURES_TABLE = "figures.parquet"
FIGURES_RECORDS = "figures.json"
"""The tidy table of all figures, twice; a row is a stages.evaluation.figures.Figure."""


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


def run_evaluate(settings: EvaluateConfig) -> dict[str, Any]:
    """Evaluate and return the figures of DESIGN's `evaluation`: `*_pct` in percent, 95 % intervals as `*_ci95`."""
    figures: dict[str, Any] = run_plan(make_plan(settings))["evaluation"]
    return figures


def run_plan(plan: Plan) -> dict[str, Any]:
    """Run a checked plan, or what is left of it, and return its summary."""
    started = time.monotonic()
    settings = plan.config
    tree = as_tree(settings)
    folder = open_run(settings.out, verb="evaluate", tree=tree, fingerprint=plan.mark)
    with ray_session(settings.cluster):
        probe = fitted_probe(plan, folder)
        table = predicted(plan, folder, probe)
        figures = zero_shot_figures(plan, table)
        figures += retrieved(plan, folder)
        figures += [] if probe is None else probe_figures(plan, table)
        figures += perturbed(plan, folder, table)
        figures += rebounded(plan, folder)
    _write_figures(folder, figures)
    rejected = sum(part_rows(folder.rejected).values())
    indices = [unit.index for unit in plan.units]
    summary: dict[str, Any] = {
        "verb": "evaluate",
        "fingerprint": plan.mark,
        "seconds": round(time.monotonic() - started, 1),
        "counts": {"pairs_in": table.num_rows + rejected, "evaluated": table.num_rows, "rejected": rejected},
        "rejected_reasons": reject_reasons(list(read_parts(folder.rejected, indices, ["reason"]))),
        "evaluation": _summary(plan, figures) | ({} if probe is None else {"probe_c": probe.c}),
        "path": str(folder.summary),
    }
    write_summary(folder, summary)
    log_run(
        settings.tracking,
        verb="evaluate",
        root=folder.root,
        tree=tree,
        metrics=metrics_of(summary["evaluation"]),
        files=[folder.run_yaml, folder.summary, folder.root / FIGURES_TABLE, folder.root / FIGURES_RECORDS],
        inputs=[data_input(settings.data, plan.units, "evaluation")],
    )
    return summary


def _summary(plan: Plan, figures: list[Figure]) -> dict[str, Any]:
    """Return the figures as nested names (DESIGN's `evaluation`).

    First those of the whole attack at the model's outputs; then `strands`, one record a strand, where there are several;
    and `resistivity_layers`, one record a layer.
    """
    summary = as_summary([found for found in figures if not found.strand and found.set not in plan.layers])
    attack = plan.config.attack
    if attack is not None:
        summary |= {"target": attack.target, "convention": attack.convention}
        if attack.also:
            summary["strands"] = [
                {"strand": name}
                | as_summary([found for found in figures if found.strand == name and found.set not in plan.layers])
                for name in attack.names
            ]
    if plan.layers:
        summary["resistivity_layers"] = {
            layer: as_summary([found for found in figures if found.set == layer and not found.strand])
            for layer in plan.layers
        }
    return summary


def _write_figures(folder: RunFolder, figures: list[Figure]) -> None:
    path = folder.root / FIGURES_TABLE
    temporary = path.with_suffix(".tmp")
    pq.write_table(as_table(figures), temporary)
    temporary.replace(path)
    write_text(folder.root / FIGURES_RECORDS, as_json(figures))
