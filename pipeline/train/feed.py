"""How rows reach one training worker: its part of every global batch, from memory or from a stream."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa
import torch

from .data import BLOCK_ROWS, SHUFFLE_ROWS


@dataclass(frozen=True, slots=True)
class Share:
    """A worker's part of every global batch."""

    rank: int
    world_size: int
    batch_size: int
    """Rows of the global batch."""

    @property
    def rows(self) -> slice:
        """Where this worker's rows stand in a global batch."""
        local = self.batch_size // self.world_size
        return slice(self.rank * local, (self.rank + 1) * local)


class Captions(Sequence[str]):
    """Captions in one Arrow array: they are Python strings only where an objective reads them."""

    def __init__(self, array: pa.LargeStringArray) -> None:
        self._array = array

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Captions":
        """Return some texts as captions."""
        return cls(pa.array(texts, pa.large_string()))

    @classmethod
    def joined(cls, parts: Sequence["Captions"]) -> "Captions":
        """Return the captions of all parts, one part after the other."""
        return cls(pa.concat_arrays([part._array for part in parts]))

    def take(self, rows: np.ndarray) -> "Captions":
        """Return those with the given indices."""
        return Captions(self._array.take(pa.array(rows)))

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[str]:
        return iter(self._array.to_pylist())

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> "Captions": ...
    def __getitem__(self, row: int | slice) -> "str | Captions":
        return Captions(self._array[row]) if isinstance(row, slice) else str(self._array[row])


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows; the feeds hold and draw them on the CPU."""

    images: torch.Tensor
    """`[n, 3, S, S] uint8`."""
    tokens: torch.Tensor
    """`[n, context] int32`."""
    captions: Captions
    """n."""
    labels: torch.Tensor
    """`[n] int64`."""
    accused: torch.Tensor
    """`[n] int64`."""
    roles: torch.Tensor
    """`[n] uint8`."""

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All columns but the captions."""
        return self.images, self.tokens, self.labels, self.accused, self.roles

    def take(self, rows: np.ndarray) -> "Rows":
        """Return the rows with the given indices."""
        # NumPy copies whole rows; torch's indexing takes up to twenty times as long for small ones
        return Rows.of([torch.from_numpy(column.numpy()[rows]) for column in self.tensors], self.captions.take(rows))

    def pinned(self) -> "Rows":
        """Return them in memory that a GPU copies from by itself."""
        return Rows.of([column.pin_memory() for column in self.tensors], self.captions)

    def to(self, device: torch.device) -> "Rows":
        """Return them on a device, which may still be copying."""
        return Rows.of([column.to(device, non_blocking=True) for column in self.tensors], self.captions)

    @staticmethod
    def of(tensors: Sequence[torch.Tensor], captions: Captions) -> "Rows":
        """Return the rows whose `tensors` and captions these are."""
        images, tokens, labels, accused, roles = tensors
        return Rows(images, tokens, captions, labels, accused, roles)


