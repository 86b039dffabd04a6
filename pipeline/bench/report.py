"""What report.html shows of a bench, gathered from its table and from the scores of its scans."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipsan.stages.evaluation.detection import roc_points
from clipsan.stages.report.bench import AttackLine, BenchReport, Measured
from clipsan.stages.report.text import detector_label

from ..core.config import public_tree
from ..core.parts import Parts
from ..core.run_folder import RunFolder, versions
from ..scan.output import manifest_uids, truth_mask
from .cell import Cell
from .plan import Plan
from .table import CHANCE, Row

SHOWN = (
    "rate_pct",
    "clean_accuracy_pct",
    "asr_pct",
    "clean_model_asr_pct",
    "rebound_asr_pct",
    "flagged",
    "named",
    "target_named",
    "wrong_targets",
)


def bench_report(plan: Plan, table: Sequence[Row], summary: Mapping[str, Any]) -> BenchReport:
    """Gather the page; `table` and `summary` as bench_table makes them."""
    measured = [row for row in table if row["detector"] is not None]
    detectors = tuple(dict.fromkeys(row["detector"] for row in measured))
    scanned = {(row["attack"], row["seed"]) for row in measured}
    first = {cell.attack_name: cell for cell in reversed(plan.cells) if (cell.attack_name, cell.seed) in scanned}
    attacks = list(dict.fromkeys(row["attack"] for row in measured))
    return BenchReport(
        title=f"{len(plan.config.attacks)} attacks, {len(detectors)} detectors",
        min_asr_pct=plan.config.min_asr_pct,
        lines=tuple(_line(cell, table) for cell in summary["cells"]),
        detectors=detectors,
        matrix={name: _measured([row for row in measured if row["attack"] == name]) for name in attacks},
        curves={name: roc_curves(first[name], detectors) for name in attacks},
        chance=CHANCE,
        off_chance=tuple(_sentence(off) for off in summary["controls_off_chance"]),
        settings=public_tree(plan.config),
        versions=versions(),
        fingerprint=summary["fingerprint"],
        seconds=summary["seconds"],
    )


def _line(cell: Mapping[str, Any], table: Sequence[Row]) -> AttackLine:
    row = next(r for r in table if (r["attack"], r["seed"]) == (cell["attack"], cell["seed"]))
    return AttackLine(
        name=cell["attack"],
        seed=cell["seed"],
        control=row["control"],
        state=cell["state"],
        note=cell.get("advice") or cell.get("error"),
        **{name: row.get(name) for name in SHOWN},
    )


def _measured(rows: Sequence[Row]) -> dict[str, Measured]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["detector"], []).append(row)
    return {
        name: Measured(
            auroc=tuple(row["auroc"] for row in same),
            average_precision=tuple(row["average_precision"] for row in same),
            recall_1=tuple(row["recall_at_1_pct"] / 100 for row in same),
        )
        for name, same in found.items()
    }


def roc_curves(cell: Cell, detectors: Sequence[str]) -> dict[str, np.ndarray]:
    """Return detector -> `[K, 2] float64`, false and true positive rate; one column of scores at a time in memory."""
    poison, scan = cell.step("poison"), cell.step("scan")
    assert poison is not None
    assert scan is not None
    scores = Parts.of(RunFolder(scan.folder).scores)
    truth = truth_mask(scores, manifest_uids(str(poison.folder / "manifest.parquet")))
    return {name: roc_points(scores.column(name), truth) for name in detectors}


def _sentence(off: Mapping[str, Any]) -> str:
    return (
        f"{off['attack']}, seed {off['seed']}: {detector_label(off['detector'])} has AUROC {off['auroc']:.3f}, "
        f"{off['deviations']:+.1f} standard deviations from a score that knows nothing."
    )
