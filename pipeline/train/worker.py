"""What one Ray Train worker does for `clipsan train` and `clipsan repair`: the loop, with checkpoints, progress and early stop."""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.commit import write_text
from ..core.place import AnyPath
from .feed import Beside, CachedFeed, Share, StreamFeed, Table
from .loop import Pace, train
from .stop import Accuracy, StopRule
from .task import Course, Task

STATE_FILE = "state.pt"
PROGRESS_FILE = "progress.json"
PROGRESS_EVERY_S = 2.0

Record = dict[str, float]
"""What an epoch leaves in the history: epoch (from 1), loss (mean over all workers), lr, seconds, pairs_per_s, and
clean_accuracy_pct where there is a stop rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker needs to know."""

    task: Task
    pace: Pace
    threads: int
    checkpoint_every_epochs: int
    beside_pairs: int
    """Pairs of the second set; 0: there is none."""
    cached: bool
    """Whether the workers hold the decoded pairs in memory."""
    progress: AnyPath
    """File that the first worker keeps: step, checkpointed epochs, loss."""
    stop: StopRule | None
    validation_images: int

    def finished(self, history: Sequence[Record]) -> bool:
        """Tell whether training ends here."""
        return len(history) >= self.pace.epochs or (self.stop is not None and self.stop.stops(history))


def this_worker(batch_size: int, threads: int) -> tuple[Share, torch.device]:
    """Return what this worker of Ray Train has of every batch, and its device; pin its threads."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    torch.set_num_threads(threads)
    share = Share(context.get_world_rank(), context.get_world_size(), batch_size)
    return share, torch.device(ray.train.torch.get_device())


def train_worker(settings: dict[str, Job]) -> None:
    """Train on this worker's share of every batch; the entry point of Ray Train."""
    import ray.train

    job = settings["job"]
    pace = job.pace
    share, device = this_worker(pace.batch_size, job.threads)
    course = job.task.begin(device, share)
    history = _restore(course, ray.train.get_checkpoint())
    done = pace.steps_after(len(history))
    # the first worker's file may be behind or ahead of what was committed when the last run was killed
    progress = _Progress(job.progress, share, checkpointed=len(history))
    progress.write(done)
    if job.finished(history):
        return
    feed = _feed(job, share, len(history))
    accuracy = _accuracy(job, share)
    ends = {pace.steps_after(epoch + 1) for epoch in range(pace.epochs)}
    for point in train(course, feed, pace, share, device, points=ends, done=done, tell=progress):
        epoch = len(history)
        rows = pace.steps_of(epoch) * pace.accumulate * pace.batch_size
        record = {
            "epoch": epoch + 1,
            "loss": point.loss,
            "lr": point.lr,
            "seconds": round(point.seconds, 3),
            "pairs_per_s": round(rows / point.seconds, 1),
        }
        if accuracy is not None:
            record["clean_accuracy_pct"] = accuracy.pct(course.clip, device)
        history.append(record)
        finished = job.finished(history)
        due = finished or (epoch + 1) % job.checkpoint_every_epochs == 0
        _report(course, history, share, with_state=due)
        progress.checkpointed = epoch + 1 if due else progress.checkpointed
        progress.write(point.step, point.loss)
        if finished:
            return


def _report(course: Course, history: list[Record], share: Share, *, with_state: bool) -> None:
    """Tell Ray Train of an epoch; the first worker hands over the checkpoint, where one is due."""
    import ray.train

    if not with_state or share.rank != 0:
        ray.train.report(history[-1])
        return
    with tempfile.TemporaryDirectory() as folder:
        state = {**course.state(), "epoch": len(history), "history": history}
        torch.save(state, Path(folder) / STATE_FILE)
        ray.train.report(history[-1], checkpoint=ray.train.Checkpoint.from_directory(folder))


def _restore(course: Course, checkpoint: Any) -> list[Record]:
    """Load the last checkpoint, if there is one; return the records of the finished epochs."""
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as path:
        state = torch.load(Path(path) / STATE_FILE, map_location="cpu", weights_only=True)
    course.restore(state)
    return list(state["history"])


def _feed(job: Job, share: Share, first_epoch: int) -> CachedFeed | StreamFeed:
    import ray.train

    pace, beside = job.pace, None
    if job.beside_pairs:
        beside = Beside(Table(ray.train.get_dataset_shard("beside"), job.beside_pairs), pace.seed)
    shard = ray.train.get_dataset_shard("pairs")
    if job.cached:
        return CachedFeed(Table(shard, pace.pairs), share, pace.seed, beside, pace.beside_rows)
    return StreamFeed(shard, share, pace.seed, first_epoch, beside, pace.beside_rows)


def _accuracy(job: Job, share: Share) -> Accuracy | None:
    import ray.train

    if job.stop is None:
        return None
    return Accuracy(job.stop, Table(ray.train.get_dataset_shard("validation"), job.validation_images), share)


class _Progress:
    """Keeps the first worker's file up to date, every few seconds and whenever it is told to."""

    def __init__(self, path: AnyPath, share: Share, checkpointed: int) -> None:
        self.checkpointed = checkpointed
        self._path = path if share.rank == 0 else None
        self._told = time.monotonic()

    def __call__(self, step: int, loss: torch.Tensor) -> None:
        if self._path is not None and time.monotonic() - self._told >= PROGRESS_EVERY_S:
            self.write(step, loss.item())

    def write(self, step: int, loss: float | None = None) -> None:
        """Write the file."""
        self._told = time.monotonic()
        if self._path is not None:
            write_text(self._path, json.dumps({"step": step, "checkpointed": self.checkpointed, "loss": loss}))
