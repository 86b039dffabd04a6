"""What a generated table is made of."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.benchmarks.results import Row


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its head and the field that it shows."""

    title: str
    field: str
    digits: int = 3


@dataclass(frozen=True, slots=True)
class Table:
    """One table: its columns, which rows in which order, and what it is called where a marker holds several."""

    columns: tuple[Column, ...]
    choose: Callable[[list[Row]], list[Row]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """What stands between two markers: tables made from one file of figures."""

    results: str
    tables: tuple[Table, ...]
    finding: Callable[[list[Row]], str] | None = None
    """What the figures say, in a sentence made of them."""
