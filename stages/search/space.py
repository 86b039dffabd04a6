"""Search spaces: what a setting may be, points drawn from them, and the full grid. Plain maths, no tuner."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pydantic

from ..stage import config

Value = bool | int | float | str | None
Point = dict[str, Any]
"""Setting, as a dotted path -> its value."""


@config
class Choice:
    """One of some values, all equally likely; kind `grid` says that it is meant for a grid search, which takes all of them."""

    kind: Literal["choice", "grid"] = "choice"
    values: tuple[Value, ...]
    """In order."""

    def __post_init__(self) -> None:
        _check_values(self.values)

    def draw(self, share: float) -> Value:
        """Return the value at a share in [0, 1)."""
        return self.values[int(share * len(self.values))]

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that are tried for validity before anything runs."""
        return self.values


@config
class Uniform:
    """A real number, every interval of one length equally likely."""

    kind: Literal["uniform"] = "uniform"
    low: float
    """Least value."""
    high: float
    """Greatest value."""

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)

    def draw(self, share: float) -> float:
        """Return the value at a share in [0, 1)."""
        return self.low + share * (self.high - self.low)

    @property
    def ends(self) -> tuple[float, ...]:
        """Values that are tried for validity before anything runs."""
        return (self.low, self.high)


@config
class LogUniform:
    """A positive number, every ratio equally likely: learning rates, weights."""

    kind: Literal["loguniform"] = "loguniform"
    low: float
    """Least value."""
    high: float
    """Greatest value."""

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)
        if self.low <= 0:
            raise ValueError("low must be above 0 on a logarithmic scale")

    def draw(self, share: float) -> float:
        """Return the value at a share in [0, 1)."""
        return min(self.high, self.low * math.exp(share * math.log(self.high / self.low)))

    @property
    def ends(self) -> tuple[float, ...]:
        """Values that are tried for validity before anything runs."""
        return (self.low, self.high)


@config
class RandInt:
    """A whole number, both ends included."""

    kind: Literal["randint"] = "randint"
    low: int
    """Least value."""
    high: int
    """Greatest value."""

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)

    def draw(self, share: float) -> int:
        """Return the value at a share in [0, 1)."""
        return self.low + int(share * (self.high - self.low + 1))

    @property
    def ends(self) -> tuple[int, ...]:
        """Values that are tried for validity before anything runs."""
        return (self.low, self.high)


Dimension = Annotated[Choice | Uniform | LogUniform | RandInt, pydantic.Discriminator("kind")]
Space = Mapping[str, Choice | Uniform | LogUniform | RandInt]
"""Setting, as a dotted path -> what it may be."""


def random_points(space: Space, count: int, seed: int) -> list[Point]:
    """Return `count` points. Point `i` is the same whatever the count, and no other setting's range changes a draw."""
    columns = {name: np.random.default_rng([seed, *name.encode()]).random(count).tolist() for name in sorted(space)}
    return [{name: space[name].draw(columns[name][i]) for name in space} for i in range(count)]


def grid_points(space: Space, seed: int | None = None) -> list[Point]:
    """Return every combination of the values, the last setting changing fastest, or with a seed in an order drawn from it.

    Raises:
        ValueError: a setting is a range; a grid needs a list of values.
    """
    for name, dimension in space.items():
        if not isinstance(dimension, Choice):
            raise ValueError(
                f"{name}: a grid search needs kind grid or choice, with values; {dimension.kind} is a range"
            )
    columns = [dimension.ends for dimension in space.values()]
    points = [dict(zip(space, values, strict=True)) for values in itertools.product(*columns)]
    if seed is None:
        return points
    return [points[i] for i in np.random.default_rng(seed).permutation(len(points))]


def end_points(space: Space) -> list[Point]:
    """Return points in which every end of every setting occurs, for a look at their validity: the longest list's length."""
    longest = max(len(dimension.ends) for dimension in space.values())
    return [
        {name: dimension.ends[min(i, len(dimension.ends) - 1)] for name, dimension in space.items()}
        for i in range(longest)
    ]


def _check_values(values: Sequence[Value]) -> None:
    if not values:
        raise ValueError("values needs at least one value")
    if len({repr(value) for value in values}) != len(values):
        raise ValueError("values must differ from each other")


def _check_range(low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError("low must be below high, both finite")
