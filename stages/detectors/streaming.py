"""How a detector learns from a cache that does not fit in memory: rounds of summaries that merge."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

Columns = dict[str, np.ndarray]
"""Score column name -> `[n] float32`, one value a row; higher is more suspicious."""


class StreamingDetector(Protocol):
    """A detector whose knowledge of the data set is gathered in a few passes over the embedding cache.

    In each round every chunk of the cache is summarised alone (on any worker), the summaries are merged two by two
    in the fixed order of the chunks, and `update` turns the merged summary into the next state. So the result does not
    depend on the number of workers, and no process ever holds the features of all pairs. States and summaries are
    plain picklable data.
    """

    @property
    def reads(self) -> frozenset[str]:
        """Columns of the cache that it needs; `layer.*` stands for every layer column."""
        ...

    @property
    def adds(self) -> frozenset[str]:
        """Score columns that `score` returns."""
        ...

    rounds: int
    """Number of passes over the cache before `score`; 0 for a score that needs the row alone."""

    def start(self) -> Any:
        """Return the state before the first round."""
        ...

    def summarise(self, state: Any, table: pa.Table) -> Any:
        """Summarise one chunk of the cache for the current round."""
        ...

    def merge(self, left: Any, right: Any) -> Any:
        """Merge two summaries of the same round; `left` covers the earlier chunks."""
        ...

    def update(self, state: Any, summary: Any) -> Any:
        """Return the next state from the summary of the whole cache."""
        ...

    def score(self, state: Any, table: pa.Table) -> Columns:
        """Score the rows of one chunk with the final state."""
        ...

    def findings(self, state: Any) -> Mapping[str, Any]:
        """Return what the final state says about the data set as a whole (JSON-like), for summary and report."""
        ...


def vectors(table: pa.Table, column: str) -> np.ndarray:
    """Return a fixed-size-list column of the cache as `[n, D] float32`."""
    array = table.column(column).combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], type=array.type)
    width = array.type.list_size
    rows: np.ndarray = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width).astype(np.float32)
    return rows


def layer_columns(table: pa.Table) -> list[str]:
    """Return the names of the `layer.*` columns, in the order of the cache."""
    return [name for name in table.column_names if name.startswith("layer.")]
