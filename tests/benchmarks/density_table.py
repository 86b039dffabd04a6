"""The table of density scores beside the published behaviour, and what it says."""

from collections.abc import Sequence
from statistics import fmean

from tests.benchmarks.figures import ADMITTED_ASR_PCT
from tests.benchmarks.results import Row

SCORES = ("k_distance", "slof", "dao")
SHORT = {"published": "published", "rows aligned": "rows", "ours": "ours"}
"""Versions that the table shows -> how its fields are called."""
CELL = ("data", "attack", "rate_pct", "model", "seed", "reference", "block_pairs", "k")
AMPLE = 8
"""k is ample when it is at least this many times the poisoned pairs of a block."""


def side_by_side(rows: Sequence[Row]) -> list[Row]:
    """Return one row a cell and k, with the AUROC of each score in each version that the table shows.

    Cells are those whose attack works, divided into blocks; no score is averaged over divisions.
    """
    cells: dict[tuple[object, ...], Row] = {}
    for row in rows:
        asr = row.get("asr_pct")
        if not isinstance(asr, int | float) or asr < ADMITTED_ASR_PCT or row["averaged"] != 1 or row["divisions"] == 1:
            continue
        if row["version"] in SHORT:
            cell = cells.setdefault(tuple(row[field] for field in CELL), dict(row))
            for name in SCORES:
                cell[f"{name}_{SHORT[str(row['version'])]}"] = row[f"{name}_auroc"]
    return list(cells.values())


def admitted_side_by_side(rows: list[Row]) -> list[Row]:
    """Return the rows of the table: images compared with images and captions, as the scan does it; small k first."""
    found = [row for row in side_by_side(rows) if row["reference"] == "image_text"]
    names = list(
        dict.fromkeys((row["data"], row["attack"], row["rate_pct"], row["model"], row["seed"]) for row in found)
    )
    return sorted(
        found, key=lambda r: (names.index((r["data"], r["attack"], r["rate_pct"], r["model"], r["seed"])), r["k"])
    )


def density_finding(rows: Sequence[Row]) -> str:
    """Return what correcting the neighbour rows is worth, where k is ample and where it is not."""
    cells = side_by_side(rows)
    parts = []
    for ample, words in ((True, "is at least"), (False, "is less than")):
        group = [row for row in cells if (_figure(row, "k") >= AMPLE * _figure(row, "poisoned_per_block")) == ample]
        if group:
            better = sum(_figure(row, "dao_rows") > _figure(row, "dao_published") for row in group)
            parts.append(
                f"Where k {words} {AMPLE} times the poisoned pairs of a block, reading the right neighbour rows takes DAO "
                f"from a mean AUROC of {_mean(group, 'dao_published'):.3f} to {_mean(group, 'dao_rows'):.3f} and SLOF "
                f"from {_mean(group, 'slof_published'):.3f} to {_mean(group, 'slof_rows'):.3f} (DAO is better in {better} of "
                f"{len(group)} cells)."
            )
    ours = [row for row in cells if row["reference"] == "image_text"]
    ks = sorted({_figure(row, "k") for row in ours})
    listed = ", ".join(
        f"{_mean([row for row in ours if row['k'] == k], 'k_distance_ours'):.3f} at k = {k:.0f}" for k in ks
    )
    return " ".join([*parts, f"Plain k-distance has {listed}."]) if parts else ""


def _figure(row: Row, field: str) -> float:
    value = row[field]
    if not isinstance(value, int | float):
        raise TypeError(f"{field} is {value!r}, not a figure")
    return float(value)


def _mean(rows: Sequence[Row], field: str) -> float:
    return fmean(_figure(row, field) for row in rows)
