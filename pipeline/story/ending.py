"""How a run ends: what its steps came to, and what a scheduler is told of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..repair.blind import said as held_back_said
from ..repair.unseen import worst
from .settings import RunConfig
from .steps import ScanStep, proven, unproven

STATUS = {"clean": 0, "repaired": 0, "unproven": 3, "not repaired": 3}
"""Outcome -> exit status. clean: the scan accuses nothing. repaired: the new model meets max_asr_pct and max_loss_points.
unproven: the scan names a concept but proves no trigger, so nothing was repaired, and a person must look. not repaired: a repair
was made that is not as asked, and a person must look. 1, 2, 130 and 143 are those of every verb."""


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
    if repaired is None:
        name = "unproven" if names else "clean"
        return Ending(name, f"{unproven(scan)}; nothing was repaired")
    if not names:
        return _forced(settings, scan, repaired)
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
    cost = _too_dear(settings, repaired)
    if cost is not None:
        return cost
    measured = "" if asr is None else f", ASR {was:.1f} % -> {asr:.1f} %{by}"
    return Ending("repaired", f"a backdoor towards {names} was found and repaired{measured}")


def _forced(settings: RunConfig, scan: Mapping[str, Any], repaired: Mapping[str, Any]) -> Ending:
    """Return how a run ends that repaired a model which nothing accuses."""
    held = repaired["blind"]
    how = "it was repaired because force is set" + ("" if held is None else f": {held_back_said(held)}")
    return _too_dear(settings, repaired) or Ending("clean", f"{unproven(scan)}; {how}")


def _too_dear(settings: RunConfig, repaired: Mapping[str, Any]) -> Ending | None:
    """Return how a run ends whose repair cost more accuracy than it may; None where it did not."""
    before, after = repaired["before"], repaired["after"]
    if settings.max_loss_points is None or not before or not after:
        return None
    lost = before["clean_accuracy_pct"] - after["clean_accuracy_pct"]
    if lost <= settings.max_loss_points:
        return None
    return Ending(
        "not repaired",
        f"the repair cost {lost:.1f} points of clean accuracy, above the {settings.max_loss_points:g} allowed",
    )


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
