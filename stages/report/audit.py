"""The page of an audit: the verdict, the proven triggers, and how far each label stands out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .content import DossierPanel
from .page import fill

LABEL_LIMIT = 60
"""Labels that the table shows; all of them are in screening/."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRow:
    """How far one label stands out."""

    name: str
    lead: float
    displaced: float | None
    """None where too few pictures are taken for the label."""
    p: float
    flips_pct: float
    accused: bool
    beyond: float | None = None
    """Its value beyond that of the same label in clean models; None where none were given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditReport:
    """Everything that the page shows."""

    title: str
    headline: str
    why: str
    bad: bool
    """Whether a person must act."""
    images: int
    peers: int = 0
    """Clean models that the labels were held against."""
    labels: tuple[LabelRow, ...]
    """The most suspicious first."""
    dossiers: tuple[DossierPanel, ...]
    decree: float | None = None
    words: tuple[Mapping[str, Any], ...] = ()
    """What the summary says of each word that was looked at closely, and whether it is accused; the worst first."""
    tried_words: int = 0
    next_steps: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    seconds: float = 0.0


def render(report: AuditReport) -> str:
    """Return the page as HTML, to be written as UTF-8. The same report gives the same text, byte for byte."""
    return fill(
        "audit.html",
        report,
        shown=report.labels[:LABEL_LIMIT],
        hidden=len(report.labels) - len(report.labels[:LABEL_LIMIT]),
    )
