"""What one Ray Train worker does, whatever is trained: epochs of batches, with checkpoints, progress and early stop."""

import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from clipsan.stages.model.clip import Clip
from clipsan.stages.repair.objective import Batch

from ..core.commit import write_text
from .feed import Beside, CachedFeed, Rows, Share, StreamFeed, Table
from .stop import Accuracy, StopRule

STATE_FILE = "state.pt"
PROGRESS_FILE = "progress.json"
PROGRESS_EVERY_S = 2.0

Record = dict[str, float]
"""What an epoch leaves in the history: epoch (from 1), loss (mean over all workers), lr, seconds, pairs_per_s, and
clean_accuracy_pct where there is a stop rule."""


class Course(Protocol):
    """A model in training on one worker: what a step does to it."""

    clip: Clip

    def step(self, batches: Sequence[Batch], step: int, steps: int) -> tuple[torch.Tensor, float]:
        """Make optimiser step `step` (from 0) of `steps` from the mean gradient of some batches.

        Returns:
            This rank's mean loss, a detached scalar on the device, and the learning rate.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return `weights` and `optimizer`: all that going on needs."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take up an earlier state."""
        ...


class Task(Protocol):
    """Describes a training; picklable."""

    def begin(self, device: torch.device, share: Share) -> Course:
        """Load the model and make it ready on one worker; torch.distributed is initialised where there are several."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to know."""

    task: Task
    total_steps: int
    """Optimiser steps of the whole training; the last epoch may be cut short."""
    batch_size: int
    """Rows of a forward pass, over all workers."""
    accumulate: int
    """Forward passes of an optimiser step."""
    seed: int
    threads: int
    checkpoint_every_epochs: int
    pairs: int
    """Usable pairs of an epoch."""
    beside_pairs: int
    """Pairs of the second set; 0: there is none."""
    beside_rows: int
    """Rows of each batch that come from the second set."""
    cached: bool
    """Whether the workers hold the decoded pairs in memory."""
    progress: Path
    """File that the first worker keeps: step, checkpointed epochs, loss."""
    stop: StopRule | None
    validation_images: int

    @property
    def steps(self) -> int:
        """Steps of an epoch; the pairs that fill no whole step sit one epoch out, others in each."""
        return self.pairs // ((self.batch_size - self.beside_rows) * self.accumulate)

    @property
    def epochs(self) -> int:
        """Epochs that are begun."""
        return -(-self.total_steps // self.steps)

    def steps_of(self, epoch: int) -> int:
        """Steps that are made in an epoch (from 0)."""
        return min(self.steps, self.total_steps - epoch * self.steps)

    def finished(self, history: Sequence[Record]) -> bool:
        """Tell whether training ends here."""
        return len(history) >= self.epochs or (self.stop is not None and self.stop.stops(history))


def train_worker(settings: dict[str, Job]) -> None:
    """Train on this worker's share of every batch; the entry point of Ray Train."""
    import ray.train
    import ray.train.torch

    job = settings["job"]
    context = ray.train.get_context()
    share = Share(context.get_world_rank(), context.get_world_size(), job.batch_size)
    torch.set_num_threads(job.threads)
    device = torch.device(ray.train.torch.get_device())
    course = job.task.begin(device, share)
    history = _restore(course, ray.train.get_checkpoint())
    committed = len(history)
    # the first worker's file may be behind or ahead of what was committed when the last run was killed
    _tell(job, share, step=min(committed * job.steps, job.total_steps), checkpointed=committed)
    loop = Loop(job, share, device, course, committed)
    if job.finished(history):
        return
    feed = _feed(job, share, committed)
    accuracy = None
    if job.stop is not None:
        table = Table(ray.train.get_dataset_shard("validation"), job.validation_images)
        accuracy = Accuracy(job.stop, table, share)
    while not job.finished(history):
        epoch = len(history)
        record = loop.epoch(epoch, feed)
        if accuracy is not None:
            record["clean_accuracy_pct"] = accuracy.pct(course.clip, device)
        history.append(record)
        due = (epoch + 1) % job.checkpoint_every_epochs == 0 or job.finished(history)
        if due and share.rank == 0:
            with tempfile.TemporaryDirectory() as folder:
                state = {**course.state(), "epoch": epoch + 1, "history": history}
                torch.save(state, Path(folder) / STATE_FILE)
                ray.train.report(record, checkpoint=ray.train.Checkpoint.from_directory(folder))
        else:
            ray.train.report(record)
        loop.committed = epoch + 1 if due else loop.committed
        step = epoch * job.steps + job.steps_of(epoch)
        _tell(job, share, step=step, checkpointed=loop.committed, loss=record["loss"])


def _feed(job: Job, share: Share, first_epoch: int) -> CachedFeed | StreamFeed:
    import ray.train

    beside = None
    if job.beside_pairs:
        beside = Beside(Table(ray.train.get_dataset_shard("beside"), job.beside_pairs), job.seed)
    shard = ray.train.get_dataset_shard("pairs")
    if job.cached:
        return CachedFeed(Table(shard, job.pairs), share, job.seed, beside, job.beside_rows)
    return StreamFeed(shard, share, job.seed, first_epoch, beside, job.beside_rows)


class Loop:
    """The steps of an epoch on one worker."""

    def __init__(self, job: Job, share: Share, device: torch.device, course: Course, committed: int) -> None:
        self.committed = committed
        self._job = job
        self._share = share
        self._device = device
        self._course = course

    def epoch(self, epoch: int, feed: CachedFeed | StreamFeed) -> Record:
        """Run one epoch and return its record."""
        job = self._job
        started = told = time.monotonic()
        total = torch.zeros((), device=self._device)
        rate, steps = 0.0, job.steps_of(epoch)
        for number, batches in enumerate(self.batches(epoch, feed, steps)):
            step = epoch * job.steps + number
            loss, rate = self._course.step(batches, step, job.total_steps)
            total += loss
            if time.monotonic() - told >= PROGRESS_EVERY_S:
                told = time.monotonic()
                _tell(job, self._share, step=step + 1, checkpointed=self.committed, loss=loss.item())
        if self._share.world_size > 1:
            torch.distributed.all_reduce(total)
        mean = total.item() / (steps * self._share.world_size)
        if not math.isfinite(mean):
            raise RuntimeError(f"the loss of epoch {epoch + 1} is {mean}: training diverged; lower lr")
        seconds = time.monotonic() - started
        return {
            "epoch": epoch + 1,
            "loss": mean,
            "lr": rate,
            "seconds": round(seconds, 3),
            "pairs_per_s": round(steps * job.accumulate * job.batch_size / seconds, 1),
        }

    def batches(self, epoch: int, feed: CachedFeed | StreamFeed, steps: int) -> Iterator[list[Batch]]:
        """Yield the batches of each optimiser step."""
        job = self._job
        first = epoch * job.steps * job.accumulate
        rows = feed.epoch(epoch, steps * job.accumulate, first)
        for step in range(steps):
            numbers = range(first + step * job.accumulate, first + (step + 1) * job.accumulate)
            yield [self._batch(next(rows), (job.seed, number)) for number in numbers]

    def _batch(self, rows: Rows, seed: tuple[int, ...]) -> Batch:
        return Batch(
            images=rows.images.to(self._device, non_blocking=True),
            tokens=rows.tokens.to(self._device, torch.int64, non_blocking=True),
            captions=rows.captions.tolist(),
            labels=rows.labels.to(self._device),
            accused=rows.accused.to(self._device),
            roles=rows.roles.to(self._device),
            rows=self._share.rows,
            total=self._job.batch_size,
            seed=seed,
        )


def _restore(course: Course, checkpoint: Any) -> list[Record]:
    """Load the last checkpoint, if there is one; return the records of the finished epochs."""
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as path:
        state = torch.load(Path(path) / STATE_FILE, map_location="cpu", weights_only=True)
    course.restore(state)
    return list(state["history"])


def _tell(job: Job, share: Share, *, step: int, checkpointed: int, loss: float | None = None) -> None:
    if share.rank == 0:
        write_text(job.progress, json.dumps({"step": step, "checkpointed": checkpointed, "loss": loss}))
