"""What an evaluation leaves: its figures as a tidy table, and as nested names for summary.json."""

from typing import Any

import pyarrow.parquet as pq

from clipsan.stages.evaluation.figures import Figure, as_json, as_summary, as_table

from ..core.commit import whole, write_text
from ..core.place import AnyPath
from .plan import Plan

FIGURES = ("figures.parquet", "figures.json")
"""The tidy table of all figures, twice; a row is a stages.evaluation.figures.Figure."""


def write_figures(root: AnyPath, figures: list[Figure]) -> list[AnyPath]:
    """Write the table in both forms and return the files."""
    table, records = (root / name for name in FIGURES)
    with whole(table) as temporary:
        pq.write_table(as_table(figures), temporary)
    write_text(records, as_json(figures))
    return [table, records]


def nested(plan: Plan, figures: list[Figure]) -> dict[str, Any]:
    """Return the figures as nested names: `*_pct` in percent, 95 % intervals as `*_ci95`.

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
