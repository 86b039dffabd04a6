"""How few poisoned pairs name their target, how many are too many, and whether clean pairs ever name anything.

    python -m tests.benchmarks.naming runs/photos/patch-1.0/scan runs/photos/clean/scan

Embeddings are read from the scans, so nothing is trained or encoded; the truth is the manifest that a scan was given. Each
subset keeps some of the clean pairs and none, a few, or all of the poisoned ones, or only so many genuine pairs of the target
that a given share of the concept is poison, and is scored as a data set of its own. The model has seen all of the poison: what
is measured is the naming, not the attack. Figures go to tests/benchmarks/results/.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from clipsan.pipeline.bench.table import is_target
from clipsan.pipeline.core.run_folder import read_summary
from clipsan.stages.captions import contains_word
from clipsan.stages.detectors.concept_spectral import ConceptSpectral, ConceptSpectralConfig
from tests.benchmarks.results import Row, record

COMMAND = "python -m tests.benchmarks.naming SCAN..."
CLEAN_SHARES = (1.0, 0.5, 0.25)
KEPT = (10, 20, 40)
SHARES_PCT = (30.0, 40.0, 50.0, 70.0)
"""Poison among the pairs with the target in the caption, the genuine ones thinned out."""
SEEDS = (0, 1, 2)


def cell_rows(scan: Path) -> list[Row]:
    """Return one row for each amount of clean or poisoned pairs that is kept of a scan."""
    table = pa.concat_tables(pq.read_table(path) for path in sorted((scan / "embeddings").glob("part-*.parquet")))
    targets, poisoned = truth(scan, table)
    genuine = np.array([any(contains_word(c, t) for t in targets) for c in table.column("caption").to_pylist()])
    genuine &= ~poisoned
    home = scan.parent.parent
    group = home.parent.name if home.name == "cells" else home.name  # a cell of a bench, or of the photos
    cell: Row = {"cell": f"{group}/{scan.parent.name}", "target": ", ".join(targets) or None}
    everything = int(poisoned.sum())

    def row(clean_pct: float, kept: int, share_pct: float | None = None) -> Row:
        figures = []
        for seed in SEEDS:
            rows = subset(poisoned, clean_pct / 100, kept, seed)
            if share_pct is not None:
                rows = thinned(rows, genuine, round(kept * (100 / share_pct - 1)), seed)
            figures.append(judge(table.take(pa.array(rows)), poisoned[rows], targets))
        return {**cell, "clean_pct": clean_pct, "poisoned": kept, "concept_poisoned_pct": share_pct} | summed(figures)

    rows = [row(100 * share, 0) for share in CLEAN_SHARES]
    rows += [row(100.0, kept) for kept in (*(k for k in KEPT if k < everything), everything) if everything]
    thin = [s for s in SHARES_PCT if everything and everything * (100 / s - 1) < genuine.sum()]
    return rows + [row(100.0, everything, share) for share in thin]


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


def thinned(rows: np.ndarray, genuine: np.ndarray, kept: int, seed: int) -> np.ndarray:
    """Return the rows without all but a seeded choice of `kept` genuine pairs of the target."""
    own = np.random.default_rng(seed).permutation(rows[genuine[rows]])
    return np.setdiff1d(rows, own[kept:])


def judge(part: pa.Table, poisoned: np.ndarray, targets: list[str]) -> dict[str, Any]:
    """Score a subset as a data set of its own; return what was named and flagged, and the gaps."""
    detector = ConceptSpectral(ConceptSpectralConfig())
    state = detector.start()
    for _ in range(detector.rounds):
        state = detector.update(state, detector.summarise(state, part))
    concepts = detector.findings(state)["concepts"]
    flagged = detector.score(state, part)["concept_spectral"] >= 1
    right = [c for c in concepts if any(is_target(c["name"], target) for target in targets)]
    others = [c["statistic"] for c in concepts if c not in right]
    return {
        "named": any(c["named"] for c in right),
        "wrong": sum(c["named"] for c in concepts if c not in right),
        "flagged": int(flagged.sum()),
        "flagged_poisoned": int((flagged & poisoned).sum()),
        "target_gap": max((c["statistic"] for c in right), default=0.0),
        "other_gap": max(others, default=0.0),
    }


def summed(figures: list[dict[str, Any]]) -> Row:
    """Return the row of several subsets of one size."""
    counted = {name: sum(f[name] for f in figures) for name in ("named", "wrong", "flagged", "flagged_poisoned")}
    return {
        "subsets": len(figures),
        **counted,
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
