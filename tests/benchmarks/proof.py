"""The oracle's proofs on models with a known trigger: which are found, where, which pairs carry them, and at what cost.

    python -m tests.benchmarks.proof                    every attack of the common regime that has been trained
    python -m tests.benchmarks.proof patch-s0 clean-s0  some of them
    python -m tests.benchmarks.proof --commands         the commands alone
    python -m tests.benchmarks.proof --store            store the figures of what has run

The models are those of `python -m tests.benchmarks.zoo common`, which comes first. Each scan takes the zoo's embeddings and is
a command of clipsan with a run folder below runs/proof/; what has finished is not run again.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipsan.pipeline.bench.table import is_target
from clipsan.pipeline.core.run_folder import read_summary
from clipsan.stages.oracle.regions import from_runs, iou
from tests.benchmarks import photos
from tests.benchmarks.figures import ORACLE_COMMANDS
from tests.benchmarks.results import Row, record
from tests.benchmarks.zoo import REGIMES, cell_home, cell_names

RUNS = Path("runs/proof")
ORACLE = "superpixels"
TRAIN = "$CLIPSAN_ASSETS/tiny-imagenet20-train-*.parquet"
FOUND_IOU = 0.5
LOCAL = ("patch", "replace")
"""Kinds of triggers whose place is asked for; the others cover the whole image."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What the manifest says."""

    uids: frozenset[str]
    target: str | None
    boxes: Mapping[str, tuple[int, int, int, int]]
    """Of triggers that cover less than a quarter of the image."""


def cells() -> list[str]:
    """Return the cells whose models are there."""
    return sorted(
        path.parent.parent.name for path in (photos.ROOT / REGIMES["common"].out).glob("cells/*/train/checkpoint")
    )


def arguments(cell: str) -> list[str]:
    """Return the scan of a cell."""
    home = cell_home(cell)
    clean = not (photos.ROOT / home / "poison").exists()
    given = (
        ["data=labelled-parquet", f"data.path={TRAIN}"]
        if clean
        else ["data=poisoned", f"data.path={home}/poison/plan.json", f"manifest={home}/poison/manifest.parquet"]
    )
    scanned = (photos.ROOT / home / "scan" / "summary.json").exists()
    return [
        *("scan", *given, f"model.path={home}/train/checkpoint", f"oracle={ORACLE}", "proof.precision=bf16"),
        *([f"embeddings={home}/scan"] if scanned else []),
        *(f"out={RUNS / cell}", "cluster.workers=2"),
    ]


def read_truth(cell: str) -> Truth:
    """Return the manifest of a cell; of a clean one, that nothing is poisoned."""
    path = photos.ROOT / cell_home(cell) / "poison" / "manifest.parquet"
    if not path.exists():
        return Truth(frozenset(), None, {})
    rows = pq.read_table(path).to_pylist()
    boxes = {
        row["uid"]: (row["top"], row["left"], row["height"], row["width"])
        for row in rows
        if row["trigger"] in LOCAL and row["height"] < 32
    }
    targets = {row["target"] for row in rows} - {None}
    return Truth(frozenset(row["uid"] for row in rows) if targets else frozenset(), min(targets, default=None), boxes)


def read_folder(folder: Path, columns: list[str]) -> list[dict[str, Any]]:
    """Return the rows of all parts of a folder; none if it is not there."""
    tables = []
    for path in sorted(folder.glob("part-*.parquet")):
        with path.open("rb") as file:
            tables.append(pq.read_table(file, columns=columns))
    return pa.concat_tables(tables).to_pylist() if tables else []


