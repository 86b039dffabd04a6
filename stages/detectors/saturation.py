"""What the cache could not hold: features beyond the range of float16, or that became zero or no number in it.

The cache keeps what it can, at the ends of the range (see stages/embed.py). Statistics of a layer whose values stand there see
little of it: they fall silent, and nobody is accused. So such pairs are counted, column by column, and the scan says so.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from .streaming import Column, Columns, StreamingDetector, layer_columns

SIGN = np.uint16(0x7FFF)
"""All bits of a float16 but its sign; what is left of them orders as the magnitudes do, NaN and infinity above all."""
LARGEST = np.uint16(0x7BFF)
"""Bits of 65,504, the end of float16's range."""


class Saturation(StreamingDetector):
    """Counts pairs of which a vector reached the end of float16's range, holds NaN, or is zero throughout; it scores nothing."""

    reads: ClassVar[frozenset[str]] = frozenset({"image", "text", "layer.*"})
    columns: ClassVar[Mapping[str, Column]] = {}
    rounds: ClassVar[int] = 1

    def summarise(self, state: None, table: pa.Table) -> Counter[str]:
        """Return column -> pairs whose vector it does not hold."""
        return Counter({name: lost_rows(table, name) for name in ("image", "text", *layer_columns(table))})

    def merge(self, left: Counter[str], right: Counter[str]) -> Counter[str]:
        return left + right

    def score(self, state: Counter[str], table: pa.Table) -> Columns:
        return {}

    def findings(self, state: Counter[str]) -> Mapping[str, Any]:
        """Return the columns that hold not every pair, each with the number of pairs."""
        return {name: count for name, count in sorted(state.items()) if count}


def lost_rows(table: pa.Table, column: str) -> int:
    """Return how many rows of a column of float16 vectors stand at the end of the range, hold NaN, or are zero."""
    lost = 0
    for chunk in table.column(column).chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False).astype(np.float16, copy=False)
        largest = (values.view(np.uint16) & SIGN).reshape(len(chunk), chunk.type.list_size).max(axis=1, initial=0)
        lost += int(((largest >= LARGEST) | (largest == 0)).sum())
    return lost
