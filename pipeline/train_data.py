"""How pairs reach the training workers: checked once, then held decoded in memory or streamed through Ray Data.

Small sets (decoded pixels below `TrainConfig.memory_mb`) are decoded once by Ray Data and stay as uint8 in its object
store; every worker takes a copy and draws the same permutation for each epoch, so the batches are those of one process,
whatever the number of workers. Larger sets are decoded anew in every epoch, as a stream that Ray Data cuts into equal
shares: the units come in a fresh seeded order each epoch and the pairs pass a seeded shuffle buffer. That is a coarser
shuffle, and it repeats exactly only with the same number of workers.
"""

import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.commit import write_part
from pipeline.passes import Row
from stages.clip_model import Inputs, ModelConfig, resolve_model
from stages.decode import BadImage, decode
from stages.embed import REJECTED_SCHEMA
from stages.samples import RawPair, Reject, Unit, seeded_hash
from stages.sources import SourceConfig, read_unit

BLOCK_ROWS = 256
"""Pairs of a block on its way through Ray Data: 3 MB at 64 px, 38 MB at 224 px."""
SHUFFLE_ROWS = 4096
"""Pairs in a worker's shuffle buffer when the data are streamed: 50 MB at 64 px, 620 MB at 224 px."""

CHECKED_SCHEMA = pa.schema([("uid", pa.string())])


@dataclass(frozen=True, slots=True)
class Reading:
    """What a task needs to turn units into rows."""

    source: SourceConfig
    model: ModelConfig
    max_pixels: int
    seed: int


@dataclass(frozen=True, slots=True)
class Usable:
    """A pair that can be trained on."""

    uid: str
    caption: str
    rgb: np.ndarray
    """`[H, W, 3] uint8`."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A pair that cannot, and why."""

    pair: RawPair
    reason: Reject
    detail: str


def read_pairs(source: SourceConfig, unit: Unit, max_pixels: int) -> Iterator[Usable | Unusable]:
    """Yield every pair of a unit once, decoded or with the reason why not."""
    for pair in read_unit(source, unit):
        if pair.reject is not None:
            yield Unusable(pair, pair.reject, "")
        elif pair.image is None or pair.caption is None:
            yield Unusable(pair, Reject.IMAGE_MISSING if pair.image is None else Reject.CAPTION_MISSING, "")
        else:
            try:
                rgb = decode(pair.image, max_pixels).rgb
            except BadImage as error:
                yield Unusable(pair, error.reason, error.detail)
            else:
                yield Usable(pair.uid, pair.caption, rgb)


class CheckWork:
    """The pass before training: names the pairs that will be trained on and those that cannot be."""

    def __init__(self, reading: Reading, checked: Path, rejected: Path, mark: str) -> None:
        self._reading = reading
        self._checked = checked
        self._rejected = rejected
        self._mark = mark

    def run(self, piece: Unit) -> Row:
        uids: list[str] = []
        bad: list[dict[str, str]] = []
        for found in read_pairs(self._reading.source, piece, self._reading.max_pixels):
            if isinstance(found, Usable):
                uids.append(found.uid)
                continue
            names = {name: getattr(found.pair, name) for name in ("uid", "uid_hex", "shard", "key")}
            bad.append({**names, "reason": found.reason.value, "detail": found.detail})
        write_part(self._rejected, piece.index, pa.Table.from_pylist(bad, schema=REJECTED_SCHEMA), self._mark)
        # last, because it is the commit: no unit counts as checked without its rejected pairs
        write_part(self._checked, piece.index, pa.table({"uid": uids}, schema=CHECKED_SCHEMA), self._mark)
        return {"pairs": len(uids) + len(bad), "errors": len(bad)}


def reject_reasons(tables: Sequence[pa.Table]) -> dict[str, int]:
    """Return reason -> number of pairs, over the parts of rejected/."""
    counts = Counter(reason for table in tables for reason in table.column("reason").to_pylist())
    return dict(sorted(counts.items()))


@lru_cache(maxsize=2)
def _inputs(model: ModelConfig) -> Inputs:
    # reading the vocabulary takes a third of a second, and Ray's processes live through many tasks
    return Inputs(resolve_model(model))


