"""Rows of figures out of the summary.json of finished runs; the demo and the photos use the same ones."""

from collections.abc import Mapping
from typing import Any

from clipsan.pipeline.bench.table import is_target
from tests.benchmarks.results import Row

PHOTO_COMMANDS = "python -m tests.benchmarks.photos; python -m tests.benchmarks.zoo"
"""What measures the attacks and the detectors on photos, trained from scratch and by fine-tuning."""

ORACLE_COMMANDS = "; ".join(f"python -m tests.benchmarks.{name}" for name in ("oracle_quality", "tiny_sam", "proof"))
"""What measures the oracles: on photos, on scenes, and in the scans of poisoned photos."""

REPAIR_COMMANDS = "python -m tests.benchmarks.repair; python -m tests.benchmarks.repair_demo runs/demo"
"""What measures the repairs: of photos, and of the demo's suspect."""

ADMITTED_ASR_PCT = 90.0
"""An attack that succeeds less often is no test of a detector: the model has not learned what it would have to find."""

WHOLE_SCAN = "scan"
"""In the place of a detector: what the scan as a whole decided."""

BUDGETS = {"0.001": "0_1", "0.01": "1", "0.1": "10"}
"""Review budget as summary.json names it -> in percent, as the fields do."""


def attack_row(cell: Mapping[str, Any], evaluation: Mapping[str, Any], **counts: int | None) -> Row:
    """Return the row of attacks.json for an evaluated model.

    Args:
        cell: what the row is of: data, attack, trigger, rate_pct, model, seed.
        evaluation: `evaluation` of the summary of `clipsan evaluate`.
        counts: pairs and poisoned of the training set.
    """
    figures = {
        name: value
        for name, value in evaluation.items()
        if name in ("images", "attacked_images") or (name.endswith(("_pct", "_pct_ci95")) and "top5" not in name)
    }
    asr = evaluation.get("asr_pct")
    return {**cell, **counts, **rounded(figures), "admitted": None if asr is None else asr >= ADMITTED_ASR_PCT}


def scan_row(cell: Mapping[str, Any], summary: Mapping[str, Any], target: str | None) -> Row:
    """Return what a scan decided: what it named, how it judged the target and the next concept, what it flagged.

    Args:
        cell: what the row is of: data, attack, rate_pct, model, seed.
        summary: summary.json of `clipsan scan`.
        target: the concept that was attacked; None: there is no poison.
    """
    spectral = summary["detectors"]["ConceptSpectral"]
    concepts = summary["concepts"]
    attacked = [c for c in concepts if target is not None and is_target(c["name"], target)]
    others = [c for c in concepts if c not in attacked]
    right = [name for name in summary["targets"] if target is not None and is_target(name, target)]
    return {
        **cell,
        "detector": WHOLE_SCAN,
        "pairs": summary["counts"]["pairs_in"],
        "rejected": summary["counts"]["rejected"],
        "poisoned": summary.get("poisoned", 0 if target is None else None),
        "flagged": summary["counts"]["flagged"],
        "flagged_poisoned": summary.get("poisoned_flagged"),
        "targets": ", ".join(summary["targets"]),
        "target_named": None if target is None else bool(right),
        "wrong_targets": len(summary["targets"]) - len(right),
        "target_statistic": attacked[0]["statistic"] if attacked else None,
        "next_concept": others[0]["name"] if others else None,
        "next_statistic": others[0]["statistic"] if others else None,
        "statistic_threshold": spectral["threshold"],
        "seconds": summary["seconds"],
    }


def detector_rows(cell: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Row]:
    """Return one row a detector; none when the scan was not given the truth, or there is no poison to find."""
    return [
        {**cell, "detector": name, **detector_figures(figures)}
        for name, figures in summary.get("detection", {}).items()
        if figures is not None
    ]


def detector_figures(figures: Mapping[str, Any]) -> Row:
    """Return the flat figures of one detector: recall and precision at a budget in percent, the others as fractions."""
    flat: Row = {name: round(figures[name], 4) for name in ("auroc", "average_precision", "fpr95") if name in figures}
    for measure in ("recall", "precision"):
        stored = figures.get(f"{measure}_at", {})
        flat |= {f"{measure}_at_{BUDGETS[b]}_pct": round(100 * share, 2) for b, share in stored.items() if b in BUDGETS}
    return flat


def rounded(figures: Mapping[str, Any]) -> Row:
    """Return figures with two digits, as they are stored."""
    return {
        name: [round(v, 2) for v in value]
        if isinstance(value, list)
        else round(value, 2)
        if isinstance(value, float)
        else value
        for name, value in figures.items()
    }
