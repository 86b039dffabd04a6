"""The things that stand in procedural scenes: each one a few polygons in the square [-1, 1], y pointing down."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Paint = Literal["body", "dark", "light", "accent", "ink", "glass"]
"""body: the thing's colour; dark and light: shades of it; accent: a second colour; ink and glass: fixed colours."""


@dataclass(frozen=True, slots=True)
class Part:
    """One filled polygon."""

    points: np.ndarray
    """`[K, 2] float64`, (x, y)."""
    paint: Paint


def _poly(paint: Paint, *points: tuple[float, float]) -> Part:
    return Part(np.array(points, dtype=np.float64), paint)


def _box(paint: Paint, left: float, top: float, right: float, bottom: float) -> Part:
    return _poly(paint, (left, top), (right, top), (right, bottom), (left, bottom))


def _arc(x: float, y: float, rx: float, ry: float, start_deg: float, stop_deg: float, count: int = 24) -> np.ndarray:
    """Return points on an ellipse; 0 degrees is right, 90 degrees is down."""
    angle = np.deg2rad(np.linspace(start_deg, stop_deg, count))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _oval(paint: Paint, x: float, y: float, rx: float, ry: float) -> Part:
    return Part(_arc(x, y, rx, ry, 0, 345), paint)


def _ring(paint: Paint, x: float, y: float, outer: float, inner: float, start_deg: float, stop_deg: float) -> Part:
    edge = [_arc(x, y, outer, outer, start_deg, stop_deg), _arc(x, y, inner, inner, stop_deg, start_deg)]
    return Part(np.concatenate(edge), paint)


def _star(paint: Paint, outer: float, inner: float, tips: int) -> Part:
    angle = np.pi * np.arange(2 * tips) / tips - np.pi / 2
    radius = np.where(np.arange(2 * tips) % 2 == 0, outer, inner)
    return Part(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), paint)


def _heart(paint: Paint, scale: float, dx: float = 0.0, dy: float = 0.0) -> Part:
    t = np.linspace(0, 2 * np.pi, 36)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return Part(np.stack([dx + scale * x / 17, dy + scale * y / 17], axis=1), paint)


def _petals() -> list[Part]:
    ovals = []
    for k in range(6):
        turn = np.pi * k / 3
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        ovals.append(Part(_arc(0.6, 0, 0.4, 0.27, 0, 345) @ rotation, "body" if k % 2 else "light"))
    return ovals


def _moon() -> Part:
    outer = _arc(0, 0, 0.95, 0.95, 50, 310, 30)
    # The inner edge is a circle through the same two tips, with its centre shifted right.
    tip = outer[0]
    centre_x, radius = 0.42, float(np.hypot(tip[0] - 0.42, tip[1]))
    half = np.rad2deg(np.arctan2(tip[1], tip[0] - centre_x))
    return Part(np.concatenate([outer, _arc(centre_x, 0, radius, radius, 360 - half, half, 30)]), "body")


