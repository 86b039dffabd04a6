"""What bf16 changes: the same scan with embeddings of both precisions, and the pairs that it judges otherwise.

    python -m tests.benchmarks.precision data=parquet data.path='pairs/*.parquet' model.path=SUSPECT [more settings of a scan]

The settings are those of `clipsan scan`; everything but `embed.precision` is the same in both scans, and so is the device.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from clipsan.pipeline.core.config import load
from clipsan.pipeline.core.parts import Parts
from clipsan.pipeline.core.run_folder import RunFolder
from clipsan.pipeline.scan import verb as scan
from clipsan.pipeline.scan.plan import ScanConfig
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.stages.detectors.streaming import vectors

COMMAND = "python -m tests.benchmarks.precision"
COLUMNS = ["uid", "verdict", "reasons", "trigger_id", "ensemble"]
PRECISIONS: tuple[Literal["f32", "bf16"], ...] = ("f32", "bf16")


def compare(left: RunFolder, right: RunFolder) -> dict[str, float | int]:
    """Return how many of two scans' pairs differ in what, and by how much their embeddings do."""
    one, two = (
        pa.concat_tables(Parts.of(folder.verdicts).tables(COLUMNS)).sort_by("uid").to_pylist()
        for folder in (left, right)
    )
    if [row["uid"] for row in one] != [row["uid"] for row in two]:
        raise ValueError("the scans are of other pairs")
    both = list(zip(one, two, strict=True))
    image, other = (
        np.concatenate([vectors(table, "image") for table in Parts.of(folder.embeddings).tables(["image"])])
        for folder in (left, right)
    )
    ranks = [np.argsort(np.argsort([row["ensemble"] for row in rows])) for rows in (one, two)]
    return {
        "pairs": len(one),
        "least_cosine": float((image * other).sum(axis=1).min()),
        "rank_correlation_of_the_ensemble": float(np.corrcoef(*ranks)[0, 1]),
        "poisoned_before": sum(row["verdict"] == "poisoned" for row in one),
        "poisoned_after": sum(row["verdict"] == "poisoned" for row in two),
        "other_verdict": sum(a["verdict"] != b["verdict"] for a, b in both),
        "other_reasons": sum(a["reasons"] != b["reasons"] for a, b in both),
        "other_trigger": sum(a["trigger_id"] != b["trigger_id"] for a, b in both),
    }


def both_scans(settings: ScanConfig, home: Path) -> dict[str, float | int]:
    """Scan in both precisions below a folder, and compare."""
    for precision in PRECISIONS:
        embed = replace(settings.embed, precision=precision)
        tracking = TrackingConfig(enabled=False)
        scan.VERB.start(replace(settings, out=str(home / precision), embed=embed, tracking=tracking))
    return compare(*(RunFolder(home / precision) for precision in PRECISIONS))


def main(overrides: list[str]) -> int:
    """Scan twice and print what differs."""
    settings = load(ScanConfig, None, overrides, verb="scan")
    with tempfile.TemporaryDirectory(prefix="clipsan-precision-") as folder:
        for name, value in both_scans(settings, Path(folder)).items():
            sys.stdout.write(f"{name:<36}{value:.6g}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
