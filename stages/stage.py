"""What every stage shares: how it is configured, and how a chain of stages is checked before any worker starts."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar, dataclass_transform

from .registry import Family, register

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Make a class a configuration object: a frozen, keyword-only, slotted dataclass that forbids unknown keys.

    A rule about a value belongs in `__post_init__` as a ValueError that states the rule; the command line turns it
    into one line with the path of the field. A class that derives from the base of a family joins it (see registry.py).
    """
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    made = dataclass(frozen=True, kw_only=True, slots=True)(cls)
    if issubclass(made, Family):
        register(made)
    return made


class Columns(Protocol):
    """A stage, as far as the chain of columns is concerned: what it needs and what it adds; the rest passes through."""

    @property
    def reads(self) -> frozenset[str]: ...
    @property
    def adds(self) -> frozenset[str]: ...


class ChainError(ValueError):
    """A stage reads a column that no stage before it provides."""


def check_chain(available: Iterable[str], stages: Iterable[Columns]) -> frozenset[str]:
    """Return the columns at the end of the chain.

    Raises:
        ChainError: a stage reads a column that is not there yet; the message names both.
    """
    columns = frozenset(available)
    for stage in stages:
        missing = sorted(stage.reads - columns)
        if missing:
            raise ChainError(
                f"{_name(stage)} reads {', '.join(missing)}, but the chain has only {', '.join(sorted(columns))}"
            )
        columns |= stage.adds
    return columns


def _name(stage: Columns) -> str:
    return stage.__name__ if isinstance(stage, type) else type(stage).__name__
