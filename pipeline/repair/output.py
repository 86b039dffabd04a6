"""What a repair leaves behind: the checkpoint with its card, and the figures before and after."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.commit import write_text
from ..core.config import as_tree
from ..core.place import AnyPath
from .plan import Plan

CARD = "README.md"

SHOWN = {
    "clean_accuracy_pct": "Zero-shot accuracy",
    "asr_pct": "Attack success rate",
    "accuracy_under_trigger_pct": "Accuracy under the trigger",
    "rebound_asr_pct": "Attack success rate after benign fine-tuning",
    "rebound_clean_accuracy_pct": "Zero-shot accuracy after benign fine-tuning",
    "retrieval_r1_pct": "Retrieval R@1",
    "resistivity": "Perturbation resistivity",
}
"""Figure of an evaluation -> its words in the card; figures that were not measured are left out."""


def write_card(
    folder: AnyPath, plan: Plan, summary: Mapping[str, Any], notes: Sequence[str], parameters: tuple[int, int]
) -> None:
    """Write the model card.

    Args:
        folder: the checkpoint's or the adapter's.
        plan: the repair.
        summary: with `before` and `after`, or null.
        notes: what a reader must know of the run, as how it differs from the method as published.
        parameters: how many were trained, of how many.
    """
    method = plan.config.method
    lines = [
        "---",
        "library_name: open_clip",
        "tags: [clip, clipsan, repaired]",
        "---",
        f"# CLIP repaired by {method.kind}",
        "",
        *_use(plan),
        "",
        "| | |",
        "|---|---|",
        f"| Method | {method.kind}, {summary['steps']} steps of {method.batch_size * plan.config.accumulate} pairs |",
        f"| Trained parameters | {parameters[0]:,} of {parameters[1]:,} |",
        f"| Suspect checkpoint | SHA-256 of weights and configuration {plan.model_fingerprint} |",
        f"| Data | {summary['counts']['used']:,} {plan.main.name}; fingerprint {plan.data_fingerprint} |",
        *_scan_line(plan),
        f"| Repair | fingerprint {plan.fingerprint} |",
        "",
        "## Figures",
        "",
        *_figures(summary),
        *(["", "## Notes", "", *(f"- {note}" for note in notes)] if notes else []),
        "",
        "## Settings of the method",
        "",
        "```json",
        json.dumps(as_tree(method), indent=1),
        "```",
    ]
    write_text(folder / CARD, "\n".join(lines) + "\n")


def _use(plan: Plan) -> list[str]:
    if plan.is_adapter:
        return [
            "Visual prompts for the suspect checkpoint, which stays as it is: load them with",
            "`clipsan.stages.model.clip.load_clip(ModelConfig(path=CHECKPOINT, adapter=FOLDER))`, or `model.adapter=FOLDER` on",
            "the command line of clipsan.",
        ]
    return ['Load it with `open_clip.create_model_and_transforms("local-dir:FOLDER")`.']


def _scan_line(plan: Plan) -> list[str]:
    if plan.scan is None:
        return []
    accused = ", ".join(plan.scan.targets) or "nothing"
    return [f"| Scan | fingerprint {plan.scan.fingerprint}; it accuses {accused} |"]


def _figures(summary: Mapping[str, Any]) -> list[str]:
    before, after = summary["before"], summary["after"]
    if before is None:
        return ["Not measured: the repair was run without `evaluate`."]
    names = {**SHOWN, **{name: name for name in after if _is_extra(name, after)}}
    rows = [
        f"| {words} | {_cell(before, name)} | {_cell(after, name)} |" for name, words in names.items() if name in after
    ]
    head = ["Percent, with 95 % intervals, on the same held-out images.", "", "| | before | after |", "|---|---|---|"]
    return [*head, *rows]


def _is_extra(name: str, after: Mapping[str, Any]) -> bool:
    value = after[name]
    return name not in SHOWN and not name.endswith("_ci95") and isinstance(value, float)


def _cell(figures: Mapping[str, Any], name: str) -> str:
    value, interval = figures.get(name), figures.get(f"{name}_ci95")
    if value is None:
        return ""
    digits = 2 if name.endswith("_pct") else 3
    return f"{value:.{digits}f}" + (f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})" if interval else "")
