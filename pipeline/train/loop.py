"""The loop of every training on one worker: epochs of batches, from one measurement to the next.

It is the same inside a worker of Ray Train (`clipsan train`, `clipsan repair`), inside a trial of Ray Tune, and for the canary of a
sweep. Whoever runs it says where it wants to measure, and does there what is its own: checkpoints, early stop, records.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from clipsan.stages.training.batch import Batch

from .ahead import ahead
from .feed import Rows, Share


class Trained(Protocol):
    """One model in training, or several that learn from the same batches."""

    def step(self, batches: Sequence[Batch], step: int, steps: int) -> tuple[torch.Tensor, float]:
        """Make an optimiser step; see pipeline.train.task.Course."""
        ...

    def shorten(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens without what no model reads; see Clip.shorten."""
        ...


class Feed(Protocol):
    """This worker's rows of every global batch."""

    def epoch(self, epoch: int, steps: int, first: int) -> Iterator[Rows]:
        """Yield its rows of each batch of one epoch; see pipeline.train.feed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a training goes over its pairs."""

    total_steps: int
    """Optimiser steps of the whole training; the last epoch may be cut short."""
    batch_size: int
    """Rows of a forward pass, over all workers."""
    accumulate: int = 1
    """Forward passes of an optimiser step."""
    pairs: int
    """Usable pairs of an epoch."""
    beside_rows: int = 0
    """Rows of each batch that come from the second set."""
    seed: int

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

    def steps_after(self, epochs: int) -> int:
        """Steps that have been made after so many epochs."""
        return min(epochs * self.steps, self.total_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What the steps since the last measurement came to."""

    step: int
    """Steps that have been made in all."""
    loss: float
    """Mean over these steps and all workers."""
    lr: float
    """Rate of the last of them."""
    seconds: float
    """That they took."""


def train(
    trained: Trained,
    feed: Feed,
    pace: Pace,
    share: Share,
    device: torch.device,
    *,
    points: Collection[int],
    done: int = 0,
    tell: Callable[[int, torch.Tensor], None] | None = None,
) -> Iterator[Point]:
    """Train, and yield after each of some steps; all workers call this at the same time.

    Args:
        trained: what learns.
        feed: what it learns from.
        pace: how.
        share: this worker's part of every batch.
        device: where the batches go.
        points: numbers of steps after which it is measured.
        done: steps that were made before; of an epoch that was begun, their batches are drawn again and left out.
        tell: is told the number of steps and the last one's loss, after each.

    Raises:
        RuntimeError: the loss is no number.
    """
    total, last = torch.zeros((), device=device), done
    started = time.monotonic()
    drawn = (replace(rows, tokens=trained.shorten(rows.tokens)) for rows in _rows(feed, pace, done))
    with contextlib.closing(ahead(drawn, device)) as rows:
        for step in range(done, pace.total_steps):
            numbers = range(step * pace.accumulate, (step + 1) * pace.accumulate)
            batches = [_batch(next(rows), (pace.seed, number), pace, share) for number in numbers]
            loss, rate = trained.step(batches, step, pace.total_steps)
            total += loss
            if tell is not None:
                tell(step + 1, loss)
            if step + 1 not in points:
                continue
            mean = _mean(total, step + 1 - last, share)
            if not math.isfinite(mean):
                raise RuntimeError(f"the loss is {mean} at step {step + 1}: training diverged; lower lr")
            yield Point(step=step + 1, loss=mean, lr=rate, seconds=time.monotonic() - started)
            total, last = torch.zeros((), device=device), step + 1
            started = time.monotonic()


def _rows(feed: Feed, pace: Pace, done: int) -> Iterator[Rows]:
    """Yield this worker's rows of every batch, epoch after epoch, from that of step `done` on."""
    for epoch in range(done // pace.steps, pace.epochs):
        first = epoch * pace.steps * pace.accumulate
        epoch_rows = feed.epoch(epoch, pace.steps_of(epoch) * pace.accumulate, first)
        yield from itertools.islice(epoch_rows, max(0, done * pace.accumulate - first), None)


def _mean(total: torch.Tensor, steps: int, share: Share) -> float:
    """Return the mean loss over some steps and all workers, from this worker's sum."""
    if share.world_size > 1:
        torch.distributed.all_reduce(total)
    return total.item() / (steps * share.world_size)


def _batch(rows: Rows, seed: tuple[int, ...], pace: Pace, share: Share) -> Batch:
    return Batch(
        images=rows.images,
        tokens=rows.tokens.to(torch.int64),
        captions=rows.captions,
        labels=rows.labels,
        accused=rows.accused,
        roles=rows.roles,
        rows=share.rows,
        total=pace.batch_size,
        seed=seed,
    )
