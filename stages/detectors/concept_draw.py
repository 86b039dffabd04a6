"""The pairs that are drawn from concepts to be divided, and how they are shared out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from .concept_division import AT_ONCE, column_rows, each_picture
from .streaming import vectors

SHARE_PAIRS = 8_192
"""Of a share of the concepts, at least: 8 MiB at 512 dimensions, and a second or two of dividing them."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Pairs drawn from the concepts, with what is known of them."""

    hashes: np.ndarray
    """`[k] uint64`."""
    files: np.ndarray
    """`[k] uint64`: the same where the image file is the same."""
    whitened: np.ndarray
    """`[k, P] float16`."""
    members: sp.csr_matrix
    """`[k, C] float32`: 1 where the pair was drawn for the concept."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Pairs drawn from the concepts, a chunk of the data set after the other: merged, they are not copied."""

    chunks: tuple[Chosen, ...]

    def __add__(self, other: "Draw") -> "Draw":
        return Draw(self.chunks + other.chunks)

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Return the whitened pairs at some places of all chunks, `[n, P] float16`."""
        ends = np.cumsum([len(chunk.hashes) for chunk in self.chunks])
        owner = np.searchsorted(ends, places, side="right")
        found = np.empty((len(places), self.chunks[0].whitened.shape[1]), np.float16)
        for number in np.unique(owner).tolist():
            own = owner == number
            chunk = self.chunks[number]
            found[own] = chunk.whitened[places[own] - (ends[number] - len(chunk.hashes))]
        return found

    @property
    def width(self) -> int:
        """Dimensions of a whitened pair."""
        return int(self.chunks[0].whitened.shape[1])

    @property
    def ranks(self) -> np.ndarray:
        """`[k] int64`: the place of each pair in the order of the hashes."""
        order = np.argsort(np.concatenate([chunk.hashes for chunk in self.chunks]), kind="stable")
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        return ranks

    @property
    def files(self) -> np.ndarray:
        """`[k] uint64`: the same where the image file is the same."""
        return np.concatenate([chunk.files for chunk in self.chunks])

    @property
    def members(self) -> sp.csc_matrix:
        """`[k, C]`: which pairs were drawn for which concept."""
        return sp.vstack([chunk.members for chunk in self.chunks]).tocsc()


def shares_of(draw: Draw) -> Iterator[pa.Table]:
    """Yield the pairs of the concepts, each in the order of its ranks: whole batches of concepts that are looked at together, so that
    rounding does not depend on whether they are shared out."""
    members, ranks, files = draw.members, draw.ranks, draw.files
    some: list[tuple[int, np.ndarray]] = []
    for concept in np.flatnonzero(np.diff(members.indptr)).tolist():
        some.append((concept, each_picture(column_rows(members, concept), ranks, files)))
        if len(some) % AT_ONCE == 0 and sum(len(rows) for _, rows in some) >= SHARE_PAIRS:
            yield share_of(draw, some)
            some = []
    if some:
        yield share_of(draw, some)


def share_of(draw: Draw, concepts: Sequence[tuple[int, np.ndarray]]) -> pa.Table:
    """Return the drawn pairs of some concepts one below the other: `concept` and `whitened`."""
    numbers = np.repeat([concept for concept, _ in concepts], [len(rows) for _, rows in concepts])
    whitened = draw.rows(np.concatenate([rows for _, rows in concepts]))
    column = pa.FixedSizeListArray.from_arrays(pa.array(whitened.ravel()), draw.width)
    return pa.table({"concept": pa.array(numbers, pa.int32()), "whitened": column})


def share_rows(share: pa.Table) -> np.ndarray:
    """Return the whitened pairs of a share, `[n, P] float16`."""
    return vectors(share, "whitened").astype(np.float16)
