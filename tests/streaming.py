"""A detector that learns from the whole of a table, in chunks, as the workers of a scan feed it."""

import hashlib
import itertools
from typing import Any

import numpy as np
import pyarrow as pa


def digests(count: int) -> list[str]:
    """Return SHA-256 digests of so many image files, no two the same."""
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]


def repeated(table: pa.Table, rows: np.ndarray, times: int) -> pa.Table:
    """Return the table with some rows `[k]` that many times in all: the same pictures, with a pair for each of several captions."""
    again = np.concatenate([np.arange(table.num_rows), *[rows] * (times - 1)])
    order = np.random.default_rng(0).permutation(len(again))
    table = table.take(pa.array(again[order]))
    if "uid" not in table.column_names:
        return table
    return table.set_column(table.schema.get_field_index("uid"), "uid", [[f"v{i}" for i in order]])


def learn(detector: Any, table: pa.Table, chunks: int = 3) -> Any:
    """Return the state of a streaming detector, or of what is fed like one, after its rounds."""
    state = detector.start()
    edges = np.linspace(0, table.num_rows, chunks + 1).astype(int)
    parts = [table.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    for _ in range(detector.rounds):
        summary = detector.summarise(state, parts[0])
        for part in parts[1:]:
            summary = detector.merge(summary, detector.summarise(state, part))
        state = detector.update(state, summary)
    return state
