"""A measured figure with its unit and interval, and the tidy table of them.

Percent and fraction cannot be mixed up: a `*_pct` figure is made in one place, `rate`, from hits and trials; every
figure's value and interval are checked against the range of its unit; and `check_units` goes over a whole summary.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from .intervals import bootstrap_interval, rate_interval

FigureUnit = Literal["pct", "fraction", "cosine", "count"]

RANGES: dict[FigureUnit, tuple[float, float]] = {
    "pct": (0.0, 100.0),
    "fraction": (0.0, 1.0),
    "cosine": (-1.0, 1.0),
    "count": (0.0, math.inf),
}
ROUNDING = 1e-6
"""How far a float32 cosine may stand outside its range."""

FRACTIONS = ("auroc", "average_precision", "recall_at", "precision_at", "fpr95")
"""Names in summaries that hold fractions, or mappings to fractions."""

FIGURES_SCHEMA = pa.schema(
    [
        ("figure", pa.string()),
        ("value", pa.float64()),
        ("unit", pa.string()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("n", pa.int64()),
        ("strand", pa.string()),
        ("set", pa.string()),
    ]
)
"""One row a figure; low and high are the 95 % interval, null where there is none."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure."""

    figure: str
    """Name; ends in _pct where the unit is percent, and only there."""
    value: float
    unit: FigureUnit
    low: float | None = None
    """Lower end of the 95 % interval, in the same unit."""
    high: float | None = None
    """Upper end."""
    n: int = 0
    """Images (or captions) that it was measured on."""
    strand: str = ""
    """Which trigger and target, where the figure is of one of several; "" for all of them."""
    set: str = ""
    """What it was measured on: "test", "retrieval", a layer, ..."""

    def __post_init__(self) -> None:
        if self.figure.endswith("_pct") != (self.unit == "pct"):
            raise ValueError(f"{self.figure}: a name ends in _pct if and only if the unit is pct, not {self.unit}")
        for value in (self.value, self.low, self.high):
            if value is not None:
                _check_range(self.figure, value, *RANGES[self.unit])


def rate(
    name: str, hits: np.ndarray, trials: np.ndarray | None = None, *, strand: str = "", set: str = "test"
) -> Figure:
    """Return the figure `NAME_pct` with the interval of `rate_interval`; the only place where percent are made.

    Args:
        name: without _pct.
        hits: `[N] bool`; or with `trials`, whole numbers: the successes of each image.
        trials: `[N]` whole numbers, trials of each image; None: one each.
        strand: see Figure.
        set: see Figure.

    Raises:
        ValueError: there is no trial, or `hits` are neither booleans nor counts with their trials.
    """
    if trials is None:
        if hits.dtype != np.bool_:
            raise ValueError(f"{name}: a rate is made from booleans or from counts, not from {hits.dtype}")
        trials = np.ones(len(hits), np.int64)
    elif not (np.issubdtype(hits.dtype, np.integer) and np.issubdtype(trials.dtype, np.integer)):
        raise ValueError(f"{name}: hits and trials must be whole numbers, not {hits.dtype} and {trials.dtype}")
    if not trials.sum():
        raise ValueError(f"{name}: there are no images")
    low, high = rate_interval(hits, trials)
    share = float(hits.sum() / trials.sum())
    return Figure(f"{name}_pct", 100 * share, "pct", 100 * low, 100 * high, int((trials > 0).sum()), strand, set)


def mean_cosine(name: str, cosines: np.ndarray, *, strand: str = "", set: str = "test", seed: int = 0) -> Figure:
    """Return the mean of `[N]` cosines with its percentile bootstrap interval over the images.

    Raises:
        ValueError: there are none.
    """
    if not len(cosines):
        raise ValueError(f"{name}: there are no images")
    values = cosines.astype(np.float64)
    low, high = bootstrap_interval(lambda rows: float(rows.mean()), values, seed=seed)
    return Figure(name, float(values.mean()), "cosine", low, high, len(values), strand, set)


def count(name: str, value: int, *, strand: str = "", set: str = "test") -> Figure:
    """Return a figure that is a number of things."""
    return Figure(name, float(value), "count", n=value, strand=strand, set=set)


def as_summary(figures: Sequence[Figure]) -> dict[str, Any]:
    """Return name -> value and name_ci95 -> [low, high]; counts are whole numbers.

    Raises:
        ValueError: two figures have the same name.
    """
    summary: dict[str, Any] = {}
    for found in figures:
        if found.figure in summary:
            raise ValueError(f"there are two figures {found.figure}")
        summary[found.figure] = int(found.value) if found.unit == "count" else found.value
        if found.low is not None:
            summary[f"{found.figure}_ci95"] = [found.low, found.high]
    return summary


def as_table(figures: Sequence[Figure]) -> pa.Table:
    """Return the tidy table, FIGURES_SCHEMA."""
    return pa.Table.from_pylist([asdict(found) for found in figures], schema=FIGURES_SCHEMA)


def as_json(figures: Sequence[Figure]) -> str:
    """Return the same table as JSON records, a line each."""
    lines = (json.dumps(asdict(found), ensure_ascii=False, allow_nan=False) for found in figures)
    return "[\n" + ",\n".join(lines) + "\n]\n"


def check_units(tree: Any, where: str = "") -> None:
    """Check every percentage (`*_pct`, `*_pct_ci95`) and every known fraction of a summary against its range.

    Raises:
        ValueError: a percentage outside [0, 100] or a fraction outside [0, 1]; the message names the path.
    """
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            path, plain = f"{where}{name}", str(name).removesuffix("_ci95")
            if plain.endswith("_pct"):
                _check_all(path, value, *RANGES["pct"])
            elif plain in FRACTIONS:
                _check_all(path, value, *RANGES["fraction"])
            else:
                check_units(value, f"{path}.")
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            check_units(value, f"{where}{index}.")


def _check_all(path: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, Mapping):
        for name, part in value.items():
            _check_all(f"{path}.{name}", part, low, high)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _check_all(path, part, low, high)
    elif value is not None:
        _check_range(path, value, low, high)


def _check_range(path: str, value: float, low: float, high: float) -> None:
    if not low - ROUNDING <= value <= high + ROUNDING:
        raise ValueError(f"{path}: {value} is outside [{low:g}, {high:g}]")