SHAPES: dict[str, tuple[Part, ...]] = {
    "star": (_star("body", 1.0, 0.42, 5), _star("light", 0.5, 0.21, 5)),
    "house": (
        _box("dark", 0.4, -0.9, 0.62, -0.3),
        _box("body", -0.7, -0.15, 0.7, 0.95),
        _poly("accent", (-1.0, -0.1), (0.0, -0.95), (1.0, -0.1)),
        _box("ink", -0.15, 0.4, 0.2, 0.95),
        _box("glass", -0.55, 0.1, -0.25, 0.4),
        _box("glass", 0.3, 0.1, 0.58, 0.4),
    ),
    "tree": (
        _box("ink", -0.13, 0.4, 0.13, 1.0),
        _poly("dark", (-0.85, 0.6), (0.0, -0.1), (0.85, 0.6)),
        _poly("body", (-0.7, 0.15), (0.0, -0.6), (0.7, 0.15)),
        _poly("light", (-0.52, -0.3), (0.0, -1.0), (0.52, -0.3)),
    ),
    "fish": (
        _poly("dark", (0.45, 0.0), (1.0, -0.5), (0.88, 0.0), (1.0, 0.5)),
        _poly("accent", (-0.25, -0.35), (0.15, -0.72), (0.35, -0.25)),
        _oval("body", -0.2, 0.0, 0.78, 0.45),
        _poly("accent", (-0.1, 0.1), (0.25, -0.02), (0.2, 0.28)),
        _oval("light", -0.62, -0.1, 0.16, 0.16),
        _oval("ink", -0.64, -0.1, 0.08, 0.08),
    ),
    "cup": (
        _ring("body", 0.55, 0.05, 0.42, 0.22, -90, 90),
        _poly("body", (-0.75, -0.6), (0.6, -0.6), (0.45, 0.8), (-0.6, 0.8)),
        _oval("light", -0.075, -0.6, 0.675, 0.18),
        _oval("ink", -0.075, -0.58, 0.55, 0.12),
        _poly("accent", (-0.7, -0.12), (0.548, -0.12), (0.52, 0.14), (-0.672, 0.14)),
    ),
    "car": (
        _poly("body", (-0.55, 0.0), (-0.38, -0.48), (0.28, -0.48), (0.6, 0.0)),
        _poly("glass", (-0.42, -0.02), (-0.3, -0.36), (-0.07, -0.36), (-0.07, -0.02)),
        _poly("glass", (0.03, -0.02), (0.03, -0.36), (0.22, -0.36), (0.44, -0.02)),
        _poly("body", (-1.0, 0.05), (-0.9, -0.05), (0.85, -0.05), (1.0, 0.12), (1.0, 0.42), (-1.0, 0.42)),
        _box("dark", -1.0, 0.3, 1.0, 0.42),
        _oval("ink", -0.52, 0.42, 0.25, 0.25),
        _oval("light", -0.52, 0.42, 0.11, 0.11),
        _oval("ink", 0.55, 0.42, 0.25, 0.25),
        _oval("light", 0.55, 0.42, 0.11, 0.11),
    ),
    "sailboat": (
        _box("ink", -0.06, -1.0, 0.04, 0.5),
        _poly("accent", (0.1, -0.9), (0.85, 0.3), (0.1, 0.3)),
        _poly("light", (-0.12, -0.7), (-0.75, 0.3), (-0.12, 0.3)),
        _poly("body", (-1.0, 0.42), (1.0, 0.42), (0.65, 0.9), (-0.65, 0.9)),
    ),
    "moon": (_moon(), _oval("dark", -0.68, -0.1, 0.12, 0.12), _oval("dark", -0.45, 0.5, 0.09, 0.09)),
    "flower": (
        _poly("ink", (-0.05, 0.2), (0.05, 0.2), (0.07, 1.0), (-0.07, 1.0)),
        *(Part(part.points * 0.85 + np.array([0.0, -0.15]), part.paint) for part in _petals()),
        _oval("accent", 0.0, -0.15, 0.27, 0.27),
    ),
    "key": (
        _ring("body", -0.58, 0.0, 0.42, 0.2, 0, 360),
        _box("body", -0.2, -0.1, 1.0, 0.1),
        _box("body", 0.82, 0.05, 1.0, 0.45),
        _box("body", 0.5, 0.05, 0.66, 0.36),
        _box("light", -0.2, -0.1, 1.0, -0.03),
    ),
    "mushroom": (
        _poly("glass", (-0.26, 0.0), (0.26, 0.0), (0.36, 0.95), (-0.36, 0.95)),
        Part(np.concatenate([_arc(0, 0.12, 0.95, 0.95, 180, 360), _arc(0, 0.12, 0.95, 0.18, 0, 180)]), "body"),
        _oval("glass", -0.45, -0.22, 0.19, 0.16),
        _oval("glass", 0.12, -0.5, 0.18, 0.14),
        _oval("glass", 0.55, -0.1, 0.15, 0.15),
    ),
    "umbrella": (
        _box("ink", -0.05, -1.0, 0.05, 0.75),
        _ring("ink", 0.17, 0.72, 0.22, 0.12, 0, 180),
        Part(_arc(0, 0.1, 1.0, 0.95, 180, 360), "body"),
        Part(np.concatenate([_arc(0, 0.1, 0.36, 0.95, 180, 360), _arc(0, 0.1, 0.36, 0.08, 0, -180)]), "accent"),
    ),
    "heart": (_heart("body", 1.0), _heart("light", 0.32, -0.4, -0.35)),
    "bell": (
        _oval("dark", 0.0, 0.68, 0.2, 0.22),
        _ring("dark", 0.0, -0.78, 0.2, 0.1, 0, 360),
        Part(
            np.concatenate(
                [_arc(0, -0.1, 0.55, 0.6, 180, 360), np.array([(0.6, 0.3), (0.9, 0.6), (-0.9, 0.6), (-0.6, 0.3)])]
            ),
            "body",
        ),
        _poly("accent", (-0.66, 0.36), (0.66, 0.36), (0.9, 0.6), (-0.9, 0.6)),
        _poly("light", (-0.34, -0.3), (-0.2, -0.4), (-0.28, 0.3), (-0.42, 0.3)),
    ),
    "rocket": (
        _poly("accent", (-0.2, 0.65), (0.2, 0.65), (0.0, 1.0)),
        _poly("dark", (-0.3, 0.05), (-0.65, 0.7), (-0.28, 0.62)),
        _poly("dark", (0.3, 0.05), (0.65, 0.7), (0.28, 0.62)),
        _poly(
            "body", (0.0, -1.0), (0.22, -0.65), (0.34, -0.2), (0.3, 0.68), (-0.3, 0.68), (-0.34, -0.2), (-0.22, -0.65)
        ),
        _poly("accent", (0.0, -1.0), (0.22, -0.65), (-0.22, -0.65)),
        _oval("glass", 0.0, -0.15, 0.18, 0.18),
    ),
    "butterfly": (
        _oval("body", -0.52, -0.38, 0.48, 0.44),
        _oval("body", 0.52, -0.38, 0.48, 0.44),
        _oval("accent", -0.42, 0.42, 0.36, 0.4),
        _oval("accent", 0.42, 0.42, 0.36, 0.4),
        _oval("light", -0.58, -0.4, 0.2, 0.2),
        _oval("light", 0.58, -0.4, 0.2, 0.2),
        _oval("ink", 0.0, 0.0, 0.1, 0.75),
    ),
}
"""Name of the thing -> its parts, painted in this order."""

CONCEPTS = tuple(SHAPES)
"""The names in a fixed order; a scene's label is an index into it."""
