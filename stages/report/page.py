"""What one scan has to show, and the page that shows it: one HTML file, nothing loaded from anywhere.

Captions, keys and concept names come from strangers. They reach the page only as escaped text, the page's policy
allows no script but its own (by hash) and no request at all, and characters that could reorder or break the text
around them are isolated or replaced.
"""

import base64
import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TypedDict

import jinja2
import numpy as np
import yaml
from markupsafe import Markup

from stages.report import charts
from stages.report.text import count, detector_label, duration, percent, reason_label, rich, score

PICTURE_LIMIT = 200
"""Pictures on the wall: at about 12 kB each the page stays below 5 MB."""
CONCEPT_LIMIT = 50
CAPTION_LIMIT = 400
"""Characters of a caption that are shown; the rest is in verdicts/."""


class Figures(TypedDict):
    """Detection against a manifest, as in summary.json. Fractions in [0, 1]."""

    auroc: float
    average_precision: float
    recall_at: dict[str, float]
    """Recall by review budget; the keys are the budgets, as "0.001"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlaggedPair:
    """One pair of the picture wall."""

    uid: str
    caption: str
    picture: bytes
    """A JPEG or PNG file, as `thumbnail` makes it."""
    score: float
    rank: int
    """1 is the most suspicious pair of the data set."""
    reasons: tuple[str, ...]
    concept: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    """Score by detector."""
    truth: bool | None = None
    """Whether the manifest says that it is poisoned; None without a manifest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptRow:
    """One concept and its group statistic."""

    name: str
    pairs: int
    statistic: float
    flagged: int
    named: bool
    """Whether the scan names it as a backdoor's target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorPanel:
    """The scores of one detector."""

    name: str
    edges: np.ndarray
    """[B + 1] float, ascending."""
    counts: np.ndarray
    """[B] int: all pairs."""
    flagged: np.ndarray
    """[B] int."""
    poisoned: np.ndarray | None = None
    """[B] int, when a manifest is given."""
    cut: float | None = None
    """The score from which pairs were flagged, for the detector that decided."""
    figures: Figures | None = None
    roc: np.ndarray | None = None
    """[K, 2] float: false positive rate, true positive rate; both in [0, 1], ascending."""
    pr: np.ndarray | None = None
    """[K, 2] float: recall, precision; both in [0, 1], recall ascending."""

    def __post_init__(self) -> None:
        columns = [self.counts, self.flagged, *([] if self.poisoned is None else [self.poisoned])]
        if any(len(column) + 1 != len(self.edges) for column in columns):
            raise ValueError(f"the histogram of {self.name} needs one edge more than counts")


@dataclass(frozen=True, kw_only=True, slots=True)
class MapPoints:
    """A sample of the pairs, laid out in the plane."""

    xy: np.ndarray
    """[M, 2] float."""
    flagged: np.ndarray
    """[M] bool."""
    accused: np.ndarray
    """[M] bool: the caption names a concept that the scan names as a target."""
    poisoned: np.ndarray | None = None
    """[M] bool, when a manifest is given."""
    note: str = "Each dot is one image; images that the model finds alike lie close together."

    def __post_init__(self) -> None:
        marks = [self.flagged, self.accused, *([] if self.poisoned is None else [self.poisoned])]
        if any(len(mark) != len(self.xy) for mark in marks):
            raise ValueError("every point of the map needs its marks")


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedExample:
    """One pair that could not be scanned."""

    uid: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What the manifest says about the decision as a whole."""

    poisoned: int
    """Poisoned pairs among those scanned."""
    found: int
    """Those of them that were flagged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanReport:
    """Everything that the page shows."""

    title: str
    pairs_in: int
    verdicts: int
    flagged_pairs: int
    """All of them; `flagged` may hold fewer, the most suspicious ones."""
    rejected: dict[str, int]
    """Count by reason."""
    decision: str
    """How the cut was made and what it means. `like this` becomes code, here and in `next_steps`."""
    targets: tuple[str, ...] = ()
    """Named concepts."""
    next_steps: tuple[str, ...] = ()
    concepts: tuple[ConceptRow, ...] = ()
    concept_threshold: float | None = None
    flagged: tuple[FlaggedPair, ...] = ()
    detectors: tuple[DetectorPanel, ...] = ()
    """The one that decided comes first."""
    map: MapPoints | None = None
    rejected_examples: tuple[RejectedExample, ...] = ()
    truth: Truth | None = None
    settings: dict[str, object] = field(default_factory=dict)
    """The resolved configuration, as in run.yaml: plain values only."""
    versions: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        rejected = sum(self.rejected.values())
        if self.pairs_in != self.verdicts + rejected:
            raise ValueError(f"{self.pairs_in} pairs in, but {self.verdicts} verdicts and {rejected} rejected")
        if len(self.flagged) > self.flagged_pairs:
            raise ValueError(f"{len(self.flagged)} pictures of flagged pairs, but only {self.flagged_pairs} flagged")


# Control characters (but tab and newline) and lone surrogates: the first are invisible, the second cannot be written.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def data_uri(picture: bytes) -> Markup:
    """Return a picture as the value of `src`.

    Raises:
        ValueError: the bytes are neither JPEG nor PNG. Anything else, SVG above all, could carry a script.
    """
    kinds = {b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png"}
    for magic, kind in kinds.items():
        if picture.startswith(magic):
            return Markup(f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}")
    raise ValueError(f"a picture must be JPEG or PNG, this one begins with {picture[:8]!r}")


def shorten(caption: str) -> str:
    """Return the caption, cut at `CAPTION_LIMIT` characters."""
    return caption if len(caption) <= CAPTION_LIMIT else caption[:CAPTION_LIMIT].rstrip() + " …"


def by_frequency(values: list[str]) -> list[str]:
    """Return the distinct values, the most frequent first, then by name."""
    return [value for value, _ in sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))]


@cache
def environment() -> jinja2.Environment:
    """Return the template environment: everything is escaped, and an unknown name is an error, not an empty string."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("stages.report", package_path="."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "count": count,
        "data_uri": data_uri,
        "detector_label": detector_label,
        "duration": duration,
        "percent": percent,
        "reason_label": reason_label,
        "rich": rich,
        "score": score,
        "shorten": shorten,
    }
    return made