def _joined(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    columns = zip(*(part.tensors for part in parts), strict=True)
    return Rows.of([torch.cat(column) for column in columns], Captions.joined([part.captions for part in parts]))


def _rows(batch: dict[str, np.ndarray]) -> Rows:
    images, tokens, labels, accused, roles = (
        # Ray hands out read-only views of its store, which torch cannot mark as such
        torch.from_numpy(np.array(batch[name]))
        for name in ("image", "tokens", "label", "accused", "role")
    )
    return Rows(images, tokens, Captions.of(batch["caption"]), labels, accused, roles)


class Table:
    """Rows in this worker's memory, in the same order in every run and worker."""

    def __init__(self, shard: Any, pairs: int) -> None:
        parts = list(shard.iter_batches(batch_size=4 * BLOCK_ROWS, batch_format="numpy", prefetch_batches=0))
        if sum(len(part["order"]) for part in parts) != pairs:
            found = sum(len(part["order"]) for part in parts)
            raise RuntimeError(f"the check found {pairs} usable pairs, training reads {found}: the data changed")
        # blocks arrive in any order; sorted by a hash of the uid they stand the same everywhere
        self._base = np.argsort(np.concatenate([part["order"] for part in parts]))
        self._rows = _joined([_rows(part) for part in parts])

    def __len__(self) -> int:
        return len(self._base)

    def take(self, places: np.ndarray) -> Rows:
        """Return the rows at the given places of the order."""
        return self._rows.take(self._base[places])


class Beside:
    """Draws from the second set without end: permutation after permutation, each seeded by its number."""

    def __init__(self, table: Table, seed: int) -> None:
        self._table = table
        self._seed = seed

    def places(self, step: int, count: int) -> np.ndarray:
        """Return the places of the `count` rows of step `step`."""
        size = len(self._table)
        numbers = np.arange(step * count, (step + 1) * count)
        found = np.empty(count, np.int64)
        for turn in range(numbers[0] // size, numbers[-1] // size + 1):
            draw = np.random.default_rng([self._seed, turn, 1]).permutation(size)
            own = numbers // size == turn
            found[own] = draw[numbers[own] % size]
        return found

    def take(self, places: np.ndarray) -> Rows:
        """Return the rows at some places."""
        return self._table.take(places)


class CachedFeed:
    """Every pair decoded in this worker's memory; one global permutation an epoch."""

    def __init__(self, table: Table, share: Share, seed: int, beside: Beside | None = None, besides: int = 0) -> None:
        """`besides` rows of each global batch come from the second set; they are mixed among the others."""
        self._table = table
        self._share = share
        self._seed = seed
        self._beside = beside
        self._besides = besides

    def epoch(self, epoch: int, steps: int, first: int) -> Iterator[Rows]:
        """Yield this worker's rows of each global batch of one epoch; the last partial batch is left out.

        Args:
            epoch: from 0; seeds the order.
            steps: batches.
            first: number of its first batch in the whole training.
        """
        draw = np.random.default_rng([self._seed, epoch]).permutation(len(self._table))
        size = self._share.batch_size - self._besides
        for step in range(steps):
            places = draw[step * size : (step + 1) * size]
            if self._beside is None:
                yield self._table.take(places[self._share.rows])
                continue
            # all workers mix the same way, so that a batch is the same whatever their number
            mixed = np.random.default_rng([self._seed, first + step, 2]).permutation(self._share.batch_size)
            own = mixed[self._share.rows]
            others = self._beside.places(first + step, self._besides)
            rows = _joined(
                [self._table.take(places[own[own < size]]), self._beside.take(others[own[own >= size] - size])]
            )
            yield rows.take(np.argsort(np.argsort(own >= size, kind="stable"), kind="stable"))


class StreamFeed:
    """A stream over the epochs that are left; nothing but a shuffle buffer and the second set stays in memory."""

    def __init__(
        self,
        shard: Any,
        share: Share,
        seed: int,
        first_epoch: int,
        beside: Beside | None = None,
        besides: int = 0,
    ) -> None:
        """`besides` must be a multiple of the workers: each takes as many rows from the second set."""
        self._beside = beside
        self._besides = besides
        self._share = share
        local = (share.batch_size - besides) // share.world_size
        self._batches = iter(
            shard.iter_batches(
                batch_size=local,
                batch_format="numpy",
                prefetch_batches=2,
                local_shuffle_buffer_size=SHUFFLE_ROWS,
                local_shuffle_seed=int(np.random.default_rng([seed, first_epoch, share.rank]).integers(2**31)),
            )
        )

    def epoch(self, epoch: int, steps: int, first: int) -> Iterator[Rows]:
        """Yield the next batches of the stream; an epoch is a number of batches, not a border in the stream."""
        for step in range(steps):
            batch = next(self._batches, None)
            if batch is None:
                raise RuntimeError("the stream of pairs ended before the last epoch: the data changed since the check")
            rows = _rows(batch)
            if self._beside is not None:
                local = self._besides // self._share.world_size
                places = self._beside.places(first + step, self._besides)
                own = places[self._share.rank * local : (self._share.rank + 1) * local]
                rows = _joined([rows, self._beside.take(own)])
            yield rows
