"""The page of a bench: the matrix of attacks x detectors as coloured tables, CA against ASR, and ROC curves by attack."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape

from .charts import COLOURED_CURVES, LOWEST_RATE
from .page import fill
from .svg import Axis, coordinate, drawing, frame, line, polyline, text
from .text import detector_label

MEASURES = (
    ("auroc", "AUROC", 0.5),
    ("average_precision", "Average precision", 0.0),
    ("recall_1", "Recall in the 1 % most suspicious pairs", 0.0),
)
"""Name, title, and the value without any colour."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One detector on one attack: fractions, one value a seed."""

    auroc: tuple[float, ...]
    average_precision: tuple[float, ...]
    recall_1: tuple[float, ...]
    """Recall at a review budget of 1 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackLine:
    """One row of the page's first table: an attack or control with one seed."""

    name: str
    seed: int
    control: bool
    state: str
    """admitted, refused, control, failed or unfinished."""
    rate_pct: float | None = None
    clean_accuracy_pct: float | None = None
    asr_pct: float | None = None
    clean_model_asr_pct: float | None = None
    """ASR of the same trigger on a model that was trained without poison."""
    rebound_asr_pct: float | None = None
    flagged: int | None = None
    named: str | None = None
    """Concepts that the scan named as targets."""
    target_named: bool | None = None
    wrong_targets: int | None = None
    note: str | None = None
    """Why it was refused, or what it failed of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchReport:
    """Everything that the page shows."""

    title: str
    min_asr_pct: float
    lines: tuple[AttackLine, ...]
    detectors: tuple[str, ...]
    matrix: dict[str, dict[str, Measured]]
    """Attack -> detector -> figures, in the order of the rows."""
    curves: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """Attack -> detector -> `[K, 2]` float64, false and true positive rate, of the first seed."""
    chance: tuple[float, float] = (0.45, 0.55)
    """AUROC within which a detector must stay on a control."""
    off_chance: tuple[str, ...] = ()
    """What stands outside, a sentence each."""
    settings: dict[str, object] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class HeatCell:
    """A cell of a coloured table."""

    text: str
    style: Markup
    hint: str


def render(report: BenchReport) -> str:
    """Return the page as HTML, to be written as UTF-8. The same report gives the same text, byte for byte."""
    controls = {line.name for line in report.lines if line.control}
    tables = [
        (
            title,
            [
                (attack, attack in controls, _heat_row(report, attack, name, zero, attack in controls))
                for attack in report.matrix
            ],
        )
        for name, title, zero in MEASURES
    ]
    styles = curve_styles(report)
    return fill(
        "bench.html",
        report,
        tables=tables,
        scatter=accuracy_chart(report.lines, report.min_asr_pct),
        styles=styles,
        charts=[(attack, roc_chart(attack, curves, styles)) for attack, curves in report.curves.items()],
    )


def _heat_row(report: BenchReport, attack: str, measure: str, zero: float, control: bool) -> list[HeatCell]:
    found = report.matrix[attack]
    low, high = report.chance
    row = []
    for detector in report.detectors:
        values = getattr(found[detector], measure) if detector in found else ()
        if not values:
            row.append(HeatCell("–", Markup(""), ""))
            continue
        mean = sum(values) / len(values)
        if control:
            # A control has nothing to find: what departs from chance is the colour of an error.
            bad = measure == "auroc" and not low <= mean <= high
            style = _tint("bad", 0.45) if bad else Markup("")
        else:
            share = (mean - zero) / (1 - zero)
            style = _tint("good", 0.55 * share) if share >= 0 else _tint("bad", 0.55 * min(-share, 1))
        hint = f"{len(values)} seeds: {min(values):.3f} to {max(values):.3f}" if len(values) > 1 else ""
        row.append(HeatCell(f"{mean:.3f}", style, hint))
    return row


def _tint(colour: str, share: float) -> Markup:
    return Markup(f"background:color-mix(in srgb, var(--{colour}) {100 * share:.0f}%, transparent)")


def curve_styles(report: BenchReport) -> dict[str, str]:
    """Return the class of each detector's curve: the ensemble and the best of the others in colour, on every chart the same."""
    controls = {line.name for line in report.lines if line.control}
    attacks = [found for attack, found in report.matrix.items() if attack not in controls]

    def quality(name: str) -> float:
        values = [v for found in attacks if name in found for v in found[name].average_precision]
        return sum(values) / len(values) if values else 0.0

    ranked = sorted(report.detectors, key=lambda name: (name != "ensemble", -quality(name), name))
    styles = {name: f"curve-{index}" for index, name in enumerate(ranked[:COLOURED_CURVES])}
    return {name: styles.get(name, "curve-rest") for name in report.detectors}


