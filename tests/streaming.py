"""A detector that learns from the whole of a table, in chunks, as the workers of a scan feed it."""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa


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
