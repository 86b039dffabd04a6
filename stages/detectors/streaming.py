"""What a detector is, and how it learns from a cache that does not fit in memory: rounds of summaries that merge."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

Columns = dict[str, np.ndarray]
"""Score column name -> `[n] float32`, one value a row; higher is more suspicious."""


@dataclass(frozen=True, slots=True)
class Column:
    """What a score column is to whoever combines it with others."""

    about: Literal["image", "caption"]
    """What a high score finds odd. A column about the image weighs more: the highest rows of one about the caption
    (duplicates, fit to the image) share a concept by nature."""
    may_speak: bool = False
    """Whether pairs are accused where its highest rows are all of one concept; for columns without a threshold."""
    accuses_from: float | None = None
    """Score from which a pair is accused by this column alone."""
    calibrated: bool = False
    """Whether the score is itself evidence, from 0 (none) to 1, plus 1 where the pair is accused; else its ranks are."""
    supported_by: str | None = None
    """Another column whose evidence, at the weight of a silent one, is averaged with this one's."""


@dataclass(frozen=True, slots=True)
class Shares:
    """What of an update can be worked out apart. The shares are made of the summary alone, whoever works them out."""

    common: Any
    """What all of them need; picklable, and sent to every worker once."""
    tables: Iterator[pa.Table]
    """A share each, made one after the other."""


class StreamingDetector(ABC):
    """A detector whose knowledge of the data set, if it has any, is gathered in a few passes over the embedding cache.

    In each round every chunk of the cache is summarised alone (on any worker), the summaries are merged two by two
    in the fixed order of the chunks, and `update` turns the merged summary into the next state. So the result does not
    depend on the number of workers, and no process ever holds the features of all pairs. States and summaries are
    plain picklable data. A detector that learns nothing (`rounds` 0) has no more than `score`.
    """

    rounds: ClassVar[int] = 0
    """Number of passes over the cache before `score`."""
    says: ClassVar[frozenset[str]] = frozenset()
    """Columns of text that `texts` returns."""
    counts: ClassVar[frozenset[str]] = frozenset()
    """Columns of whole numbers that `tallies` returns: facts, which score nothing."""

    @property
    def name(self) -> str:
        """Under which its findings stand in the summary."""
        return type(self).__name__

    @property
    @abstractmethod
    def reads(self) -> frozenset[str]:
        """Columns of the cache that it needs; `layer.*` stands for every layer column."""

    @property
    @abstractmethod
    def columns(self) -> Mapping[str, Column]:
        """Score columns that `score` returns, and what they are."""

    @property
    def adds(self) -> frozenset[str]:
        """All columns that it adds."""
        return frozenset(self.columns) | self.says | self.counts

    def start(self) -> Any:
        """Return the state before the first round."""
        return None

    def summarise(self, state: Any, table: pa.Table) -> Any:
        """Summarise one chunk of the cache for the current round."""
        raise self._lacks("summarise")

    def merge(self, left: Any, right: Any) -> Any:
        """Merge two summaries of the same round; `left` covers the earlier chunks."""
        raise self._lacks("merge")

    def update(self, state: Any, summary: Any) -> Any:
        """Return the next state from the summary of the whole cache."""
        return summary

    def shares(self, state: Any, summary: Any) -> Shares | None:
        """Return what of `update` can be worked out apart, on any worker; None where that is nothing."""
        return None

    def work_out(self, common: Any, share: pa.Table) -> Any:
        """Work out one share of an update."""
        raise self._lacks("work_out")

    def update_with(self, state: Any, summary: Any, shared: Sequence[Any]) -> Any:
        """Return the state that `update` returns, from the summary and what came of its shares, in their order."""
        raise self._lacks("update_with")

    @abstractmethod
    def score(self, state: Any, table: pa.Table) -> Columns:
        """Score the rows of one chunk with the final state."""

    def texts(self, state: Any, table: pa.Table) -> dict[str, list[str]]:
        """Return what it says of each row in words, a column each."""
        return {}

    def tell(self, state: Any, table: pa.Table) -> tuple[Columns, dict[str, list[str]]]:
        """Return what `score` and `texts` return; overridden where both need the same work."""
        return self.score(state, table), self.texts(state, table)

    def tallies(self, state: Any, table: pa.Table) -> dict[str, np.ndarray]:
        """Return what it counts of each row, `[n] int32` each."""
        return {}

    def findings(self, state: Any) -> Mapping[str, Any]:
        """Return what the final state says about the data set as a whole (JSON-like), for summary and report."""
        return {}

    def _lacks(self, method: str) -> NotImplementedError:
        return NotImplementedError(f"{self.name} learns in {self.rounds} rounds and has no `{method}`")


def vectors(table: pa.Table, column: str) -> np.ndarray:
    """Return a fixed-size-list column of the cache as `[n, D] float32`."""
    array = table.column(column).combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], type=array.type)
    width = array.type.list_size
    rows: np.ndarray = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width).astype(np.float32)
    return rows


def image_files(table: pa.Table) -> np.ndarray:
    """Return `[n] uint64`: the beginning of the SHA-256 of each row's image file, the same where the file is the same."""
    beginnings = "".join(digest[:16] for digest in table.column("image_sha256").to_pylist())
    return np.frombuffer(bytes.fromhex(beginnings), ">u8").astype(np.uint64)


def layer_columns(table: pa.Table) -> list[str]:
    """Return the names of the `layer.*` columns, in the order of the cache."""
    return [name for name in table.column_names if name.startswith("layer.")]
