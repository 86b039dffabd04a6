"""The embed stage: one unit of raw pairs in, one table of embeddings and one of rejected pairs out."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from .decode import MAX_PIXELS, BadImage, MaxPixels, decode, image_facts
from .guarded import TIMEOUT_S, Timeout
from .model.clip import Clip, Inputs
from .model.reference import Reference, ReferenceConfig, ReferenceInputs
from .samples import RawPair, Reject
from .stage import config

REJECTED_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("uid_hex", pa.string()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("source_id", pa.string()),
        ("source_url", pa.string()),
    ]
)

FACT_FIELDS = [
    ("uid", pa.string()),
    ("uid_hex", pa.string()),
    ("shard", pa.string()),
    ("key", pa.string()),
    ("caption", pa.string()),
    ("image_sha256", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("pixel_std", pa.float32()),
    ("dhash", pa.uint64()),
    ("label", pa.int32()),
    ("source_id", pa.string()),
    ("source_url", pa.string()),
    ("source_sha256", pa.string()),
]
"""The facts of a pair; those of the source are what the data set says of the pair's origin."""

CPU_BATCH, GPU_BATCH = 64, 1024
"""Pairs of a forward pass: on a CPU larger batches leave its caches, a GPU is idle between smaller ones."""
TEXT_PARTS = 4
"""A batch of texts has this part of the rows of one of pictures, at least CPU_BATCH and never more than it: few captions are long, and one
makes all of its batch as dear as itself."""
BLOCK_ROWS = 256
"""Pairs that are decoded before they are encoded, at the least."""

CACHE_COLUMNS = frozenset([name for name, _ in FACT_FIELDS] + ["image", "text", "layer.*"])
"""What the embedding cache offers to the detectors."""
REFERENCE_COLUMN = "reference"
"""What it offers besides where there is a second encoder."""


# What comes through an object store cannot be written to, and nobody does.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

Precision = Literal["f32", "bf16"]


