"""Rows of a training in the driver's own memory: read through Ray Data once, and gone over as a worker does."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..train.data import BLOCK_ROWS, rows_dataset
from ..train.feed import Table
from ..train.fit import PairSet

Columns = dict[str, np.ndarray]
"""Rows as pipeline.train.data makes them, all in one block."""


class _Stored:
    """Rows in memory, read as a Ray Dataset is."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    def iter_batches(self, **_: Any) -> Iterator[Columns]:
        yield self._columns


def table_of(columns: Columns) -> Table:
    """Return rows as the training workers hold them."""
    return Table(_Stored(columns), len(columns["order"]))


def columns_of(pairs: PairSet) -> Columns:
    """Decode the rows of some pairs, by Ray's workers, and return them."""
    batches = rows_dataset(pairs.units, pairs.reading).iter_batches(
        batch_size=4 * BLOCK_ROWS, batch_format="numpy", prefetch_batches=0
    )
    parts = list(batches)
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}
