"""The page of a sweep: what each trial came to, the Pareto front, and what the recommended model does on unseen pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape

from .page import fill
from .svg import Axis, coordinate, drawing, frame, line, polyline, text

OBJECTIVES = {
    "proven": "attack success of the proven triggers",
    "canary": "attack success of the canary",
    "resistivity": "lost to small perturbations",
}
COLOURS = {"finished": "var(--c0)", "stopped": "var(--rest)"}
PALETTE = "--c0:#1f5fc4;--c1:#d2500a;--rest:#b9c3cf;--ink:#1b2430;--soft:#5b6673;--edge:#dde3ea"
"""Colours of the chart where it stands without the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialLine:
    """One row of the table. Figures are those of the trial's last measurement, None where there is none."""

    number: int
    state: str
    """finished, stopped or failed."""
    settings: tuple[str, ...]
    steps: int
    steps_planned: int
    objective_pct: float | None
    accuracy_pct: float | None
    resistivity: float | None
    true_asr_pct: float | None
    """Of the real attack, where a benchmark gave it."""
    on_front: bool
    recommended: bool
    error: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepReport:
    """Everything that the page shows."""

    title: str
    objective: str
    """proven, canary or resistivity."""
    labelled: bool
    """Whether accuracy is zero-shot accuracy; else it is retrieval R@1."""
    rule: str
    max_loss_points: float
    before: Mapping[str, float]
    """Figures of the suspect model on the pictures of the trials."""
    settings_names: tuple[str, ...]
    lines: tuple[TrialLine, ...]
    final_before: Mapping[str, float]
    final_after: Mapping[str, float] | None
    """Figures of the recommended model on pictures that no trial saw; None: none is recommended."""
    settings: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    seconds: float = 0.0

    @property
    def accuracy(self) -> str:
        return "clean accuracy" if self.labelled else "retrieval R@1"

    @property
    def recommended(self) -> TrialLine | None:
        return next((line for line in self.lines if line.recommended), None)


def render(report: SweepReport) -> str:
    """Return the page as HTML, to be written as UTF-8. The same report gives the same text, byte for byte."""
    states = [line.state for line in report.lines]
    after = report.final_after or {}
    return fill(
        "sweep.html",
        report,
        chart=front_chart(report),
        counts={state: states.count(state) for state in ("finished", "stopped", "failed")},
        steps=sum(line.steps for line in report.lines),
        share=sum(line.steps for line in report.lines) / max(1, sum(line.steps_planned for line in report.lines)),
        truth=any(line.true_asr_pct is not None for line in report.lines),
        figures=[(_words(name, report), report.final_before[name], after[name], name) for name in after],
        words=OBJECTIVES[report.objective],
    )


def _words(name: str, report: SweepReport) -> str:
    if name == "accuracy_pct":
        return report.accuracy.capitalize()
    if name == "resistivity":
        return "Perturbation resistivity"
    if name == "true_asr_pct":
        return "ASR of the real trigger"
    trigger = name.removesuffix("_asr_pct")
    return "ASR of the canary" if trigger == "canary" else f"ASR of proven trigger {trigger.removeprefix('proven_')}"


def front_chart(report: SweepReport) -> Markup | None:
    """Return accuracy against the objective, a dot a trial and the front as a staircase; None when nothing is measured."""
    shown = [line for line in report.lines if line.objective_pct is not None and line.accuracy_pct is not None]
    if not shown:
        return None
    floor = report.before["accuracy_pct"] - report.max_loss_points
    levels = [report.before["accuracy_pct"], floor, *(line.accuracy_pct or 0.0 for line in shown)]
    low, high = max(0.0, min(levels) // 1 - 1), min(100.0, max(levels) // 1 + 2)
    x = Axis(low=0, high=100, start=46, stop=700)
    y = Axis(low=low, high=high, start=400, stop=28)
    body = [frame(x, y, OBJECTIVES[report.objective], report.accuracy, label=lambda value: f"{value:g} %")]
    body.append(line(x.start, y(floor), x.stop, y(floor), "cut"))
    front = sorted((p.objective_pct or 0.0, p.accuracy_pct or 0.0) for p in shown if p.on_front)
    if front:
        corners = [front[0]]
        for across, up in front[1:]:
            corners += [(across, corners[-1][1]), (across, up)]
        body.append(polyline(np.array(corners), x, y, "curve curve-1"))
    for point in sorted(shown, key=lambda p: (p.on_front, p.recommended, p.number)):
        across, up = x(point.objective_pct or 0.0), y(point.accuracy_pct or 0.0)
        colour = "var(--c1)" if point.on_front else COLOURS.get(point.state, "var(--rest)")
        ring = ";stroke:var(--ink);stroke-width:2" if point.recommended else ""
        circle = f'cx="{coordinate(across)}" cy="{coordinate(up)}" r="{6 if point.recommended else 4}"'
        body.append(f'<circle {circle} style="fill:{colour}{ring}"><title>trial {point.number}</title></circle>')
    best = report.recommended
    if best is not None and best in shown:
        across, up = x(best.objective_pct or 0.0), y(best.accuracy_pct or 0.0)
        left = across > x(50)
        body.append(
            text(across + (-12 if left else 12), up + 4, f"trial {best.number}", "label", "end" if left else "start")
        )
    return drawing(
        716, 442, f"Pareto front of {len(shown)} trials: {escape(report.accuracy)} against the objective", "".join(body)
    )


def front_picture(report: SweepReport) -> str:
    """Return the chart as an SVG file of its own; an empty drawing when nothing is measured."""
    chart = front_chart(report) or drawing(716, 442, "no trial was measured", "")
    style = (
        f"svg{{{PALETTE};background:#fff;font-family:sans-serif}}text{{font-size:11px;fill:var(--soft)}}"
        ".label{font-size:13px;fill:var(--ink)}.grid{stroke:var(--edge)}.axis{stroke:var(--soft)}"
        ".cut{stroke:var(--ink);stroke-dasharray:4 3}.curve{fill:none;stroke:var(--c1);stroke-width:2}"
    )
    named = str(chart).replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    opened, _, rest = named.partition(">")
    return f"{opened}><style>{style}</style>{rest}\n"