def roc_chart(attack: str, curves: dict[str, np.ndarray], styles: dict[str, str]) -> Markup:
    """Return the ROC curves of all detectors on one attack, false positives on a logarithmic axis."""
    x = Axis(low=LOWEST_RATE, high=1, start=46, stop=348, log=True)
    y = Axis(low=0, high=1, start=230, stop=28)
    body = [frame(x, y, "clean pairs flagged in error", "poison found", label=lambda value: f"{100 * value:.3g} %")]
    drawn = sorted(curves, key=lambda name: (styles[name], name), reverse=True)
    body += [polyline(np.asarray(curves[name], np.float64), x, y, f"curve {styles[name]}") for name in drawn]
    names = ", ".join(detector_label(name) for name in curves)
    return drawing(366, 272, f"ROC of {attack}: {names}", "".join(body))


def accuracy_chart(lines: Sequence[AttackLine], min_asr_pct: float) -> Markup | None:
    """Return clean accuracy against ASR, one dot a cell, the first seed with its name; None when nothing is measured."""
    shown = [line for line in lines if line.clean_accuracy_pct is not None and line.asr_pct is not None]
    if not shown:
        return None
    accuracies = [point.clean_accuracy_pct or 0.0 for point in shown]
    # Models of one recipe lie within a few points of each other; on an axis from 0 their dots would cover each other.
    low, high = max(0.0, min(accuracies) // 1 - 2), min(100.0, max(accuracies) // 1 + 3)
    x = Axis(low=0, high=100, start=46, stop=700)
    y = Axis(low=low, high=high, start=400, stop=28)
    body = [frame(x, y, "attack success rate", "clean accuracy", label=lambda value: f"{value:g} %")]
    if min_asr_pct < 100:
        body.append(line(x(min_asr_pct), y.start, x(min_asr_pct), y.stop, "cut"))
    taken: list[tuple[float, float]] = []
    for point in sorted(shown, key=lambda p: (-(p.clean_accuracy_pct or 0.0), p.name, p.seed)):
        across, up = x(point.asr_pct or 0.0), y(point.clean_accuracy_pct or 0.0)
        colour = {"admitted": "var(--c0)", "control": "var(--c2)"}.get(point.state, "var(--c1)")
        circle = f'cx="{coordinate(across)}" cy="{coordinate(up)}" r="4" style="fill:{colour}"'
        body.append(f"<circle {circle}><title>{escape(point.name)}, seed {point.seed}</title></circle>")
    for point in {p.name: p for p in reversed(shown)}.values():
        across, level = x(point.asr_pct or 0.0), y(point.clean_accuracy_pct or 0.0) + 4
        # Labels of dots that lie together are moved down, one under the other.
        while any(abs(level - other) < 12 and abs(across - there) < 150 for there, other in taken):
            level += 1
        taken.append((across, level))
        left = across > x(50)
        body.append(text(across + (-9 if left else 9), level, point.name, "tick", "end" if left else "start"))
    height = max(442.0, *(level + 10 for _, level in taken))
    return drawing(716, height, f"Clean accuracy against ASR of {len(shown)} models", "".join(body))
