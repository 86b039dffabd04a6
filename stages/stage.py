"""What every stage shares: how it is configured, and how a chain of stages is checked before any worker starts."""

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, Protocol, TypeVar, dataclass_transform, get_args, get_type_hints

import annotated_types
from pydantic import Field
from pydantic.fields import FieldInfo

from .registry import Family, register

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0)]
"""Limits of settings that many have: a number of things, a share, a percentage, a number above 0, one that may be 0, a share
above 0, and what NumPy takes for a seed."""


def part_of(share: float, count: int) -> int:
    """Return the whole number of things, rounded down, that a share of so many is: of 100 things .29 are 29, which a product of floats
    would make 28.
    """
    return int(Decimal(str(float(share))) * count)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Make a class a configuration object: a frozen, keyword-only, slotted dataclass that forbids unknown keys.

    The limit of one value stands in its type, `Annotated[int, Field(ge=1)]`; it holds for objects that are made in Python, too.
    A rule between values belongs in `__post_init__` as a ValueError that states the rule; the command line turns it into one
    line with the path of the field. A class that derives from the base of a family joins it (see registry.py).
    """
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    between: Callable[[Any], None] = getattr(cls, "__post_init__", lambda _: None)

    def check(self: Any) -> None:
        check_limits(self)
        between(self)

    cls.__post_init__ = check  # type: ignore[attr-defined]
    made = dataclass(frozen=True, kw_only=True, slots=True)(cls)
    if issubclass(made, Family):
        register(made)
    return made


LIMITS: dict[type, tuple[str, Callable[[Any, Any], bool], str]] = {
    annotated_types.Ge: ("ge", operator.ge, "at least"),
    annotated_types.Gt: ("gt", operator.gt, "above"),
    annotated_types.Le: ("le", operator.le, "at most"),
    annotated_types.Lt: ("lt", operator.lt, "below"),
}
"""Kind of limit -> its attribute, what must hold between a value and it, and that in words."""


def check_limits(made: Any) -> None:
    """Raise ValueError where a number of a configuration object lies outside the limits of its type."""
    cls: Any = type(made)
    for name, limits in _limits(cls):
        value = getattr(made, name)
        for limit in limits if isinstance(value, (int, float)) else ():
            attribute, holds, words = LIMITS[type(limit)]
            bound = getattr(limit, attribute)
            if not holds(value, bound):
                raise ValueError(f"{name} must be {words} {bound}, not {value}")


@cache
def _limits(cls: type) -> list[tuple[str, list[Any]]]:
    """Return the fields of a configuration class that have limits, with these."""
    hints = get_type_hints(cls, include_extras=True)
    found = ((name, [limit for limit in _metadata(hint) if type(limit) in LIMITS]) for name, hint in hints.items())
    return [(name, limits) for name, limits in found if limits]


def _metadata(hint: Any) -> Iterator[Any]:
    """Yield what an annotation says of a number beside its type, whether or not it may be None."""
    for found in getattr(hint, "__metadata__", ()):
        yield from found.metadata if isinstance(found, FieldInfo) else (found,)
    for member in get_args(hint):
        if hasattr(member, "__metadata__"):
            yield from _metadata(member)


class Columns(Protocol):
    """A stage, as far as the chain of columns is concerned: what it needs and what it adds; the rest passes through."""

    @property
    def reads(self) -> frozenset[str]: ...
    @property
    def adds(self) -> frozenset[str]: ...


class ChainError(ValueError):
    """A stage reads a column that no stage before it provides, or adds one that another has added."""


def check_chain(available: Iterable[str], stages: Iterable[Columns]) -> frozenset[str]:
    """Return the columns at the end of the chain.

    Raises:
        ChainError: a stage reads a column that is not there yet, or adds one that is there; the message names both.
    """
    columns = frozenset(available)
    for stage in stages:
        missing = sorted(stage.reads - columns)
        if missing:
            raise ChainError(
                f"{_name(stage)} reads {', '.join(missing)}, but the chain has only {', '.join(sorted(columns))}"
            )
        twice = sorted(stage.adds & columns)
        if twice:
            raise ChainError(f"{_name(stage)} adds {', '.join(twice)}, which the chain has already")
        columns |= stage.adds
    return columns


def _name(stage: Columns) -> str:
    return stage.__name__ if isinstance(stage, type) else type(stage).__name__
