"""How pairs reach the training workers: checked once, then held decoded in memory or streamed through Ray Data.

Small sets (decoded pixels below `TrainConfig.memory_mb`) are decoded once by Ray Data and stay as uint8 in its object
store; every worker takes a copy and draws the same permutation for each epoch, so the batches are those of one process,
whatever the number of workers. Larger sets are decoded anew in every epoch, as a stream that Ray Data cuts into equal
shares: the units come in a fresh seeded order each epoch and the pairs pass a seeded shuffle buffer. That is a coarser
shuffle, and it repeats exactly only with the same number of workers.

A repair may set rows of a second, small set beside them in every batch (the pairs that a scan accuses). Those are always
held in memory and drawn without end, each permutation of them anew.
"""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from clipsan.stages.decode import BadImage, decode
from clipsan.stages.embed import REJECTED_SCHEMA
from clipsan.stages.model.clip import Inputs, ModelConfig, resolve_model
from clipsan.stages.samples import CAPTION_REJECTS, RawPair, Reject, Unit, seeded_hash
from clipsan.stages.sources import SourceConfig, read_unit

from ..core.cluster import start_ray
from ..core.pass_ import Done, Work
from ..data.choice import Choice, Chosen

BLOCK_ROWS = 256
"""Pairs of a block on its way through Ray Data: 3 MB at 64 px, 38 MB at 224 px."""
SHUFFLE_ROWS = 4096
"""Pairs in a worker's shuffle buffer when the data are streamed: 50 MB at 64 px, 620 MB at 224 px."""

CHECKED_SCHEMA = pa.schema([("uid", pa.string()), ("label", pa.int64())])
"""One row a pair that can be used; label is NOBODY where the data set has none."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a task needs to turn units into rows."""

    source: SourceConfig
    model: ModelConfig
    max_pixels: int
    seed: int
    choice: Choice = field(default_factory=Choice)
    """Pairs that are not chosen count neither as used nor as rejected."""
    captioned: bool = True
    """False: images with labels are wanted, and a caption that is missing or broken is no reason to reject one."""

    def pairs(self, unit: Unit, chosen: Chosen) -> "Iterator[Usable | Unusable]":
        """Yield what is chosen of a unit; see read_pairs."""
        return read_pairs(self.source, unit, self.max_pixels, chosen, self.captioned)


@dataclass(frozen=True, slots=True)
class Usable:
    """A pair that can be trained on."""

    uid: str
    caption: str
    label: int | None
    rgb: np.ndarray
    """`[H, W, 3] uint8`."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A pair that cannot, and why."""

    pair: RawPair
    reason: Reject
    detail: str


def read_pairs(
    source: SourceConfig, unit: Unit, max_pixels: int, chosen: Chosen | None = None, captioned: bool = True
) -> Iterator[Usable | Unusable]:
    """Yield every chosen pair of a unit once (None: all), decoded or with the reason why not; see Reading.captioned."""
    for pair in read_unit(source, unit):
        if chosen is not None and not chosen.wants(pair):
            continue
        if pair.reject is not None and (captioned or pair.reject not in CAPTION_REJECTS):
            yield Unusable(pair, pair.reject, "")
        elif pair.image is None or (captioned and pair.caption is None):
            yield Unusable(pair, Reject.IMAGE_MISSING if pair.image is None else Reject.CAPTION_MISSING, "")
        else:
            try:
                rgb = decode(pair.image, max_pixels).rgb
            except BadImage as error:
                yield Unusable(pair, error.reason, error.detail)
            else:
                yield Usable(pair.uid, pair.caption or "", pair.label, rgb)


@dataclass(frozen=True)
class CheckWork(Work):
    """The pass before training: names the pairs that will be trained on and those that cannot be."""

    reading: Reading

    def do(self, piece: Unit, tools: None) -> Done:
        uids: list[str] = []
        labels: list[int] = []
        bad: list[dict[str, str]] = []
        chosen = self.reading.choice.of(piece)
        for found in self.reading.pairs(piece, chosen):
            if isinstance(found, Usable):
                uids.append(found.uid)
                labels.append(chosen.label(found.uid, found.label))
                continue
            names = {name: getattr(found.pair, name) for name in ("uid", "uid_hex", "shard", "key")}
            bad.append({**names, "reason": found.reason.value, "detail": found.detail})
        return Done(
            pairs=len(uids) + len(bad),
            errors=len(bad),
            parts=(pa.table({"uid": uids, "label": labels}, schema=CHECKED_SCHEMA),),
            rejected=pa.Table.from_pylist(bad, schema=REJECTED_SCHEMA),
        )


@lru_cache(maxsize=2)
def _inputs(model: ModelConfig) -> Inputs:
    # reading the vocabulary takes a third of a second, and Ray's processes live through many tasks
    return Inputs(resolve_model(model))


def _rows(batch: dict[str, Any], reading: Reading) -> Iterator[dict[str, np.ndarray]]:
    inputs = _inputs(reading.model)
    for packed in batch["unit"]:
        unit = pickle.loads(packed)
        chosen = reading.choice.of(unit)
        block: list[Usable] = []
        for found in reading.pairs(unit, chosen):
            if isinstance(found, Usable):
                block.append(found)
            if len(block) == BLOCK_ROWS:
                yield _block(block, chosen, inputs, reading.seed)
                block = []
        if block:
            yield _block(block, chosen, inputs, reading.seed)


def _block(pairs: list[Usable], chosen: Chosen, inputs: Inputs, seed: int) -> dict[str, np.ndarray]:
    """`order [n] int64` (a seeded draw for each uid) and the columns of Rows."""
    standings = [chosen.standing(pair.uid) for pair in pairs]
    return {
        "order": seeded_hash([pair.uid for pair in pairs], seed, "training order").view(np.int64),
        "image": torch.stack([inputs.preprocess(pair.rgb) for pair in pairs]).numpy(),
        "tokens": inputs.tokenize([pair.caption for pair in pairs]).to(torch.int32).numpy(),
        "caption": np.array([pair.caption for pair in pairs], object),
        "label": np.array([chosen.label(pair.uid, pair.label) for pair in pairs], np.int64),
        "accused": np.array([own.accused for own in standings], np.int64),
        "role": np.array([own.role for own in standings], np.uint8),
    }


def rows_dataset(units: Sequence[Unit], reading: Reading) -> Any:
    """Return a lazy Ray Dataset of the usable pairs of the units, in order (columns: see _block)."""
    start_ray()
    import ray

    items = [{"unit": pickle.dumps(unit)} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    return dataset.map_batches(_rows, batch_size=1, fn_args=(reading,), num_cpus=1)


def epoch_units(units: Sequence[Unit], epochs: range, seed: int) -> list[Unit]:
    """Return the units of several epochs one after the other, each epoch in its own seeded order."""
    return [units[i] for epoch in epochs for i in np.random.default_rng([seed, epoch]).permutation(len(units))]
