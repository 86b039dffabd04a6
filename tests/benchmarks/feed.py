"""The training loop with its feed, against a plain PyTorch loop over the same model and rows.

    python -m tests.benchmarks.feed                                   a small ResNet at 64 px
    python -m tests.benchmarks.feed --batch 64 --steps 20 --runs 5

Both learn from rows in memory by the same objective, batch, rate and optimiser; the plain loop draws a permutation with torch, indexes
the tensors and steps. Where there is a GPU both run on it, the plain loop with copies from pinned memory. The loops take turns, so
that a slow spell of the machine meets both. On a CPU the processor time is given beside the rate: it says the same on a machine that
others use. The SHA-256 is that of the weights that the loop with its feed ends with: the same before and after a change to the feed.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from clipsan.pipeline.core.config import conf_folder
from clipsan.pipeline.train.feed import CachedFeed, Share, Table
from clipsan.pipeline.train.loop import Pace, train
from clipsan.pipeline.train.task import Course, Task
from clipsan.stages.model.clip import ModelConfig
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
    """SHA-256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What both loops train."""

    model: Path
    rows: int
    batch: int
    steps: int
    device: torch.device

    def course(self) -> Course:
        """Return a fresh model in training."""
        method = Contrastive(lr=1e-3, schedule=OneCycle(), weight_decay=0.05, augment=AugmentConfig(min_area=0.7))
        model = ModelConfig(config=str(self.model))
        bf16 = self.device.type == "cuda"
        task = Task(model=model, method=method, bf16=bf16, seed=SEED, from_scratch=True)
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
    share = Share(0, 1, case.batch)
    pace = Pace(total_steps=WARM_UP + case.steps, batch_size=case.batch, pairs=case.rows, seed=SEED)
    ends = {WARM_UP, pace.total_steps}
    began = cpu = 0.0
    for point in train(course, CachedFeed(table, share, SEED), pace, share, case.device, points=ends):
        if point.step == WARM_UP:
            began, cpu = time.perf_counter(), time.process_time()
    return Timing(time.perf_counter() - began, time.process_time() - cpu, weights_of(course))


def plain(case: Case) -> Timing:
    """Run a loop as one would write it."""
    course = case.course()
    columns = case.columns(course)
    on_gpu = case.device.type == "cuda"
    images, tokens, labels, roles = (torch.from_numpy(columns[name]) for name in ("image", "tokens", "label", "role"))
    steps, began, cpu = WARM_UP + case.steps, 0.0, 0.0
    order = torch.empty(0, dtype=torch.int64)
    generator = torch.Generator().manual_seed(SEED)
    loss = torch.zeros(())
    for step in range(steps):
        if step == WARM_UP:
            loss.item()
            began, cpu = time.perf_counter(), time.process_time()
        if len(order) < case.batch:
            order = torch.randperm(case.rows, generator=generator)
        rows, order = order[: case.batch], order[case.batch :]
        own = [column[rows] for column in (images, tokens, labels, labels, roles)]
        if on_gpu:
            own = [column.pin_memory().to(case.device, non_blocking=True) for column in own]
        batch = Batch(
            images=own[0],
            tokens=own[1].long(),
            captions=[],
            labels=own[2],
            accused=own[3],
            roles=own[4],
            rows=slice(0, case.batch),
            total=case.batch,
            seed=(SEED, step),
        )
        loss, _ = course.step([batch], step, steps)
    loss.item()
    return Timing(time.perf_counter() - began, time.process_time() - cpu, weights_of(course))


def weights_of(course: Course) -> str:
    """Return the SHA-256 of the trained weights."""
    digest = hashlib.sha256()
    for _, value in sorted(course.state()["weights"].items()):
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=conf_folder() / "model" / "resnet10t-64.json", help="JSON file")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = Case(model=options.model, rows=options.rows, batch=options.batch, steps=options.steps, device=device)
    sys.stdout.write(f"{options.model.stem}, batch {case.batch}, {case.steps} steps a run, {device}\n")
    pairs = case.batch * case.steps
    ratios, cpu_ratios = [], []
    for number in range(options.runs):
        if number % 2:
            ours, theirs = with_feed(case), plain(case)
        else:
            theirs, ours = plain(case), with_feed(case)
        ratios.append(theirs.seconds / ours.seconds)
        cpu_ratios.append(theirs.cpu_s / ours.cpu_s)
        sys.stdout.write(
            f"run {number + 1}: feed {pairs / ours.seconds:,.0f} pairs/s ({1000 * ours.cpu_s / pairs:.3f} CPU s a thousand), "
            f"plain loop {pairs / theirs.seconds:,.0f} ({1000 * theirs.cpu_s / pairs:.3f}), weights {ours.weights[:16]}\n"
        )
        sys.stdout.flush()
    sys.stdout.write(
        f"ratio_to_plain_loop {median(ratios):.3f} (median of {len(ratios)}; {min(ratios):.3f} to {max(ratios):.3f}), "
    )
    sys.stdout.write(f"by processor time {median(cpu_ratios):.3f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
