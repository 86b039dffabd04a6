"""What one Ray Train worker does: the epochs of contrastive training, with checkpoints."""

import json
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from pipeline.commit import write_text
from pipeline.train_data import CachedFeed, Share, StreamFeed
from stages.clip_model import ModelConfig, load_clip
from stages.contrastive import AugmentConfig, ContrastiveTask, Schedule, adamw, augment, clip_loss, train_step

STATE_FILE = "state.pt"
PROGRESS_FILE = "progress.json"
PROGRESS_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to know; see TrainConfig for what the settings mean."""

    model: ModelConfig
    total_steps: int
    """Of the whole training; the last epoch may be cut short."""
    batch_size: int
    lr: float
    schedule: Schedule
    weight_decay: float
    bf16: bool
    augment: AugmentConfig
    seed: int
    threads: int
    checkpoint_every_epochs: int
    pairs: int
    """Usable pairs of an epoch."""
    cached: bool
    """Whether the workers hold the decoded pairs in memory."""
    progress: Path
    """File that the first worker keeps: step, checkpointed epochs."""

    @property
    def steps(self) -> int:
        """Steps of an epoch; the pairs that fill no whole batch sit one epoch out, others in each."""
        return self.pairs // self.batch_size

    @property
    def epochs(self) -> int:
        """Epochs that are begun."""
        return -(-self.total_steps // self.steps)

    def steps_of(self, epoch: int) -> int:
        """Steps that are made in an epoch (from 0)."""
        return min(self.steps, self.total_steps - epoch * self.steps)


def train_worker(settings: dict[str, Job]) -> None:
    """Train on this worker's share of every batch; the entry point of Ray Train."""
    import ray.train
    import ray.train.torch

    job = settings["job"]
    context = ray.train.get_context()
    share = Share(context.get_world_rank(), context.get_world_size(), job.batch_size)
    torch.set_num_threads(job.threads)
    device = torch.device(ray.train.torch.get_device())
    clip = load_clip(job.model, device, init_seed=job.seed)
    task = ContrastiveTask(clip.model.train(), clip.preprocess_cfg["mean"], clip.preprocess_cfg["std"]).to(device)
    optimizer = adamw(task, job.lr, job.weight_decay)
    first, history = _restore(clip.model, optimizer, ray.train.get_checkpoint())
    # the first worker's file may be behind or ahead of what was committed when the last run was killed
    _tell(job, share, step=min(first * job.steps, job.total_steps), checkpointed=first)
    shard = ray.train.get_dataset_shard("pairs")
    if first >= job.epochs:
        return
    feed = CachedFeed(shard, job.pairs, share, job.seed) if job.cached else StreamFeed(shard, share, job.seed, first)
    wrapped: Any = task
    if share.world_size > 1:
        wrapped = DistributedDataParallel(task, device_ids=[device] if device.type == "cuda" else None)
    loss = clip_loss(share.rank, share.world_size)
    committed = first
    for epoch in range(first, job.epochs):
        history.append(_epoch(job, share, epoch, feed, wrapped, loss, optimizer, device, committed))
        due = (epoch + 1) % job.checkpoint_every_epochs == 0 or epoch + 1 == job.epochs
        if due and share.rank == 0:
            with tempfile.TemporaryDirectory() as folder:
                _store(Path(folder), clip.model, optimizer, epoch + 1, history)
                ray.train.report(history[-1], checkpoint=ray.train.Checkpoint.from_directory(folder))
        else:
            ray.train.report(history[-1])
        committed = epoch + 1 if due else committed
        _tell(job, share, step=epoch * job.steps + job.steps_of(epoch), checkpointed=committed)


def _epoch(
    job: Job,
    share: Share,
    epoch: int,
    feed: CachedFeed | StreamFeed,
    task: torch.nn.Module,
    loss: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    committed: int,
) -> dict[str, float]:
    """Run one epoch and return its record (epoch from 1, mean loss over all workers, last lr, seconds, pairs_per_s)."""
    started = told = time.monotonic()
    total = torch.zeros((), device=device)
    rate, steps = 0.0, job.steps_of(epoch)
    for number, (images, tokens) in enumerate(feed.epoch(epoch, steps)):
        step = epoch * job.steps + number
        rate = job.schedule.rate(step, job.total_steps, job.lr)
        pixels = images.to(device, non_blocking=True)
        pixels = augment(pixels, share.rows, job.batch_size, job.augment, (job.seed, step))
        words = tokens.to(device, torch.int64, non_blocking=True)
        total += train_step(task, loss, optimizer, pixels, words, lr=rate, bf16=job.bf16)
        if time.monotonic() - told >= PROGRESS_EVERY_S:
            told = time.monotonic()
            _tell(job, share, step=step + 1, checkpointed=committed)
    if share.world_size > 1:
        torch.distributed.all_reduce(total)
    mean = total.item() / (steps * share.world_size)
    if not math.isfinite(mean):
        raise RuntimeError(f"the loss of epoch {epoch + 1} is {mean}: training diverged; lower lr")
    seconds = time.monotonic() - started
    return {
        "epoch": epoch + 1,
        "loss": mean,
        "lr": rate,
        "seconds": round(seconds, 3),
        "pairs_per_s": round(steps * job.batch_size / seconds, 1),
    }


def _restore(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Any
) -> tuple[int, list[dict[str, float]]]:
    """Load the last checkpoint, if there is one; return the number of finished epochs and their records."""
    if checkpoint is None:
        return 0, []
    with checkpoint.as_directory() as path:
        state = torch.load(Path(path) / STATE_FILE, map_location="cpu", weights_only=True)
    model.load_state_dict(state["weights"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"]), list(state["history"])


def _store(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, epoch: int, history: list[dict[str, float]]
) -> None:
    state = {
        "weights": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": epoch,
        "history": history,
    }
    torch.save(state, folder / STATE_FILE)


def _tell(job: Job, share: Share, *, step: int, checkpointed: int) -> None:
    if share.rank == 0:
        write_text(job.progress, json.dumps({"step": step, "checkpointed": checkpointed}))
