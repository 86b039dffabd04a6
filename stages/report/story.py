"""The page of a whole run: what was found in the data, and the model before and after its repair."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .content import DossierPanel
from .page import fill

ROWS = (
    ("asr_pct", "Attack success rate", False),
    ("clean_accuracy_pct", "Clean accuracy", True),
    ("accuracy_under_trigger_pct", "Accuracy under the trigger", True),
    ("rebound_asr_pct", "Attack success rate after benign fine-tuning", False),
    ("retrieval_r1_pct", "Retrieval R@1", True),
)
"""Figure of an evaluation, its words, and whether more of it is better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A figure of the suspect and of the repaired model, percent with its 95 % interval."""

    words: str
    before: float
    after: float
    before_ci95: tuple[float, float] | None
    after_ci95: tuple[float, float] | None
    good: bool | None
    """Whether the change is for the better; None where the intervals overlap, or there are none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLine:
    """One step of the run."""

    name: str
    said: str
    """What came of it, or why it was skipped."""
    seconds: float | None = None
    link: str | None = None
    """Its own report or folder, relative to the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoryReport:
    """Everything that the page shows."""

    title: str
    headline: str
    why: str
    bad: bool
    """Whether the headline is one that a person must act on."""
    pairs: int
    poisoned: int
    flagged: int
    rejected: int
    named: tuple[str, ...]
    dossiers: tuple[DossierPanel, ...]
    attack: str = ""
    """What the ASR is measured with, in words."""
    compared: tuple[Compared, ...] = ()
    steps: tuple[StepLine, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
    """What the run leaves -> where."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    seconds: float = 0.0


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Compared, ...]:
    """Return what two evaluations both measured, in the order of ROWS."""
    return tuple(
        Compared(
            words=words,
            before=before[name],
            after=after[name],
            before_ci95=_interval(before, name),
            after_ci95=_interval(after, name),
            good=_better(_interval(before, name), _interval(after, name), more=more),
        )
        for name, words, more in ROWS
        if before.get(name) is not None and after.get(name) is not None
    )


def _interval(figures: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    found = figures.get(f"{name}_ci95")
    return None if found is None else (found[0], found[1])


def _better(before: tuple[float, float] | None, after: tuple[float, float] | None, *, more: bool) -> bool | None:
    if before is None or after is None or (before[0] <= after[1] and after[0] <= before[1]):
        return None
    return (after[0] > before[1]) is more


def render(report: StoryReport) -> str:
    """Return the page as HTML, to be written as UTF-8. The same report gives the same text, byte for byte."""
    return fill("story.html", report)