def render(report: ScanReport) -> str:
    """Return the page as HTML, to be written as UTF-8. The same report gives the same text, byte for byte."""
    shown = sorted(report.flagged, key=lambda pair: (pair.rank, pair.uid))[:PICTURE_LIMIT]
    concepts = sorted(report.concepts, key=lambda row: (not row.named, -row.statistic, row.name))
    measured = [panel for panel in report.detectors if panel.figures is not None]
    script = files("stages.report").joinpath("wall.html").read_text(encoding="utf-8")
    # The policy names the script by the hash of what stands between its tags.
    body = script.strip().removeprefix("<script>").removesuffix("</script>")
    page = (
        environment()
        .get_template("report.html")
        .render(
            report=report,
            style=Markup(files("stages.report").joinpath("report.css").read_text(encoding="utf-8")),
            script=Markup(f"<script>{body}</script>"),
            script_hash=base64.b64encode(hashlib.sha256(body.encode()).digest()).decode(),
            # The headline counts the flagged pairs of the named concepts; what else the budget let in is no suspect.
            suspects=sum(row.flagged for row in concepts if row.named) or report.flagged_pairs,
            shown=shown,
            reasons=by_frequency([reason for pair in shown for reason in pair.reasons]),
            wall_concepts=by_frequency([pair.concept for pair in shown if pair.concept is not None]),
            concepts=concepts[:CONCEPT_LIMIT],
            hidden_concepts=len(concepts) - len(concepts[:CONCEPT_LIMIT]),
            concept_chart=charts.concept_bars(concepts, report.concept_threshold) if concepts else None,
            histograms=[(panel, charts.histogram(panel)) for panel in report.detectors],
            map_chart=charts.scatter(report.map) if report.map is not None else None,
            measured=measured,
            curve_styles=charts.curve_styles(measured),
            roc_chart=charts.roc_chart(measured),
            pr_chart=charts.pr_chart(measured),
            budgets=sorted(
                {key for panel in measured if panel.figures for key in panel.figures["recall_at"]}, key=float
            ),
            rejected=sorted(report.rejected.items(), key=lambda item: (-item[1], item[0])),
            rejected_total=sum(report.rejected.values()),
            settings=yaml.safe_dump(report.settings, sort_keys=False, allow_unicode=True) if report.settings else "",
        )
    )
    return UNPRINTABLE.sub("�", page)
