"""The report's charts as inline SVG: small, sharp at any size, light and dark with the page, the same on every run."""

import math

import numpy as np
from markupsafe import Markup

from .content import ConceptRow, DetectorPanel, MapPoints
from .svg import Axis, coordinate, dots, drawing, frame, line, polyline, text
from .text import count, detector_label, score

CONCEPT_BARS = 16
LOWEST_RATE = 1e-4
"""Left end of the ROC's axis: a reviewer who reads one pair in a thousand never sees the right half of a linear one."""
COLOURED_CURVES = 5


def histogram(panel: DetectorPanel) -> Markup:
    """Return the distribution of one detector's scores: pairs by score, counted on a logarithmic axis."""
    width, height = 340, 214
    edges = np.asarray(panel.edges, dtype=np.float64)
    x = Axis(low=float(edges[0]), high=float(edges[-1]), start=46, stop=width - 12)
    # From one half, so that a bin with a single pair still has a bar.
    most = max(10, int(panel.counts.max(initial=0)))
    y = Axis(low=0.5, high=10 ** math.ceil(math.log10(most)), start=height - 42, stop=26, log=True)
    body = [frame(x, y, "score, more suspicious to the right", "pairs", x_about=4)]
    layers = [("bar-all", panel.counts), ("bar-flagged", panel.flagged)]
    body += [_bars(edges, values, x, y, kind) for kind, values in layers]
    if panel.poisoned is not None:
        body.append(_outline(edges, panel.poisoned, x, y))
    if panel.cut is not None and edges[0] <= panel.cut <= edges[-1]:
        body.append(line(x(panel.cut), y.start, x(panel.cut), y.stop, "cut"))
        anchor = "end" if x(panel.cut) > width / 2 else "start"
        body.append(text(x(panel.cut) + (-5 if anchor == "end" else 5), y.stop + 9, "cut", "mark", anchor))
    label = f"Histogram of {detector_label(panel.name)}: {count(int(panel.counts.sum()))} pairs, "
    return drawing(width, height, label + f"{count(int(panel.flagged.sum()))} of them flagged", "".join(body))


def _bars(edges: np.ndarray, values: np.ndarray, x: Axis, y: Axis, kind: str) -> str:
    boxes = []
    for left, right, value in zip(edges[:-1].tolist(), edges[1:].tolist(), values.tolist(), strict=True):
        if value > 0:
            start, top = coordinate(x(left)), coordinate(y(value))
            boxes.append(f"M{start} {coordinate(y.start)}V{top}H{coordinate(x(right))}V{coordinate(y.start)}z")
    return f'<path class="{kind}" d="{"".join(boxes)}"/>' if boxes else ""


def _outline(edges: np.ndarray, values: np.ndarray, x: Axis, y: Axis) -> str:
    """Return the steps of a histogram without its fill, so that the bars behind stay visible."""
    steps = [f"M{coordinate(x(float(edges[0])))} {coordinate(y.start)}"]
    for right, value in zip(edges[1:].tolist(), values.tolist(), strict=True):
        steps.append(f"V{coordinate(y(value))}H{coordinate(x(right))}")
    return f'<path class="line-poisoned" d="{"".join(steps)}V{coordinate(y.start)}"/>'


def scatter(points: MapPoints) -> Markup:
    """Return the embedding map; rings are what the scan flagged, filled dots what the manifest calls poisoned."""
    side, margin = 620.0, 14.0
    xy = np.asarray(points.xy, dtype=np.float64).reshape(-1, 2)
    flagged = np.asarray(points.flagged, dtype=bool)
    accused = np.asarray(points.accused, dtype=bool)
    poisoned = np.zeros(len(xy), dtype=bool) if points.poisoned is None else np.asarray(points.poisoned, dtype=bool)
    low, high = (xy.min(axis=0), xy.max(axis=0)) if len(xy) else (np.zeros(2), np.ones(2))
    # One scale for both axes: a distance must look the same in every direction.
    extent = max(float((high - low).max()), 1e-9)
    placed = margin + (xy - low) / extent * (side - 2 * margin)
    width, height = (2 * margin + (high - low) / extent * (side - 2 * margin)).tolist()
    layers = (
        ("dot-all", ~accused & ~poisoned & ~flagged),
        ("dot-accused", accused & ~poisoned & ~flagged),
        ("dot-halo", flagged),
        ("dot-core", flagged & ~poisoned),
        ("dot-poisoned", poisoned),
    )
    body = "".join(dots(placed[keep, 0], height - placed[keep, 1], kind) for kind, keep in layers)
    label = f"Map of {count(len(xy))} images, {count(int(flagged.sum()))} of them flagged"
    return drawing(max(width, 320), max(height, 200), label, body)


