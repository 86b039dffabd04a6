"""Rows of the tables of the attack zoo: one line an attack, one column a detector."""

from collections.abc import Callable
from statistics import fmean

from tests.benchmarks.figures import WHOLE_SCAN
from tests.benchmarks.regimes import FINE_TUNED
from tests.benchmarks.results import Row

DETECTORS = (
    "ensemble",
    "concept_sides",
    "concept_spectral",
    "k_distance",
    "dao",
    "slof",
    "lid",
    "isolation_forest",
    "clip_score",
    "caption_duplicates",
)
"""Columns of the matrices: ours first, then the published ones, then the baselines."""


def of_zoo(rows: list[Row]) -> list[Row]:
    """Return the rows of the zoo with the image tower beside the model, attacks before controls."""
    found = [{**row, "tower": str(row["model"]).removesuffix(FINE_TUNED)} for row in rows if _in_zoo(row)]
    names = ("data", "tower", "attack")
    return sorted(found, key=lambda row: (bool(row["control"]), *(str(row[name]) for name in names), row["seed"]))


def not_of_zoo(rows: list[Row]) -> list[Row]:
    """Return the rows of other benchmarks."""
    return [row for row in rows if not _in_zoo(row)]


def _in_zoo(row: Row) -> bool:
    return str(row["model"]).endswith(FINE_TUNED)


def suspects(rows: list[Row]) -> list[Row]:
    """Return the models that a GPU made, set by set."""
    found = [{**row, "tower": str(row["model"]).removesuffix(FINE_TUNED)} for row in rows]
    return sorted(found, key=lambda row: tuple(str(row[name]) for name in ("data", "tower", "attack", "seed")))


def attacks(rows: list[Row]) -> list[Row]:
    """Return one row a model."""
    return of_zoo(rows)


def decisions(rows: list[Row]) -> list[Row]:
    """Return what the scans named and flagged."""
    return [row for row in of_zoo(rows) if row["detector"] == WHOLE_SCAN]


def matrix(figure: str, *, controls: bool) -> Callable[[list[Row]], list[Row]]:
    """Return a chooser: one row an attack, the mean over seeds of a figure as `DETECTOR_FIGURE` for each detector.

    Args:
        figure: auroc, average_precision, recall_at_1_pct, ...
        controls: also rows for the controls, which only AUROC has a meaning for.
    """

    def choose(rows: list[Row]) -> list[Row]:
        cells: dict[tuple[object, ...], list[Row]] = {}
        for row in of_zoo(rows):
            wanted = row["admitted"] or (controls and row["control"])
            if wanted and row["detector"] != WHOLE_SCAN:
                cells.setdefault((row["data"], row["tower"], row["attack"], row["rate_pct"]), []).append(row)
        return [_pivot(found, figure) for found in cells.values()]

    return choose


def _pivot(rows: list[Row], figure: str) -> Row:
    seeds = {row["seed"] for row in rows}
    made: Row = {name: rows[0][name] for name in ("data", "tower", "attack", "rate_pct")} | {"seeds": len(seeds)}
    for detector in DETECTORS:
        values = [row[figure] for row in rows if row["detector"] == detector]
        known = [float(value) for value in values if isinstance(value, int | float)]
        made[f"{detector}_{figure}"] = fmean(known) if known else None
    return made
