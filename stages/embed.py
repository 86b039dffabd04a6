"""The embed stage: one unit of raw pairs in, one table of embeddings and one of rejected pairs out."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from .decode import MAX_PIXELS, BadImage, MaxPixels, decode, image_facts
from .model.clip import Clip, Encoded
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
]

CACHE_COLUMNS = frozenset([name for name, _ in FACT_FIELDS] + ["image", "text", "layer.*"])
"""What the embedding cache offers to the detectors."""


@config
class EmbedConfig:
    """How pairs are embedded."""

    batch_size: Annotated[int, Field(ge=1)] = 64
    """Pairs a forward pass; a batch never spans two units, so the result does not depend on the workers."""
    layers: list[str] | None = None
    """Blocks of the image tower whose pooled output is kept; null chooses up to four, evenly."""
    max_pixels: MaxPixels = MAX_PIXELS
    """An image whose header claims more is rejected undecoded (Pillow's own limit: 0.25 GiB as RGB)."""
    decode_threads: Annotated[int, Field(ge=0)] | None = None
    """Threads that decode ahead of the model in each worker; null: none on a CPU, eight on a GPU."""


@dataclass(slots=True)
class _Ready:
    """A decoded pair on its way into a batch."""

    facts: dict[str, Any]
    caption: str
    pixels: torch.Tensor


class Embedder:
    """Reads nothing but raw pairs, holds the model; one instance a worker."""

    def __init__(self, clip: Clip, settings: EmbedConfig) -> None:
        self._clip = clip
        self._settings = settings
        self._layers = clip.layers(settings.layers)
        threads = settings.decode_threads
        if threads is None:
            threads = 8 if clip.device.type == "cuda" else 0
        self._decoders = ThreadPoolExecutor(threads) if threads else None
        self._window = 4 * settings.batch_size

    def __call__(self, pairs: Iterable[RawPair]) -> tuple[pa.Table, pa.Table]:
        """Embed the pairs of one unit.

        Returns:
            The cache table (FACT_FIELDS, `image` and `text` as float16 unit-norm vectors, one `layer.NAME` column a
            block) and the table of rejected pairs (REJECTED_SCHEMA). Every pair is in exactly one of them.
        """
        rejected: list[dict[str, str]] = []
        facts: list[dict[str, Any]] = []
        encoded: list[Encoded] = []
        batch: list[_Ready] = []
        prepared = (
            map(self._prepare, pairs)
            if self._decoders is None
            else _ahead(self._decoders, self._prepare, pairs, self._window)
        )
        for outcome in prepared:
            if isinstance(outcome, dict):
                rejected.append(outcome)
                continue
            batch.append(outcome)
            if len(batch) == self._settings.batch_size:
                encoded.append(self._encode(batch))
                facts.extend(ready.facts for ready in batch)
                batch = []
        if batch:
            encoded.append(self._encode(batch))
            facts.extend(ready.facts for ready in batch)
        return self._table(facts, encoded), pa.Table.from_pylist(rejected, schema=REJECTED_SCHEMA)

    def _prepare(self, pair: RawPair) -> _Ready | dict[str, str]:
        if pair.reject is not None:
            return _rejection(pair, pair.reject, pair.detail)
        if pair.image is None or pair.caption is None:
            return _rejection(pair, Reject.IMAGE_MISSING if pair.image is None else Reject.CAPTION_MISSING, pair.detail)
        try:
            decoded = decode(pair.image, self._settings.max_pixels)
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
        }
        return _Ready(facts, pair.caption, self._clip.preprocess(decoded.rgb))

    def _encode(self, batch: list[_Ready]) -> Encoded:
        pixels = torch.stack([ready.pixels for ready in batch])
        return self._clip.encode(pixels, [ready.caption for ready in batch], self._layers)

    def _table(self, facts: list[dict[str, Any]], encoded: list[Encoded]) -> pa.Table:
        table = pa.Table.from_pylist(facts, schema=pa.schema(FACT_FIELDS))
        widths = {"image": self._clip.embed_dim, "text": self._clip.embed_dim}
        vectors: dict[str, list[np.ndarray]] = {"image": [], "text": []}
        for batch in encoded:
            vectors["image"].append(batch.image)
            vectors["text"].append(batch.text)
            for name, values in batch.layers.items():
                vectors.setdefault(f"layer.{name}", []).append(values)
        for name, width in self._clip.layer_widths(self._layers).items():
            widths[f"layer.{name}"] = width
        for name, width in widths.items():
            blocks = vectors.get(name) or [np.empty((0, width), np.float32)]
            table = table.append_column(name, _half_vectors(np.concatenate(blocks), width))
        return table


def _half_vectors(values: np.ndarray, width: int) -> pa.FixedSizeListArray:
    """`[n, width] float32` as a column of fixed-size lists of float16."""
    limit = float(np.finfo(np.float16).max)
    flat = np.clip(values, -limit, limit).astype(np.float16).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, type=pa.float16()), width)


def _rejection(pair: RawPair, reason: Reject, detail: str) -> dict[str, str]:
    return {
        "uid": pair.uid,
        "uid_hex": pair.uid_hex,
        "shard": pair.shard,
        "key": pair.key,
        "reason": reason.value,
        "detail": detail,
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