def concept_bars(rows: list[ConceptRow], threshold: float | None) -> Markup:
    """Return the largest group statistics, in the order given, with the threshold above which a concept is named."""
    rows = [row for row in rows if math.isfinite(row.statistic)][:CONCEPT_BARS]
    width, step, left, top = 500, 26, 150, 12
    values = [row.statistic for row in rows] + ([threshold] if threshold is not None else [])
    bottom = top + step * len(rows)
    low, high = min([0.0, *values]), max([0.0, *values])
    x = Axis(low=low, high=high if high > low else low + 1, start=left, stop=width - 62)
    body = []
    for value in x.ticks(4):
        body += [line(x(value), top, x(value), bottom, "grid"), text(x(value), bottom + 17, score(value))]
    for index, row in enumerate(rows):
        middle = top + step * (index + 0.5)
        kind = "bar-named" if row.named else "bar-concept"
        name = row.name if len(row.name) <= 22 else row.name[:21].rstrip() + "…"
        start, stop = sorted((x(0), x(row.statistic)))
        body.append(text(left - 10, middle + 4, name, "label-named" if row.named else "label", "end"))
        body.append(
            f'<rect class="{kind}" x="{coordinate(start)}" y="{coordinate(middle - 8)}" '
            f'width="{coordinate(max(stop - start, 1))}" height="16" rx="2"/>'
        )
        body.append(text(stop + 7, middle + 4, score(row.statistic), "label-named" if row.named else "tick", "start"))
    if threshold is not None:
        body.append(line(x(threshold), top - 6, x(threshold), bottom, "cut"))
    body.append(text((x.start + x.stop) / 2, bottom + 34, "share beyond the gap; right of the line: named", "title"))
    return drawing(width, bottom + 42, f"Group statistic of {len(rows)} concepts", "".join(body))


def curve_styles(panels: list[DetectorPanel]) -> dict[str, str]:
    """Return the class of each detector's curve: the first and the best of the others in colour, the rest grey."""
    if not panels:
        return {}
    precision = {panel.name: panel.figures["average_precision"] for panel in panels if panel.figures is not None}
    ranked = sorted((panel.name for panel in panels[1:]), key=lambda name: (-precision.get(name, 0.0), name))
    chosen = [panels[0].name, *ranked[: COLOURED_CURVES - 1]]
    styles = {name: f"curve-{index}" for index, name in enumerate(chosen)}
    return styles | {panel.name: "curve-rest" for panel in panels if panel.name not in styles}


def roc_chart(panels: list[DetectorPanel]) -> Markup | None:
    """Return the ROC curves, false positives on a logarithmic axis; None when no panel has one."""
    x = Axis(low=LOWEST_RATE, high=1, start=46, stop=448, log=True)
    curves = {panel.name: panel.roc for panel in panels if panel.roc is not None}
    return _curves(panels, curves, x, "clean pairs flagged in error", "poison found")


def pr_chart(panels: list[DetectorPanel]) -> Markup | None:
    """Return the precision-recall curves; None when no panel has one."""
    x = Axis(low=0, high=1, start=46, stop=448)
    curves = {panel.name: panel.pr for panel in panels if panel.pr is not None}
    return _curves(panels, curves, x, "poison found", "flagged pairs that are poison")


def _curves(
    panels: list[DetectorPanel], curves: dict[str, np.ndarray], x: Axis, x_title: str, y_title: str
) -> Markup | None:
    if not curves:
        return None
    y = Axis(low=0, high=1, start=300, stop=28)
    styles = curve_styles(panels)
    body = [frame(x, y, x_title, y_title, label=lambda value: f"{100 * value:.3g} %")]
    # The first panel is drawn last, on top of the others.
    drawn = sorted(curves, key=lambda name: styles[name], reverse=True)
    body += [polyline(np.asarray(curves[name], dtype=np.float64), x, y, f"curve {styles[name]}") for name in drawn]
    names = ", ".join(detector_label(name) for name in curves)
    return drawing(466, 342, f"{y_title} against {x_title} for {names}; the table has the figures", "".join(body))
