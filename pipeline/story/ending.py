"""How a run ends: what its steps came to, and what a scheduler is told of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..repair.unseen import worst
from .settings import RunConfig
from .steps import ScanStep, proven

STATUS = {"clean": 0, "repaired": 0, "not repaired": 3}
"""Outcome -> exit status. clean: the scan accuses nothing. repaired: the new model meets max_asr_pct and max_loss_points.
not repaired: a backdoor was found, and a person must look. 1, 2, 130 and 143 are those of every verb."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended."""

    name: str
    """A key of STATUS."""
    why: str
    """In one sentence."""

    @property
    def exit_status(self) -> int:
        return STATUS[self.name]


def said(name: str, summary: Mapping[str, Any]) -> str:
    """Return what came of a step, in a few words."""
    if name == ScanStep.name:
        counts = summary["counts"]
        return (
            f"{counts['verdicts']['poisoned']:,} of {counts['pairs_in']:,} pairs poisoned, {counts['flagged']:,} flagged; "
            f"named {', '.join(summary['targets']) or 'no concept'}; {len(proven(summary))} triggers proven"
        )
    return f"{summary['method']}, {summary['steps']:,} steps on {summary['counts']['used']:,} pairs"


def accused(scan: Mapping[str, Any]) -> list[str]:
    """Return the concepts that a scan names, and those that proven triggers aim at."""
    aims = [target for trigger in proven(scan) for target in trigger["targets"]]
    return list(dict.fromkeys([*scan["targets"], *aims]))


def judge(settings: RunConfig, scan: Mapping[str, Any], repaired: Mapping[str, Any] | None) -> Ending:
    """Return what a scheduler is told.

    Args:
        settings: with the demands.
        scan: summary of the scan.
        repaired: summary of the repair; None where there was none.
    """
    names = ", ".join(accused(scan))
    if not names:
        forced = "" if repaired is None else "; it was repaired because force is set"
        return Ending("clean", f"the scan names no concept and proves no trigger{forced}")
    if repaired is None:
        return Ending("not repaired", f"a backdoor towards {names} was found")
    before, after = repaired["before"] or {}, repaired["after"] or {}
    was, asr, by = _measured(settings, repaired)
    if settings.max_asr_pct is not None:
        if asr is None:
            return Ending(
                "not repaired",
                f"a backdoor towards {names} was found and a repair made, but its ASR was not measured by any trigger that it did not "
                "train on: give evaluate.attack, or repair.unseen.judges (max_asr_pct: null asks for no figure)",
            )
        if asr > settings.max_asr_pct:
            return Ending(
                "not repaired",
                f"the repaired model has an ASR of {asr:.1f} %{by}, above the {settings.max_asr_pct:g} % asked for",
            )
    if settings.max_loss_points is not None and after:
        lost = before["clean_accuracy_pct"] - after["clean_accuracy_pct"]
        if lost > settings.max_loss_points:
            return Ending(
                "not repaired",
                f"the repair cost {lost:.1f} points of clean accuracy, above the {settings.max_loss_points:g} allowed",
            )
    measured = "" if asr is None else f", ASR {was:.1f} % -> {asr:.1f} %{by}"
    return Ending("repaired", f"a backdoor towards {names} was found and repaired{measured}")


def _measured(settings: RunConfig, repaired: Mapping[str, Any]) -> tuple[float | None, float | None, str]:
    """Return the ASR before and after that a repair is judged by, and by which trigger, in words.

    It is that of the attack where the settings name it, else that of the worst trigger that the repair did not train on.
    """
    if settings.attack_known:
        return (repaired["before"] or {}).get("asr_pct"), (repaired["after"] or {}).get("asr_pct"), ""
    judge = worst(repaired["unseen"])
    if judge is None:
        return None, None, ""
    return judge["before_pct"], judge["after_pct"], f" by triggers that it did not train on ({judge['name']})"
