"""The committed parts of a pass, read as one table of all pairs that is never in memory whole."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .commit import read_part
from .place import AnyPath
from .run_folder import part_rows

MIN_CHUNK_ROWS = 2048
"""Fewer rows a task cost more in Ray's overhead (about 20 ms) than in work."""
MAX_CHUNKS = 256
"""Bounds the number of summaries that the driver merges."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A table with a row a pair, committed as a part a unit."""

    folder: AnyPath
    rows: Mapping[int, int]
    """Number of each part, in the order of the data set -> its rows."""

    @classmethod
    def of(cls, folder: AnyPath) -> "Parts":
        """Return the parts that are committed in a folder."""
        return cls(folder, dict(sorted(part_rows(folder).items())))

    def beside(self, folder: AnyPath) -> "Parts":
        """Return the parts of another pass over the same pairs."""
        return Parts(folder, self.rows)

    @property
    def numbers(self) -> list[int]:
        """The parts, in the order of the data set."""
        return list(self.rows)

    @property
    def pieces(self) -> dict[int, int]:
        """The parts as pieces of a pass that makes a part of each."""
        return {number: number for number in self.rows}

    @property
    def total(self) -> int:
        """Rows of all parts."""
        return sum(self.rows.values())

    def read(self, number: int, columns: Collection[str] | None = None) -> pa.Table:
        """Return one part, or some columns of it; see read_part."""
        return read_part(self.folder, number, columns)

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield the parts one after the other."""
        return (self.read(number, columns) for number in self.rows)

    def column(self, name: str) -> np.ndarray:
        """Return one numeric column of all parts `[N]` (4 bytes a pair)."""
        blocks = [table.column(name).to_numpy() for table in self.tables([name])]
        return np.concatenate(blocks) if blocks else np.empty(0, np.float32)

    def counts(self, name: str) -> dict[str, int]:
        """Return value -> its rows, of a column of text, in alphabetical order."""
        found: Counter[str] = Counter()
        for table in self.tables([name]):
            found.update(value_counts(table.column(name)))
        return dict(sorted(found.items()))

    def chunks(self) -> list[list[int]]:
        """Cut the parts into runs of neighbours for sums over the whole; depends on the data alone, never on the workers."""
        bound = max(MIN_CHUNK_ROWS, self.total // MAX_CHUNKS)
        return fill(sorted(self.rows), self.rows, bound)


def value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Return value -> its rows, of a column of text; no Python object a row."""
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}


def has_any(reasons: pa.ChunkedArray, wanted: frozenset[str]) -> np.ndarray:
    """Return `[N] bool`: the rows of a column of lists in which one of some values stands; no Python object a row."""
    lists = reasons.combine_chunks()
    found = np.zeros(len(lists), bool)
    hits = pc.is_in(pc.list_flatten(lists), value_set=pa.array(sorted(wanted), pa.string())).to_numpy(
        zero_copy_only=False
    )
    found[pc.list_parent_indices(lists).to_numpy()[hits]] = True
    return found


def fill(parts: Sequence[int], rows: Mapping[int, int], bound: int) -> list[list[int]]:
    """Fill groups in order until each holds `bound` rows; a last group under half of that joins the one before."""
    groups: list[list[int]] = []
    filled = bound
    for part in parts:
        if filled >= bound:
            groups.append([])
            filled = 0
        groups[-1].append(part)
        filled += rows[part]
    if len(groups) > 1 and filled < bound / 2:
        rest = groups.pop()
        groups[-1] += rest
    return groups