@config
class EmbedConfig:
    """How pairs are embedded."""

    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Pairs a forward pass; null: 64 on a CPU, 1,024 on a GPU. A batch never spans two pieces, so the result does not depend on
    the workers."""
    precision: Literal["auto", "f32", "bf16"] = "auto"
    """Of the forward passes; auto: bf16 on a GPU, where it is several times faster, f32 elsewhere; a
    processor that has no bf16 computes in f32 whatever is said. Sums over positions, norms and what is stored are the same for both."""
    layers: list[str] | None = None
    """Blocks of the image tower whose pooled output is kept; null chooses up to four, evenly."""
    max_pixels: MaxPixels = MAX_PIXELS
    """An image whose header claims more is rejected undecoded (Pillow's own limit: 0.25 GiB as RGB)."""
    decode_timeout_s: Timeout = TIMEOUT_S
    """Seconds that decoding one image may take; one that takes longer is rejected."""
    decode_threads: Annotated[int, Field(ge=0)] | None = None
    """Threads that decode ahead of the model in each worker that does both; null: none on a CPU, eight on a GPU."""
    reference: ReferenceConfig | None = None
    """A second encoder that had no part in the suspect model: what it sees is held against the captions. Costs a forward pass of
    its own a pair."""

    def precision_on(self, device: str) -> Precision:
        """Return the precision on a device."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if device.startswith("cuda") else "f32"

    def batch_on(self, device: str) -> int:
        """Return the pairs of a forward pass on a device."""
        return self.batch_size or (GPU_BATCH if device.startswith("cuda") else CPU_BATCH)


@dataclass(frozen=True, slots=True)
class Block:
    """Decoded pairs on their way to the model, with what was rejected since the block before."""

    facts: pa.Table
    """FACT_FIELDS."""
    rejected: pa.Table
    """REJECTED_SCHEMA."""
    pixels: np.ndarray
    """`[n, 3, S, S] uint8`."""
    tokens: np.ndarray
    """`[m, context_length] int64`: each distinct caption once, in the order of its first pair."""
    caption_of: np.ndarray
    """`[n] int64`: row of `tokens` that each pair has."""
    reference: np.ndarray | None = None
    """`[n, 3, R, R] uint8`: the pictures as the second encoder takes them, if there is one."""


@dataclass(slots=True)
class _Ready:
    """A decoded pair."""

    facts: dict[str, Any]
    pixels: torch.Tensor
    reference: torch.Tensor | None


class Preparer:
    """From raw pairs to decoded blocks, on a CPU: the half of the embed pass that needs no weights."""

    def __init__(self, inputs: Inputs, settings: EmbedConfig, device: str, threads: int = 0) -> None:
        self._inputs = inputs
        self._max_pixels = settings.max_pixels
        self._timeout_s = settings.decode_timeout_s
        self._rows = max(BLOCK_ROWS, settings.batch_on(device))
        self._decoders = ThreadPoolExecutor(threads) if threads else None
        self._reference = None if settings.reference is None else ReferenceInputs(settings.reference)

    def __call__(self, pairs: Iterable[RawPair]) -> Iterator[Block]:
        """Yield the pairs of one piece in blocks; every pair is in exactly one block, decoded or rejected. At least one block."""
        rejected: list[dict[str, str | None]] = []
        ready: list[_Ready] = []
        prepared = (
            map(self._prepare, pairs)
            if self._decoders is None
            else _ahead(self._decoders, self._prepare, pairs, self._rows)
        )
        any_block = False
        for outcome in prepared:
            if isinstance(outcome, dict):
                rejected.append(outcome)
                continue
            ready.append(outcome)
            if len(ready) == self._rows:
                yield self._block(ready, rejected)
                any_block, ready, rejected = True, [], []
        if ready or rejected or not any_block:
            yield self._block(ready, rejected)

    def _prepare(self, pair: RawPair) -> _Ready | dict[str, str | None]:
        if pair.reject is not None:
            return _rejection(pair, pair.reject, pair.detail)
        if pair.image is None or pair.caption is None:
            return _rejection(pair, Reject.IMAGE_MISSING if pair.image is None else Reject.CAPTION_MISSING, pair.detail)
        try:
            decoded = decode(pair.image, self._max_pixels, self._timeout_s)
        except BadImage as error:
            return _rejection(pair, error.reason, error.detail)
        looks = image_facts(decoded.rgb)
        facts = {
            "uid": pair.uid,
            "uid_hex": pair.uid_hex,
            "shard": pair.shard,
            "key": pair.key,
            "caption": pair.caption,
            "image_sha256": sha256(pair.image).hexdigest(),
            "width": decoded.width,
            "height": decoded.height,
            "pixel_std": looks.pixel_std,
            "dhash": looks.dhash,
            "label": pair.label,
            "source_id": pair.origin.id,
            "source_url": pair.origin.url,
            "source_sha256": pair.origin.sha256,
        }
        other = None if self._reference is None else self._reference.preprocess(decoded.rgb)
        return _Ready(facts, self._inputs.preprocess(decoded.rgb), other)

    def _block(self, ready: list[_Ready], rejected: list[dict[str, str | None]]) -> Block:
        row_of: dict[str, int] = {}
        caption_of = [row_of.setdefault(one.facts["caption"], len(row_of)) for one in ready]
        reference = self._reference
        return Block(
            facts=pa.Table.from_pylist([one.facts for one in ready], schema=pa.schema(FACT_FIELDS)),
            rejected=pa.Table.from_pylist(rejected, schema=REJECTED_SCHEMA),
            pixels=_stacked([one.pixels for one in ready], self._inputs.image_size),
            tokens=self._inputs.tokenize(list(row_of)).numpy() if ready else np.empty((0, 0), np.int64),
            caption_of=np.array(caption_of, np.int64),
            reference=None if reference is None else _stacked([one.reference for one in ready], reference.size),
        )


class Encoder:
    """From decoded blocks to rows of the cache: the half of the embed pass that holds the model."""

    def __init__(self, clip: Clip, settings: EmbedConfig) -> None:
        self._clip = clip
        self._layers = clip.layers(settings.layers)
        self._batch = settings.batch_on(clip.device.type)
        self._widths = {"image": clip.embed_dim, "text": clip.embed_dim} | {
            f"layer.{name}": width for name, width in clip.layer_widths(self._layers).items()
        }
        self._reference = None if settings.reference is None else Reference(settings.reference, clip.device)
        if self._reference is not None:
            self._widths[REFERENCE_COLUMN] = self._reference.width

    def __call__(self, block: Block) -> pa.Table:
        """Return the cache table of a block: FACT_FIELDS, `image` and `text` as float16 unit-norm vectors, and one
        `layer.NAME` column a kept block of the image tower; `reference` where there is a second encoder.

        On a GPU every batch is queued, copies included, and the host waits once, for all that comes back.
        """
        found: dict[str, list[torch.Tensor]] = {name: [] for name in self._widths}
        with torch.inference_mode():
            for start in range(0, len(block.pixels), self._batch):
                image, layers = self._clip.image_features(
                    self._on_device(block.pixels[start : start + self._batch]), self._layers
                )
                found["image"].append(image)
                for name, values in layers.items():
                    found[f"layer.{name}"].append(values)
                if self._reference is not None and block.reference is not None:
                    batch = block.reference[start : start + self._batch]
                    found[REFERENCE_COLUMN].append(self._reference.features(self._on_device(batch)))
            if len(block.tokens):
                found["text"].append(self._texts(block.tokens)[self._on_device(block.caption_of)])
            half = {name: _half(torch.cat(blocks)) for name, blocks in found.items() if blocks}
            host = self._on_host(half)
        table = block.facts
        for name, width in self._widths.items():
            flat = host[name].numpy().reshape(-1) if name in host else np.empty(0, np.float16)
            table = table.append_column(name, pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float16()), width))
        return table

    def _texts(self, tokens: np.ndarray) -> torch.Tensor:
        """Return unit vectors `[m, D] float32`; texts of like length share a batch, which costs what its longest does."""
        given = torch.from_numpy(tokens)
        order = self._clip.ends(given).argsort(stable=True)
        size = min(self._batch, max(CPU_BATCH, self._batch // TEXT_PARTS))
        vectors = torch.cat(
            [
                self._clip.text_features(self._on_device(self._clip.shorten(given[rows]).numpy()))
                for rows in torch.split(order, size)
            ]
        )
        return vectors[self._on_device(order.argsort().numpy())]

    def _on_device(self, values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        if self._clip.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self._clip.device, non_blocking=True)

    def _on_host(self, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self._clip.device.type != "cuda":
            return found
        host = {
            name: torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            for name, values in found.items()
        }
        torch.cuda.current_stream(self._clip.device).synchronize()
        return host


class Embedder:
    """Both halves in one process; one instance a worker."""

    def __init__(self, clip: Clip, settings: EmbedConfig) -> None:
        device = clip.device.type
        threads = settings.decode_threads
        if threads is None:
            threads = 8 if device == "cuda" else 0
        self._prepare = Preparer(clip.inputs, settings, device, threads)
        self._encode = Encoder(clip, settings)

    def __call__(self, pairs: Iterable[RawPair]) -> tuple[pa.Table, pa.Table]:
        """Embed the pairs of one piece.

        Returns:
            The cache table (see Encoder) and the table of rejected pairs (REJECTED_SCHEMA). Every pair is in exactly one of
            them.
        """
        done = [(self._encode(block), block.rejected) for block in self._prepare(pairs)]
        embedded, rejected = zip(*done, strict=True)
        return pa.concat_tables(embedded), pa.concat_tables(rejected)


def _stacked(images: list[torch.Tensor | None], size: int) -> np.ndarray:
    given = [image for image in images if image is not None]
    return torch.stack(given).numpy() if given else np.empty((0, 3, size, size), np.uint8)


def _half(values: torch.Tensor) -> torch.Tensor:
    """Return values as float16, those beyond its range at its ends, where they are counted (see detectors/saturation.py)."""
    limit = torch.finfo(torch.float16).max
    return values.clamp(-limit, limit).half()


def _rejection(pair: RawPair, reason: Reject, detail: str) -> dict[str, str | None]:
    return {
        "uid": pair.uid,
        "uid_hex": pair.uid_hex,
        "shard": pair.shard,
        "key": pair.key,
        "reason": reason.value,
        "detail": detail,
        "source_id": pair.origin.id,
        "source_url": pair.origin.url,
    }


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[RawPair], Any], pairs: Iterable[RawPair], window: int
) -> Iterator[Any]:
    """Map in order, with at most `window` items in flight: the reader never runs far ahead of the model."""
    pending: deque[Future[Any]] = deque()
    for pair in pairs:
        pending.append(pool.submit(work, pair))
        if len(pending) >= window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