def row_of(cell: str) -> Row:
    """Return the figures of a finished scan."""
    root = photos.ROOT / RUNS / cell
    summary, truth = read_summary(root), read_truth(cell)
    proof = summary["proof"]
    names = cell_names(cell)
    found = read_folder(root / "verdicts", ["uid", "verdict", "reasons"])
    evidence = read_folder(root / "evidence", ["uid", "proven", "mask_runs", "mask_height", "mask_width"])
    poisoned = {row["uid"] for row in found if row["verdict"] == "poisoned"}
    flagged = {row["uid"] for row in found if "poison_suspect" in row["reasons"]}
    own = {row["uid"] for row in evidence if row["proven"]}
    swept = {row["uid"] for row in read_folder(root / "evidence" / "swept", ["uid", "confirmed"]) if row["confirmed"]}
    before = (own | (flagged & swept)) & poisoned
    affected, triggers = proof["affected_labels"], proof["triggers"]
    named = sorted({target for trigger in triggers for target in trigger["targets"]})
    right = [name for name in named if truth.target is not None and is_target(name, truth.target)]
    best = max(triggers, key=lambda t: t["pairs"] or 0, default=None)
    ious = sorted(_ious(evidence, truth))
    pairs = summary["counts"]["pairs_in"]
    return {
        "set": ", ".join((names["data"], *cell.split("/")[:-1])),
        "oracle": ORACLE,
        "attack": names["attack"],
        "seed": names["seed"],
        "pairs": pairs,
        "poisoned": len(truth.uids),
        "examined": proof["examined"],
        "proven_triggers": len(triggers),
        "kinds": ", ".join(sorted({trigger["kind"] for trigger in triggers})),
        "labels_found": ", ".join(named),
        "labels_affected": ", ".join(affected),
        "label_precision_pct": 100.0 * len(right) / len(named) if named else None,
        "label_recall_pct": None if truth.target is None else 100.0 * bool(right),
        "localised": len(ious),
        "iou_median": round(float(np.median(ious)), 3) if ious else None,
        "iou_half_pct": round(100 * float(np.mean([v >= FOUND_IOU for v in ious])), 1) if ious else None,
        "flip_rate_pct": best and round(best["flip_rate_pct"], 1),
        "control_flip_rate_pct": best and round(best["control_flip_rate_pct"], 1),
        **_rates("suspect", flagged | poisoned, truth),
        **_rates("before_sweep", before, truth),
        **_rates("after_sweep", poisoned, truth),
        "seconds": round(sum(proof["seconds"].values()), 1),
        "seconds_per_1000": round(1000 * sum(proof["seconds"].values()) / pairs, 2),
    }


def _rates(name: str, chosen: set[str], truth: Truth) -> Row:
    hits = len(chosen & truth.uids)
    return {
        f"{name}": len(chosen),
        f"{name}_precision_pct": round(100 * hits / len(chosen), 1) if chosen else None,
        f"{name}_recall_pct": round(100 * hits / len(truth.uids), 1) if truth.uids else None,
    }


def _ious(evidence: list[dict[str, Any]], truth: Truth) -> Iterator[float]:
    """Yield the overlap of the proven region with the trigger, for every poisoned pair whose region is proven."""
    for row in evidence:
        if row["proven"] and row["uid"] in truth.boxes:
            region = from_runs(row["mask_runs"], row["mask_height"], row["mask_width"])
            top, left, height, width = truth.boxes[row["uid"]]
            trigger = np.zeros_like(region)
            trigger[top : top + height, left : left + width] = True
            yield iou(region, trigger)


def main() -> int:
    """Run the scans, print their commands, or store their figures."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.proof", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("cells", nargs="*", metavar="CELL", help="default: all whose models are there")
    parser.add_argument("--commands", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--store", action="store_true", help="store the figures of what has run and run nothing")
    options = parser.parse_args()
    chosen = options.cells or cells()
    if options.commands:
        for cell in chosen:
            sys.stdout.write(photos.as_shell(arguments(cell)) + "\n")
        return 0
    folder = photos.found_assets()
    if folder is None:
        return 0
    for cell in chosen:
        if not options.store:
            photos.run(RUNS / cell, arguments(cell), folder)
        if (photos.ROOT / RUNS / cell / "summary.json").exists():
            record("oracle", [row_of(cell)], command=ORACLE_COMMANDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
