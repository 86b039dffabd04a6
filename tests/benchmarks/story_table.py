"""The README's few lines: what the demo's suspect model does before and after its repair, and what the scan found."""

from tests.benchmarks.figures import WHOLE_SCAN
from tests.benchmarks.results import Row
from tests.benchmarks.sections import Column

BEFORE_AFTER = (
    Column("", "figure"),
    Column("suspect model, %", "before_pct", 1),
    Column("repaired, %", "after_pct", 1),
)

SHOWN = {
    "pictures with the trigger that become the target": "asr_pct",
    "pictures with the trigger that are recognised": "accuracy_under_trigger_pct",
    "clean pictures that are recognised": "clean_accuracy_pct",
}
"""What the line says -> the figure of an evaluation."""


def before_after(rows: list[Row]) -> list[Row]:
    """Return a row a figure, with its intervals; none where the demo repaired nothing."""
    scans = [row for row in rows if row.get("detector") == WHOLE_SCAN]
    suspect = next((row for row in scans if row.get("poisoned")), None)
    repaired = next((row for row in scans if "repaired" in str(row["attack"])), None)
    if suspect is None or repaired is None:
        return []
    return [
        {
            "figure": shown,
            **{
                f"{when}_pct{end}": row.get(f"{field}{end}")
                for when, row in (("before", suspect), ("after", repaired))
                for end in ("", "_ci95")
            },
        }
        for shown, field in SHOWN.items()
    ]


def found_of(rows: list[Row]) -> str:
    """Return what the scan of the poisoned pairs flagged, and that of their clean twins."""
    scans = [row for row in rows if row.get("detector") == WHOLE_SCAN and row.get("pairs") is not None]
    said = [
        f"of {row['pairs']:,} pairs, {row['poisoned'] or 'none'} of them poisoned, the scan flags {_flagged(row)}"
        for row in sorted(scans, key=lambda row: not row["poisoned"])
    ]
    return "; ".join(said).capitalize() + "."


def _flagged(row: Row) -> str:
    if not row["flagged"]:
        return "none"
    right = row["flagged_poisoned"]
    whose = "all of them poisoned" if right == row["flagged"] else f"{right} of them poisoned"
    return f"{row['flagged']}, {whose}"