def _rows(batch: dict[str, Any], reading: Reading) -> Iterator[dict[str, np.ndarray]]:
    inputs = _inputs(reading.model)
    for packed in batch["unit"]:
        block: list[Usable] = []
        for found in read_pairs(reading.source, pickle.loads(packed), reading.max_pixels):
            if isinstance(found, Usable):
                block.append(found)
            if len(block) == BLOCK_ROWS:
                yield _block(block, inputs, reading.seed)
                block = []
        if block:
            yield _block(block, inputs, reading.seed)


def _block(pairs: list[Usable], inputs: Inputs, seed: int) -> dict[str, np.ndarray]:
    """`order [n] int64` (a seeded draw for each uid), `image [n, 3, S, S] uint8`, `tokens [n, context] int32`."""
    return {
        "order": seeded_hash([pair.uid for pair in pairs], seed, "training order").view(np.int64),
        "image": torch.stack([inputs.preprocess(pair.rgb) for pair in pairs]).numpy(),
        "tokens": inputs.tokenize([pair.caption for pair in pairs]).to(torch.int32).numpy(),
    }


def rows_dataset(units: Sequence[Unit], reading: Reading) -> Any:
    """Return a lazy Ray Dataset of the usable pairs of the units, in order (columns: see _block)."""
    import ray

    items = [{"unit": pickle.dumps(unit)} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    return dataset.map_batches(_rows, batch_size=1, fn_args=(reading,), num_cpus=1)


def epoch_units(units: Sequence[Unit], epochs: range, seed: int) -> list[Unit]:
    """Return the units of several epochs one after the other, each epoch in its own seeded order."""
    return [units[i] for epoch in epochs for i in np.random.default_rng([seed, epoch]).permutation(len(units))]


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


Tensors = tuple[torch.Tensor, torch.Tensor]
"""`[n, 3, S, S] uint8` images and `[n, context] int32` tokens of one worker's rows, on the CPU."""


class CachedFeed:
    """Every pair decoded in this worker's memory; one global permutation an epoch."""

    def __init__(self, shard: Any, pairs: int, share: Share, seed: int) -> None:
        parts = list(shard.iter_torch_batches(batch_size=4 * BLOCK_ROWS, device="cpu", prefetch_batches=0))
        order = torch.cat([part["order"] for part in parts])
        if len(order) != pairs:
            raise RuntimeError(f"the check found {pairs} usable pairs, training reads {len(order)}: the data changed")
        self._images = torch.cat([part["image"] for part in parts])
        self._tokens = torch.cat([part["tokens"] for part in parts])
        # blocks arrive in any order; sorted by a hash of the uid they stand the same in every run and worker
        self._base = torch.argsort(order).numpy()
        self._share = share
        self._seed = seed

    def epoch(self, epoch: int, steps: int) -> Iterator[Tensors]:
        """Yield this worker's rows of each global batch of one epoch; the last partial batch is left out."""
        draw = np.random.default_rng([self._seed, epoch]).permutation(len(self._base))
        size = self._share.batch_size
        for step in range(steps):
            rows = torch.from_numpy(self._base[draw[step * size : (step + 1) * size][self._share.rows]])
            yield self._images[rows], self._tokens[rows]


class StreamFeed:
    """A stream over the epochs that are left; nothing but a shuffle buffer stays in memory."""

    def __init__(self, shard: Any, share: Share, seed: int, first_epoch: int) -> None:
        local = share.batch_size // share.world_size
        self._batches = iter(
            shard.iter_torch_batches(
                batch_size=local,
                device="cpu",
                prefetch_batches=2,
                local_shuffle_buffer_size=SHUFFLE_ROWS,
                local_shuffle_seed=int(np.random.default_rng([seed, first_epoch, share.rank]).integers(2**31)),
            )
        )

    def epoch(self, epoch: int, steps: int) -> Iterator[Tensors]:
        """Yield the next batches of the stream; an epoch is a number of batches, not a border in the stream."""
        for _ in range(steps):
            batch = next(self._batches, None)
            if batch is None:
                raise RuntimeError("the stream of pairs ended before the last epoch: the data changed since the check")
            yield batch["image"], batch["tokens"]
