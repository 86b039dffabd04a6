"""What one would write without clipsan or Ray: plain PyTorch loops that compute what the embed pass computes.

They share the model, the decoder and the facts of an image with the product (stages/), and read, batch, schedule and store by
themselves. Nothing is checked, committed or resumable: what is written at the end is one Parquet file a process.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from clipsan.stages.decode import decode, image_facts
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip
from clipsan.stages.samples import hash_uid
from clipsan.stages.sources.common import LabelCaptions

BATCH = 64
MAX_PIXELS = 89_478_485

Facts = dict[str, list[Any]]
Batch = tuple[torch.Tensor, list[str], Facts]


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one Parquet file."""

    path: str
    shard: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Task:
    """What a loop embeds, and where it puts the result."""

    pieces: list[Piece]
    model: ModelConfig
    captions: LabelCaptions
    out: Path


@dataclass(frozen=True, slots=True)
class Timing:
    """When one process could start and when it was done (seconds since the epoch), and its processor time between."""

    ready: float
    done: float
    cpu_s: float
    pairs: int


def one_process(task: Task, threads: int) -> list[Timing]:
    """Decode inline, one process, `threads` torch threads."""
    return [_loop(task, threads, "0")]


def processes(task: Task, count: int) -> list[Timing]:
    """Run `count` processes of one thread over a share of the rows each: as fast as it gets without a scheduler."""
    context = multiprocessing.get_context("spawn")
    shares = split(task.pieces, count)
    with context.Pool(count) as pool:
        args = [(Task(share, task.model, task.captions, task.out), 1, str(i)) for i, share in enumerate(shares)]
        return pool.starmap(_loop, args, chunksize=1)


def data_loader(task: Task, workers: int, threads: int) -> list[Timing]:
    """Decode and preprocess in `workers` DataLoader processes, encode in the main one with `threads` torch threads."""
    torch.set_num_threads(threads)
    clip = load_clip(task.model)
    ready, cpu = time.time(), time.process_time()
    loader = DataLoader(_Batches(task, clip), batch_size=None, num_workers=workers, prefetch_factor=4)
    children = os.times().children_user + os.times().children_system
    pairs = _encode_all(clip, loader, task.out / "0.parquet")
    del loader
    # The workers have ended with the iterator, so their processor time is known.
    children = os.times().children_user + os.times().children_system - children
    return [Timing(ready, time.time(), time.process_time() - cpu + children, pairs)]


def split(pieces: list[Piece], count: int) -> list[list[Piece]]:
    """Cut rows into `count` runs of equal size; whole files stay whole where it comes out even."""
    total = sum(piece.stop - piece.start for piece in pieces)
    bounds = [total * i // count for i in range(count + 1)]
    shares: list[list[Piece]] = []
    for low, high in pairwise(bounds):
        share, offset = [], 0
        for piece in pieces:
            begin, end = max(low - offset, 0), min(high - offset, piece.stop - piece.start)
            if begin < end:
                share.append(Piece(piece.path, piece.shard, piece.start + begin, piece.start + end))
            offset += piece.stop - piece.start
        shares.append(share)
    return shares


def _loop(task: Task, threads: int, name: str) -> Timing:
    torch.set_num_threads(threads)
    clip = load_clip(task.model)
    ready, cpu = time.time(), time.process_time()
    pairs = _encode_all(clip, batches(task, clip), task.out / f"{name}.parquet")
    return Timing(ready, time.time(), time.process_time() - cpu, pairs)


def batches(task: Task, clip: Clip) -> Iterator[Batch]:
    """Yield (pixels `[B, 3, S, S] uint8`, captions, facts) of all rows of a task."""
    pixels: list[torch.Tensor] = []
    captions: list[str] = []
    facts: Facts = {}
    for key, image, caption, label in _rows(task):
        decoded = decode(image, MAX_PIXELS)
        looks = image_facts(decoded.rgb)
        row = {
            "uid": key,
            "uid_hex": hash_uid(key),
            "caption": caption,
            "image_sha256": sha256(image).hexdigest(),
            "width": decoded.width,
            "height": decoded.height,
            "pixel_std": looks.pixel_std,
            "dhash": looks.dhash,
            "label": label,
        }
        for name, value in row.items():
            facts.setdefault(name, []).append(value)
        pixels.append(clip.preprocess(decoded.rgb))
        captions.append(caption)
        if len(pixels) == BATCH:
            yield torch.stack(pixels), captions, facts
            pixels, captions, facts = [], [], {}
    if pixels:
        yield torch.stack(pixels), captions, facts


def _rows(task: Task) -> Iterator[tuple[str, bytes, str, int]]:
    for piece in task.pieces:
        row = 0
        columns = ["image", "label", "names"]
        for batch in pq.ParquetFile(piece.path).iter_batches(256, columns=columns):
            for image, label, names in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                if row >= piece.stop:
                    break
                if row >= piece.start:
                    key = f"{piece.shard}/{row:09d}"
                    yield key, image, task.captions.caption(key, names, label) or "", label
                row += 1
            if row >= piece.stop:
                break


class _Batches(IterableDataset):
    """The batches of a worker's share of the rows."""

    def __init__(self, task: Task, clip: Clip) -> None:
        self._task = task
        self._clip = clip

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        task = self._task
        torch.set_num_threads(1)
        share = split(task.pieces, worker.num_workers)[worker.id]
        yield from batches(Task(share, task.model, task.captions, task.out), self._clip)


def _texts(clip: Clip, captions: list[str]) -> np.ndarray:
    """Return `[B, D] float32`, unit norm: open_clip's own call, each distinct caption once."""
    unique, rows = torch.unique(clip.tokenize(captions), dim=0, return_inverse=True)
    with torch.inference_mode():
        return np.asarray(clip.model.encode_text(unique, normalize=True)[rows])


def _encode_all(clip: Clip, source: Any, path: Path) -> int:
    """Encode every batch and write one Parquet file; return the number of pairs."""
    layers = clip.layers()
    facts: Facts = {}
    vectors: dict[str, list[np.ndarray]] = {}
    for pixels, captions, rows in source:
        image, pooled = clip.encode_images(pixels, layers)
        found = {"image": image, "text": _texts(clip, captions)} | {f"layer.{n}": v for n, v in pooled.items()}
        for name, values in found.items():
            vectors.setdefault(name, []).append(values.astype(np.float16))
        for name, column in rows.items():
            facts.setdefault(name, []).extend(column)
    columns: dict[str, Any] = {name: pa.array(v, pa.uint64() if name == "dhash" else None) for name, v in facts.items()}
    for name, blocks in vectors.items():
        values = np.concatenate(blocks)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    pq.write_table(pa.table(columns), path, compression="zstd")
    return len(facts["uid"])
