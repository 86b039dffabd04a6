"""The training loop with its feeds, against a plain PyTorch loop over the same model and rows.

    python -m tests.benchmarks.feed                                   rows in memory: a small ResNet at 64 px
    python -m tests.benchmarks.feed --streamed                        rows read and decoded anew in every epoch
    python -m tests.benchmarks.feed --batch 64 --steps 20 --runs 5

Both learn by the same objective, batch, rate and optimiser. In memory, the plain loop draws a permutation with torch, indexes the
tensors and steps. Streamed, both read drawn JPEGs from Parquet files: clipsan through Ray Data, the plain loop through a DataLoader, each
with one process that decodes beside the one that learns, and with a shuffle buffer of the same size; a second comparison learns
nothing and takes the rows alone, as a GPU would that is never busy. Where there is a GPU the loops run on it, the plain ones with copies
from pinned memory. The loops take turns, so that a slow spell of the machine meets both. On a CPU the processor time of all processes is
given beside the rate: it says the same on a machine that others use. The clock starts after the second step. The SHA-256 is that of the
weights that the loop with its feed ends with: the same before and after a change to the feed.
"""

import argparse
import hashlib
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from clipsan.pipeline.core.cluster import ClusterConfig, ray_session, start_ray
from clipsan.pipeline.core.config import conf_folder
from clipsan.pipeline.train.data import SHUFFLE_ROWS, Reading, Usable, epoch_units, rows_dataset
from clipsan.pipeline.train.feed import CachedFeed, Share, StreamFeed, Table
from clipsan.pipeline.train.loop import Pace, train
from clipsan.pipeline.train.task import Course, Task
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.samples import Unit
from clipsan.stages.sources import ParquetSource, list_pieces
from clipsan.stages.training.augment import AugmentConfig
from clipsan.stages.training.batch import Batch
from clipsan.stages.training.contrastive import Contrastive
from clipsan.stages.training.optimise import OneCycle

COMMAND = "python -m tests.benchmarks.feed"
SEED = 0
WARM_UP = 2
"""Steps before the clock starts."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One run of one loop."""

    seconds: float
    cpu_s: float
    weights: str
    """SHA-256; empty where nothing was learned."""


