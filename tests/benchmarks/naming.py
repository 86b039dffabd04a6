"""How few poisoned pairs name their target, and whether clean pairs ever name anything: subsets of finished scans.

    python -m tests.benchmarks.naming runs/photos/patch-1.0/scan runs/photos/clean/scan

Embeddings are read from the scans, so nothing is trained or encoded; the truth is the manifest that a scan was given. Each
subset keeps some of the clean pairs and none, or a few, of the poisoned ones, and is scored as a data set of its own. The
model has seen all of the poison: what is measured is the naming, not the attack. Figures go to tests/benchmarks/results/.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.bench_table import is_target
from pipeline.run_folder import read_summary
from stages.detectors.concept_spectral import ConceptSpectral, ConceptSpectralConfig
from tests.benchmarks.results import Row, record

COMMAND = "python -m tests.benchmarks.naming SCAN..."
CLEAN_SHARES = (1.0, 0.5, 0.25)
KEPT = (10, 20, 40)
SEEDS = (0, 1, 2)


def cell_rows(scan: Path) -> list[Row]:
    """Return one row for each amount of clean or poisoned pairs that is kept of a scan."""
    table = pa.concat_tables(pq.read_table(path) for path in sorted((scan / "embeddings").glob("part-*.parquet")))
    targets, poisoned = truth(scan, table)
    cell: Row = {"cell": f"{scan.parent.parent.name}/{scan.parent.name}", "target": ", ".join(targets) or None}
    rows = [
        {**cell, "clean_pct": 100 * share, "poisoned": 0}
        | summed([judge(table, subset(poisoned, share, 0, seed), targets) for seed in SEEDS])
        for share in CLEAN_SHARES
    ]
    for kept in KEPT:
        if kept < int(poisoned.sum()):
            figures = [judge(table, subset(poisoned, 1.0, kept, seed), targets) for seed in SEEDS]
            rows.append({**cell, "clean_pct": 100.0, "poisoned": kept} | summed(figures))
    if poisoned.any():
        figures = [judge(table, np.arange(len(poisoned)), targets)]
        rows.append({**cell, "clean_pct": 100.0, "poisoned": int(poisoned.sum())} | summed(figures))
    return rows


def truth(scan: Path, table: pa.Table) -> tuple[list[str], np.ndarray]:
    """Return the targets and which pairs are poisoned, `[N] bool`, by the manifest that the scan was given."""
    manifest = yaml.safe_load((scan / "run.yaml").read_text(encoding="utf-8"))["config"]["manifest"]
    if manifest is None:
        return [], np.zeros(table.num_rows, dtype=bool)
    known = pq.read_table(manifest, columns=["uid", "target"])
    targets = sorted({target for target in known.column("target").to_pylist() if target is not None})
    return targets, np.isin(table.column("uid").to_pylist(), known.column("uid").to_pylist())


def subset(poisoned: np.ndarray, clean_share: float, kept: int, seed: int) -> np.ndarray:
    """Return the row numbers of a seeded share of the clean pairs and of `kept` poisoned ones, ascending."""
    rng = np.random.default_rng(seed)
    clean = np.flatnonzero(~poisoned)
    chosen = rng.permutation(clean)[: round(clean_share * len(clean))]
    return np.sort(np.concatenate([chosen, rng.permutation(np.flatnonzero(poisoned))[:kept]]))


def judge(table: pa.Table, rows: np.ndarray, targets: list[str]) -> dict[str, Any]:
    """Score a subset as a data set of its own; return what was named, and the gaps."""
    detector = ConceptSpectral(ConceptSpectralConfig())
    state, part = detector.start(), table.take(pa.array(rows))
    for _ in range(detector.rounds):
        state = detector.update(state, detector.summarise(state, part))
    concepts = detector.findings(state)["concepts"]
    right = [c for c in concepts if any(is_target(c["name"], target) for target in targets)]
    others = [c["statistic"] for c in concepts if c not in right]
    return {
        "named": any(c["named"] for c in right),
        "wrong": sum(c["named"] for c in concepts if c not in right),
        "target_gap": max((c["statistic"] for c in right), default=0.0),
        "other_gap": max(others, default=0.0),
    }


def summed(figures: list[dict[str, Any]]) -> Row:
    """Return the row of several subsets of one size."""
    return {
        "subsets": len(figures),
        "named": sum(f["named"] for f in figures),
        "wrong": sum(f["wrong"] for f in figures),
        "least_target_gap": min(f["target_gap"] for f in figures),
        "largest_other_gap": max(f["other_gap"] for f in figures),
    }


def main() -> int:
    """Measure the scans that are named on the command line and store the figures."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scans", nargs="+", type=Path, metavar="SCAN", help="run folder of a finished `clipsan scan`")
    for scan in parser.parse_args().scans:
        read_summary(scan)  # says so where the scan is not finished
        rows = cell_rows(scan)
        record("naming", rows, command=COMMAND)
        for row in rows:
            sys.stdout.write(" ".join(f"{name}={value}" for name, value in row.items()) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
