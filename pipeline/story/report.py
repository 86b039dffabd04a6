"""report.html of `clipsan run`: what was found, and the table before and after; the steps' own reports are a link away."""

from collections.abc import Mapping
from typing import Any

from clipsan.stages.dossier.files import read_dossiers
from clipsan.stages.report.dossiers import panel
from clipsan.stages.report.story import StepLine, StoryReport, compare

from ..core.config import public_tree
from ..core.run_folder import RunFolder, versions
from .settings import RunConfig
from .steps import ScanStep

HEADLINES = {
    "clean": "No backdoor found",
    "repaired": "Backdoor found and repaired",
    "unproven": "A concept is named, and nothing proven",
    "not repaired": "Not repaired as asked",
}


def build_report(settings: RunConfig, folder: RunFolder, summary: Mapping[str, Any]) -> StoryReport:
    """Return what the page shows of a run with this summary."""
    counts = summary["counts"]
    before, after = summary["before"] or {}, summary["after"] or {}
    kept = {f"{kind.capitalize()} copy of the data": path for kind, path in summary["copies"].items()}
    if summary["checkpoint"]:
        kept["Repaired model"] = summary["checkpoint"]
    if summary["registered"]:
        kept["In MLflow"] = summary["registered"]
    return StoryReport(
        title=str(folder.local),
        headline=HEADLINES[summary["outcome"]],
        why=summary["why"],
        bad=summary["exit_status"] != 0,
        pairs=counts["pairs_in"],
        poisoned=counts["verdicts"]["poisoned"],
        flagged=counts["flagged"],
        rejected=counts["rejected"],
        named=tuple(summary["targets"]),
        dossiers=tuple(panel(dossier) for dossier in read_dossiers(folder.local / ScanStep.name / "triggers")),
        attack=_attack(settings, summary),
        compared=compare(before, after),
        steps=_steps(folder, summary),
        kept=kept,
        settings=public_tree(settings),
        versions=versions(),
        fingerprint=summary["fingerprint"],
        seconds=summary["seconds"],
    )


def _attack(settings: RunConfig, summary: Mapping[str, Any]) -> str:
    if "asr_pct" not in (summary["after"] or {}):
        return "No attack success rate: no attack was given, and no trigger was proven."
    if (settings.evaluate or {}).get("attack") is not None:
        return "The attack success rate is that of the attack in the settings."
    return (
        "The attack success rate is that of the triggers that the scan has proven, which the repair trained on; it is judged by "
        "triggers that it did not train on, as the sentence at the top says. The true attack is not known here."
    )


def _steps(folder: RunFolder, summary: Mapping[str, Any]) -> tuple[StepLine, ...]:
    lines = []
    for name, step in summary["steps"].items():
        link = "report.html" if (folder.local / name / "report.html").is_file() else ""
        lines.append(StepLine(name=name, said=step["said"], seconds=step["seconds"], link=f"{name}/{link}"))
    lines += [StepLine(name=name, said=f"skipped: {why}") for name, why in summary["skipped"].items()]
    return tuple(lines)