class Watch:
    """Counts from now on: time, and processor time of this process and all below it."""

    def __init__(self) -> None:
        self._before = self._spent()
        self._began = time.perf_counter()

    def stopped(self, course: Course | None = None) -> Timing:
        """Return what has been counted, and what was learned; a process that has ended by now is not counted."""
        seconds, spent = time.perf_counter() - self._began, self._spent()
        cpu = sum(now - self._before.get(process, 0.0) for process, now in spent.items())
        return Timing(seconds, cpu, "" if course is None else weights_of(course))

    @staticmethod
    def _spent() -> dict[int, float]:
        here = psutil.Process()
        return {process.pid: sum(process.cpu_times()[:2]) for process in (here, *here.children(recursive=True))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What both loops train."""

    model: Path
    rows: int
    batch: int
    steps: int
    device: torch.device

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def total_steps(self) -> int:
        return WARM_UP + self.steps

    @property
    def epochs(self) -> int:
        """Of a stream."""
        return -(-self.total_steps // (self.rows // self.batch))

    def course(self) -> Course:
        """Return a fresh model in training."""
        method = Contrastive(lr=1e-3, schedule=OneCycle(), weight_decay=0.05, augment=AugmentConfig(min_area=0.7))
        model = ModelConfig(config=str(self.model))
        task = Task(model=model, method=method, bf16=self.on_gpu, seed=SEED, from_scratch=True)
        return task.begin(self.device, Share(0, 1, self.batch))

    def columns(self, course: Course) -> dict[str, np.ndarray]:
        """Return the rows as Ray Data hands them to a worker: noise, and captions of a few words."""
        rng = np.random.default_rng(SEED)
        size = course.clip.image_size
        captions = [f"a photo of a {number} in the {number % 37}" for number in rng.integers(1000, size=self.rows)]
        return {
            "order": rng.integers(2**62, size=self.rows),
            "image": rng.integers(256, size=(self.rows, 3, size, size), dtype=np.uint8),
            "tokens": course.clip.tokenize(captions).to(torch.int32).numpy(),
            "caption": np.array(captions, object),
            "label": np.full(self.rows, -1, np.int64),
            "accused": np.full(self.rows, -1, np.int64),
            "role": np.zeros(self.rows, np.uint8),
        }


class _InMemory:
    """The rows, read as a Ray Dataset is."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self._columns = columns

    def iter_batches(self, **_: Any) -> Iterator[dict[str, np.ndarray]]:
        yield self._columns


def with_feed(case: Case) -> Timing:
    """Run the product's loop, as a worker of Ray Train does."""
    course = case.course()
    table = Table(_InMemory(case.columns(course)), case.rows)
    return by_the_loop(case, course, CachedFeed(table, Share(0, 1, case.batch), SEED))


def by_the_loop(case: Case, course: Course, feed: CachedFeed | StreamFeed) -> Timing:
    """Learn from a feed in the product's loop."""
    share = Share(0, 1, case.batch)
    pace = Pace(total_steps=case.total_steps, batch_size=case.batch, pairs=case.rows, seed=SEED)
    watch = Watch()
    for point in train(course, feed, pace, share, case.device, points={WARM_UP, case.total_steps}):
        if point.step == WARM_UP:
            watch = Watch()
    return watch.stopped(course)


def plain(case: Case) -> Timing:
    """Run a loop as one would write it."""
    course = case.course()
    columns = case.columns(course)
    own = [torch.from_numpy(columns[name]) for name in ("image", "tokens", "label", "role")]
    return learned(case, course, drawn(case, own))


def drawn(case: Case, columns: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield batches of the rows in memory, permutation after permutation."""
    generator = torch.Generator().manual_seed(SEED)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(case.total_steps):
        if len(order) < case.batch:
            order = torch.randperm(case.rows, generator=generator)
        rows, order = order[: case.batch], order[case.batch :]
        own = [column[rows] for column in columns]
        yield [column.pin_memory() for column in own] if case.on_gpu else own


def learned(case: Case, course: Course, batches: Iterator[list[torch.Tensor]]) -> Timing:
    """Learn from batches of images, tokens, labels and roles."""
    loss = torch.zeros(())
    watch = Watch()
    for step in range(case.total_steps):
        if step == WARM_UP:
            loss.item()
            watch = Watch()
        own = next(batches)
        images, tokens, labels, roles = (column.to(case.device, non_blocking=case.on_gpu) for column in own)
        batch = Batch(
            images=images,
            tokens=tokens.long(),
            captions=[],
            labels=labels,
            accused=labels,
            roles=roles,
            rows=slice(0, case.batch),
            total=case.batch,
            seed=(SEED, step),
        )
        loss, _ = course.step([batch], step, case.total_steps)
    loss.item()
    return watch.stopped(course)


@dataclass(frozen=True, slots=True)
class Photos:
    """Drawn photos in files, and how they are read."""

    units: list[Unit]
    reading: Reading


@contextmanager
def photos(case: Case) -> Iterator[Photos]:
    """Have the rows as JPEGs in a Parquet file, with Ray running and its process that decodes started."""
    clip = case.course().clip
    rng = np.random.default_rng(SEED)
    columns: dict[str, list[Any]] = {"image": [], "caption": []}
    for number in rng.integers(1000, size=case.rows):
        small = Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((clip.image_size, clip.image_size), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        columns["image"].append(file.getvalue())
        columns["caption"].append(f"a photo of a {number} in the {number % 37}")
    with tempfile.TemporaryDirectory(prefix="clipsan-feed-") as folder, ray_session(ClusterConfig(workers=1)):
        pq.write_table(pa.table(columns), Path(folder) / "photos.parquet", row_group_size=1024)
        source = ParquetSource(path=f"{folder}/photos.parquet")
        reading = Reading(source, ModelConfig(config=str(case.model)), max_pixels=10**8, seed=SEED)
        found = Photos(list_pieces(source), reading)
        start_ray()
        from ray.data import DataContext, ExecutionResources

        options = DataContext.get_current().execution_options
        options.preserve_order = True
        options.resource_limits = ExecutionResources.for_limits(cpu=1)  # the other is the worker's that learns
        rows_dataset(found.units[:1], reading).materialize()
        yield found


def stream_of(case: Case, found: Photos) -> StreamFeed:
    """Return the product's feed, as a worker of Ray Train has it."""
    units = epoch_units(found.units, range(case.epochs), SEED)
    (shard,) = rows_dataset(units, found.reading).streaming_split(1)
    return StreamFeed(shard, Share(0, 1, case.batch), SEED, 0)


def with_stream(case: Case, found: Photos) -> Timing:
    """Run the product's loop over the stream."""
    return by_the_loop(case, case.course(), stream_of(case, found))


def plain_stream(case: Case, found: Photos) -> Timing:
    """Run a loop over a DataLoader, as one would write it."""
    course = case.course()
    return learned(case, course, loader_of(case, found, course))


def stream_alone(case: Case, found: Photos) -> Timing:
    """Take the rows of the product's feed and learn nothing."""
    return taken(case, stream_of(case, found).epoch(0, case.total_steps, 0))


def loader_alone(case: Case, found: Photos) -> Timing:
    """Take the rows of the DataLoader and learn nothing."""
    return taken(case, loader_of(case, found, case.course()))


def taken(case: Case, batches: Iterator[Any]) -> Timing:
    """Take all batches."""
    watch = Watch()
    for step in range(case.total_steps):
        if step == WARM_UP:
            watch = Watch()
        next(batches)
    return watch.stopped()


def loader_of(case: Case, found: Photos, course: Course) -> Iterator[list[torch.Tensor]]:
    """Return the batches of a DataLoader of the same rows with one process."""
    rows = _Decoded(case, found, course)
    return iter(DataLoader(rows, batch_size=None, num_workers=1, prefetch_factor=4, pin_memory=case.on_gpu))


class _Decoded(IterableDataset):
    """Batches of decoded rows: the units in a new order each epoch, their rows through a shuffle buffer."""

    def __init__(self, case: Case, found: Photos, course: Course) -> None:
        self._case = case
        self._found = found
        self._inputs = course.clip.inputs

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        torch.set_num_threads(1)
        rows: list[tuple[torch.Tensor, str]] = []
        for image, caption in self._shuffled():
            rows.append((image, caption))
            if len(rows) == self._case.batch:
                images, captions = zip(*rows, strict=True)
                labels = torch.full((len(rows),), -1)
                tokens = self._inputs.tokenize(captions)
                yield [torch.stack(images), tokens, labels, torch.zeros(len(rows), dtype=torch.uint8)]
                rows = []

    def _shuffled(self) -> Iterator[tuple[torch.Tensor, str]]:
        rng = np.random.default_rng(SEED)
        waiting: list[tuple[torch.Tensor, str]] = []
        for row in self._rows():
            if len(waiting) < SHUFFLE_ROWS:
                waiting.append(row)
                continue
            place = int(rng.integers(len(waiting)))
            waiting[place], row = row, waiting[place]
            yield row
        rng.shuffle(waiting)
        yield from waiting

    def _rows(self) -> Iterator[tuple[torch.Tensor, str]]:
        reading = self._found.reading
        for unit in epoch_units(self._found.units, range(self._case.epochs), SEED):
            for pair in reading.pairs(unit, reading.choice.of(unit)):
                if isinstance(pair, Usable):
                    yield self._inputs.preprocess(pair.rgb), pair.caption


def weights_of(course: Course) -> str:
    """Return the SHA-256 of the trained weights."""
    digest = hashlib.sha256()
    for _, value in sorted(course.state()["weights"].items()):
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def compare(what: str, pairs: int, runs: int, ours: Callable[[], Timing], theirs: Callable[[], Timing]) -> None:
    """Run both in turn, and print each run and the medians."""
    ratios, cpu_ratios = [], []
    for number in range(runs):
        if number % 2:
            feed, plain_loop = ours(), theirs()
        else:
            plain_loop, feed = theirs(), ours()
        ratios.append(plain_loop.seconds / feed.seconds)
        cpu_ratios.append(plain_loop.cpu_s / feed.cpu_s)
        sys.stdout.write(
            f"{what}, run {number + 1}: feed {pairs / feed.seconds:,.0f} pairs/s ({1000 * feed.cpu_s / pairs:.3f} CPU s a thousand), "
            f"plain loop {pairs / plain_loop.seconds:,.0f} ({1000 * plain_loop.cpu_s / pairs:.3f}), weights {feed.weights[:16] or '-'}\n"
        )
        sys.stdout.flush()
    sys.stdout.write(
        f"{what}: ratio_to_plain_loop {median(ratios):.3f} (median of {runs}; {min(ratios):.3f} to {max(ratios):.3f}), "
        f"by processor time {median(cpu_ratios):.3f}\n"
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=conf_folder() / "model" / "resnet10t-64.json", help="JSON file")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--streamed", action="store_true", help="read and decode the rows in every epoch")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = Case(model=options.model, rows=options.rows, batch=options.batch, steps=options.steps, device=device)
    sys.stdout.write(f"{options.model.stem}, batch {case.batch}, {case.steps} steps a run, {device}\n")
    pairs, runs = case.batch * case.steps, options.runs
    if not options.streamed:
        compare("in memory", pairs, runs, lambda: with_feed(case), lambda: plain(case))
        return 0
    torch.set_num_threads(1)
    with photos(case) as found:
        compare("rows alone", pairs, runs, lambda: stream_alone(case, found), lambda: loader_alone(case, found))
        compare("streamed", pairs, runs, lambda: with_stream(case, found), lambda: plain_stream(case, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
