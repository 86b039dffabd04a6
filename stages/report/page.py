"""The page that shows a scan: one HTML file, nothing loaded from anywhere.

Captions, keys and concept names come from strangers. They reach the page only as escaped text, the page's policy
allows no script but its own (by hash) and no request at all, and characters that could reorder or break the text
around them are isolated or replaced.
"""

import base64
import hashlib
import re
from collections import Counter
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from . import charts
from .content import ScanReport
from .text import count, detector_label, duration, kind_label, percent, reason_label, rich, score

PICTURE_LIMIT = 200
"""Pictures on the wall: at about 12 kB each the page stays below 5 MB."""
CONCEPT_LIMIT = 50
CAPTION_LIMIT = 400
"""Characters of a caption that are shown; the rest is in verdicts/."""


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
        loader=jinja2.PackageLoader("clipsan.stages.report", package_path="."),
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
        "kind_label": kind_label,
        "percent": percent,
        "reason_label": reason_label,
        "rich": rich,
        "score": score,
        "shorten": shorten,
    }
    return made


def fill(template: str, report: Any, **values: object) -> str:
    """Return the page of a report from its template, with the style sheet; nothing in it is unprintable.

    `report.settings` is the resolved configuration of the run, as plain values.
    """
    style = files("clipsan.stages.report").joinpath("report.css").read_text(encoding="utf-8")
    settings = yaml.safe_dump(dict(report.settings), sort_keys=False, allow_unicode=True) if report.settings else ""
    page = environment().get_template(template).render(report=report, style=Markup(style), settings=settings, **values)
    return UNPRINTABLE.sub("�", page)


def render(report: ScanReport) -> str:
    """Return the page as HTML, to be written as UTF-8. The same report gives the same text, byte for byte."""
    shown = sorted(report.flagged, key=lambda pair: (pair.rank, pair.uid))[:PICTURE_LIMIT]
    concepts = sorted(report.concepts, key=lambda row: (not row.named, -row.statistic, row.name))
    measured = [panel for panel in report.detectors if panel.figures is not None]
    script = files("clipsan.stages.report").joinpath("wall.html").read_text(encoding="utf-8")
    # The policy names the script by the hash of what stands between its tags.
    body = script.strip().removeprefix("<script>").removesuffix("</script>")
    return fill(
        "report.html",
        report,
        script=Markup(f"<script>{body}</script>"),
        script_hash=base64.b64encode(hashlib.sha256(body.encode()).digest()).decode(),
        # The headline counts the flagged pairs of the named concepts; what else the budget let in is no suspect.
        suspects=sum(row.flagged for row in concepts if row.named) or report.flagged_pairs,
        shown=shown,
        reasons=by_frequency([reason for pair in shown for reason in pair.reasons]),
        wall_concepts=by_frequency([pair.concept for pair in shown if pair.concept is not None]),
        proven=(proven := [panel for panel in report.dossiers if panel.proven]),
        proven_targets=list(dict.fromkeys(target for panel in proven for target in panel.targets)),
        proven_pairs=sum(panel.pairs if panel.carriers is None else panel.carriers for panel in proven),
        wall_verdicts=by_frequency([pair.verdict for pair in shown if pair.verdict is not None]),
        concepts=concepts[:CONCEPT_LIMIT],
        hidden_concepts=len(concepts) - len(concepts[:CONCEPT_LIMIT]),
        concept_chart=charts.concept_bars(concepts, report.concept_threshold) if concepts else None,
        histograms=[(panel, charts.histogram(panel)) for panel in report.detectors],
        map_chart=charts.scatter(report.map) if report.map is not None else None,
        measured=measured,
        curve_styles=charts.curve_styles(measured),
        roc_chart=charts.roc_chart(measured),
        pr_chart=charts.pr_chart(measured),
        budgets=sorted({key for panel in measured if panel.figures for key in panel.figures["recall_at"]}, key=float),
        rejected=sorted(report.rejected.items(), key=lambda item: (-item[1], item[0])),
        rejected_total=sum(report.rejected.values()),
    )
