"""The few SVG primitives that the report's charts need. Colours come from the page's style sheet, by class."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """Maps values to one coordinate of the drawing, linearly or by decades; values outside are clipped to the ends."""

    low: float
    high: float
    start: float
    """Coordinate of `low`."""
    stop: float
    """Coordinate of `high`."""
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"an axis needs low < high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic axis needs low > 0, got {self.low}")

    def __call__(self, value: float) -> float:
        clipped = min(max(value, self.low), self.high)
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        part = ((math.log(clipped) if self.log else clipped) - low) / (high - low)
        return self.start + part * (self.stop - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Return round values inside the axis: powers of ten (thinned to about `about`), or steps of 1, 2 or 5."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, math.ceil((last - first) / about))
            return [10.0**power for power in range(first, last + 1, step)]
        raw = (self.high - self.low) / about
        decade = 10.0 ** math.floor(math.log10(raw))
        width = next(factor * decade for factor in (1, 2, 5, 10) if factor * decade >= raw * 0.999)
        first, last = math.ceil(self.low / width - 1e-9), math.floor(self.high / width + 1e-9)
        return [round(index * width, 12) for index in range(first, last + 1)]


def coordinate(value: float) -> str:
    """Return a coordinate with at most one decimal: a tenth of a pixel is enough, and it keeps the page small."""
    short = f"{value:.1f}".removesuffix(".0")
    return "0" if short == "-0" else short


def tick_label(value: float) -> str:
    """Return an axis label: thousands separated, large powers as 1e6, no trailing zeros."""
    if value == 0:
        return "0"
    if 1 <= abs(value) < 1e6:
        return f"{value:,.2f}".rstrip("0").rstrip(".")
    return f"{value:.3g}"


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line."""
    x1_, y1_, x2_, y2_ = map(coordinate, (x1, y1, x2, y2))
    return f'<line class="{kind}" x1="{x1_}" y1="{y1_}" x2="{x2_}" y2="{y2_}"/>'


def text(x: float, y: float, content: str, kind: str = "tick", anchor: str = "middle") -> str:
    """Return a text element; the content is escaped."""
    return (
        f'<text class="{kind}" x="{coordinate(x)}" y="{coordinate(y)}" text-anchor="{anchor}">{escape(content)}</text>'
    )


def dots(xs: Iterable[float], ys: Iterable[float], kind: str) -> str:
    """Return points as one path of zero-length strokes with round caps: a tenth of the bytes of circles."""
    moves = "".join(f"M{coordinate(x)} {coordinate(y)}h0" for x, y in zip(xs, ys, strict=True))
    return f'<path class="{kind}" d="{moves}"/>' if moves else ""


def polyline(points: np.ndarray, x: Axis, y: Axis, kind: str) -> str:
    """Return a curve through `points` ([K, 2] float, NaN-free) without the points that nobody can see."""
    drawn: list[tuple[str, str]] = []
    for across, up in points.tolist():
        point = (coordinate(x(across)), coordinate(y(up)))
        if drawn and point == drawn[-1]:
            continue
        # A staircase only needs its corners.
        if len(drawn) > 1 and any(drawn[-2][axis] == drawn[-1][axis] == point[axis] for axis in (0, 1)):
            drawn[-1] = point
        else:
            drawn.append(point)
    return f'<path class="{kind}" d="M{"L".join(" ".join(point) for point in drawn)}"/>' if drawn else ""


def frame(
    x: Axis, y: Axis, x_title: str, y_title: str, *, label: Callable[[float], str] = tick_label, x_about: int = 5
) -> str:
    """Return grid lines, tick labels and axis titles of a chart; about `x_about` ticks below."""
    parts = []
    for value in y.ticks(4):
        parts += [
            line(x.start, y(value), x.stop, y(value), "grid"),
            text(x.start - 6, y(value) + 4, label(value), anchor="end"),
        ]
    for value in x.ticks(x_about):
        parts += [line(x(value), y.start, x(value), y.start + 4, "axis"), text(x(value), y.start + 17, label(value))]
    parts.append(line(x.start, y.start, x.stop, y.start, "axis"))
    parts.append(text((x.start + x.stop) / 2, y.start + 34, x_title, "title"))
    parts.append(text(x.start - 6, y.stop - 10, y_title, "title", "start"))
    return "".join(parts)


def drawing(width: float, height: float, label: str, body: str) -> Markup:
    """Return the whole element. `label` is what a screen reader says in its place."""
    size = f"0 0 {coordinate(width)} {coordinate(height)}"
    return Markup(f'<svg viewBox="{size}" role="img" aria-label="{escape(label)}">{body}</svg>')
