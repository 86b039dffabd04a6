"""`clipsan train`: contrastive training or fine-tuning of a CLIP model on pairs, on Ray Train."""

import dataclasses
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clipsan.stages.decode import MAX_PIXELS, MaxPixels
from clipsan.stages.model.checkpoints import check_softmax, load_weights
from clipsan.stages.model.clip import ModelConfig, load_clip, save_clip
from clipsan.stages.samples import Unit
from clipsan.stages.sources import SourceConfig, identity, list_units
from clipsan.stages.stage import config
from clipsan.stages.training.contrastive import AugmentConfig, OneCycle, Schedule

from ..core.cluster import ClusterConfig, ray_session
from ..core.commit import fingerprint
from ..core.config import ConfigError, as_tree, load
from ..core.run_folder import RunFolder, open_run, read_summary, write_summary
from ..tracking.record import TrackingConfig, data_input, metrics_of
from ..tracking.send import log_run
from .data import Reading
from .fit import Checked, Order, PairSet, check, fit
from .task import PlainTask

TRAIN_VERSION = 1
"""Raised when the code comes to train another model from the same settings, so that old checkpoints are refused."""


@config
class TrainConfig:
    """Everything that decides a training run."""

    data: SourceConfig
    """The pairs."""
    model: ModelConfig
    """What is trained: from scratch where it names no weights, else fine-tuned."""
    out: str
    """Run folder; the model ends in OUT/checkpoint."""
    epochs: int | None = None
    """Passes over the pairs. Give this or `steps`."""
    steps: int | None = None
    """Optimiser steps; the last epoch ends where they are done."""
    batch_size: int
    """Pairs of a global batch, over all workers; each is every other's negative."""
    lr: float
    """Peak learning rate: about 2e-3 from scratch, 1e-5 to fine-tune."""
    schedule: Schedule = field(default_factory=OneCycle)
    """How the rate moves from step to step."""
    weight_decay: float = 0.05
    """AdamW's, on matrices and kernels."""
    precision: Literal["f32", "bf16"] = "f32"
    """Of the forward pass; weights and loss are float32 either way."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random crops and flips."""
    seed: int = 0
    """Of weights, order and augmentation."""
    checkpoint_every_epochs: int = 1
    """How much work a kill can cost."""
    retries: int = 2
    """Times the workers are started again from the last checkpoint when one is lost, within one run."""
    memory_mb: int = 2048
    """Sets whose decoded pixels fit are held in every worker's memory; larger ones are streamed."""
    max_pixels: MaxPixels = MAX_PIXELS
    """An image whose header claims more is rejected undecoded."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers, threads, GPUs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps, and null for the other")
        for name in ("epochs", "steps", "checkpoint_every_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.batch_size < 2:
            raise ValueError("batch_size must be at least 2: a contrastive loss needs a negative")
        if self.lr <= 0:
            raise ValueError("lr must be positive")
        if self.retries < 0 or self.memory_mb < 0 or self.weight_decay < 0:
            raise ValueError("retries, memory_mb and weight_decay must not be negative")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished training run."""

    checkpoint: Path
    """Folder that ModelConfig(path=...) and open_clip's local-dir: load."""
    history: list[dict[str, float]]
    """One record an epoch: epoch (from 1), loss, lr, seconds, pairs_per_s."""
    counts: dict[str, int]
    """pairs_in, used, rejected."""
    summary: dict[str, Any]
    """What stands in summary.json."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A training run, checked before any worker starts."""

    config: TrainConfig
    units: list[Unit]
    image_size: int
    model_fingerprint: str
    mark: str
    tree: dict[str, Any]

    def describe(self) -> str:
        """Return the plan as text for --dry-run."""
        c = self.config
        start = "from scratch" if c.model.path is None else f"from {c.model.path}"
        length = f"{c.epochs} epochs" if c.steps is None else f"{c.steps} steps"
        lines = [
            f"data       {len(self.units)} units of {len({u.shard for u in self.units})} shards ({c.data.kind})",
            f"model      {self.model_fingerprint[:12]} {start}, {self.image_size} px",
            f"out        {c.out}",
            f"training   {length}, batch {c.batch_size}, lr {c.lr:g} {c.schedule.kind}, {c.precision}, seed {c.seed}",
            f"workers    {c.cluster.worker_count()} x {c.cluster.threads_per_worker} threads, "
            f"{c.cluster.gpus_per_worker:g} GPU each, "
            + (f"Ray at {c.cluster.address}" if c.cluster.address else "a private Ray on this machine"),
            f"passes     checked -> rejected/, training -> checkpoint/  ({self.mark[:12]})",
        ]
        return "\n".join(lines) + "\n"


def command(file: str | None, overrides: list[str], dry_run: bool) -> int:
    """Run the verb from the command line."""
    plan = make_plan(load(TrainConfig, file, overrides, verb="train"))
    if dry_run:
        sys.stdout.write(plan.describe())
        return 0
    result = run_plan(plan)
    counts = result.counts
    sys.stdout.write(
        f"train: {counts['used']:,} pairs, {counts['rejected']:,} rejected, loss {result.history[-1]['loss']:.4f} "
        f"after {len(result.history)} epochs in {result.summary['seconds']:.0f} s; look at {result.checkpoint}\n"
    )
    return 0


def make_plan(settings: TrainConfig) -> Plan:
    """Check everything that can be checked before a worker starts.

    Raises:
        ConfigError, ValueError, OSError: no data, an unreadable model, a batch that the workers cannot share.
    """
    workers = settings.cluster.worker_count()
    if settings.batch_size % workers:
        raise ConfigError(f"batch_size={settings.batch_size}: must be a multiple of cluster.workers, {workers}")
    # Ray Train starts its workers in a folder of their own.
    settings = dataclasses.replace(settings, model=settings.model.absolute())
    units = list_units(settings.data)
    clip = load_clip(settings.model, init_seed=settings.seed)
    check_softmax(clip.model_cfg)
    free = ("out", "cluster", "tracking", "retries", "checkpoint_every_epochs")
    tree = as_tree(settings)
    # a length in epochs is named as it was before there were steps, so that older runs go on
    unset = ("steps",) if settings.steps is None else ()
    mark = fingerprint(
        {
            "version": TRAIN_VERSION,
            **identity(settings.data, units),
            "settings": {name: value for name, value in tree.items() if name not in (*free, *unset, "data", "model")},
            "model": clip.fingerprint,
        }
    )
    return Plan(settings, units, clip.image_size, clip.fingerprint, mark, tree)


def run_train(settings: TrainConfig) -> TrainResult:
    """Train, or go on training, and return the result; the same `out` and settings continue where a kill left off.

    Joins the Ray that runs in this process, else starts or joins one as `cluster` says. The run folder must lie where
    all nodes see it. With batch normalisation the statistics of a step are those of a worker's own rows, and the stored
    ones those of the first worker.
    """
    return run_plan(make_plan(settings))


def run_plan(plan: Plan) -> TrainResult:
    """Run a checked plan; see run_train."""
    started = time.monotonic()
    settings = plan.config
    folder = open_run(settings.out, verb="train", tree=plan.tree, fingerprint=plan.mark)
    checkpoint = folder.root / "checkpoint"
    if folder.summary.is_file() and checkpoint.is_dir():
        summary = read_summary(folder.root)
        return TrainResult(checkpoint, summary["history"], summary["counts"], summary)
    with ray_session(settings.cluster):
        pairs, found = _check(plan, folder)
        state = fit(_order(plan, pairs), folder)
    trained = load_clip(settings.model, init_seed=settings.seed)
    load_weights(trained.model, state["weights"], "the last training checkpoint")
    save_clip(trained.model, trained.model_cfg, trained.preprocess_cfg, checkpoint)
    summary = {
        "verb": "train",
        "fingerprint": plan.mark,
        "seconds": round(time.monotonic() - started, 1),
        "counts": found.counts,
        "rejected_reasons": found.reasons,
        "checkpoint": str(checkpoint),
        "history": state["history"],
    }
    write_summary(folder, summary)
    metrics = metrics_of({"counts": found.counts, "loss": state["history"][-1]["loss"], "seconds": summary["seconds"]})
    log_run(
        settings.tracking,
        verb="train",
        root=folder.root,
        tree=plan.tree,
        metrics=metrics,
        files=[folder.run_yaml, folder.summary],
        inputs=[data_input(settings.data, plan.units, "training")],
    )
    return TrainResult(checkpoint, state["history"], found.counts, summary)


def _reading(settings: TrainConfig) -> Reading:
    return Reading(settings.data, settings.model, settings.max_pixels, settings.seed)


def _check(plan: Plan, folder: RunFolder) -> tuple[PairSet, Checked]:
    settings = plan.config
    reading = _reading(settings)
    found = check("check", plan.units, reading, folder.root / "checked", folder.rejected, plan.mark, settings.cluster)
    if found.used < settings.batch_size:
        raise ConfigError(
            f"batch_size={settings.batch_size}: the data hold only {found.used} usable pairs "
            f"({found.rejected} are in {folder.rejected})"
        )
    return PairSet(plan.units, reading, found.used), found


def _order(plan: Plan, pairs: PairSet) -> Order:
    settings = plan.config
    task = PlainTask(
        model=settings.model,
        lr=settings.lr,
        schedule=settings.schedule,
        weight_decay=settings.weight_decay,
        bf16=settings.precision == "bf16",
        augment=settings.augment,
        seed=settings.seed,
    )
    return Order(
        name="train",
        task=task,
        pairs=pairs,
        image_size=plan.image_size,
        epochs=settings.epochs,
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
        checkpoint_every_epochs=settings.checkpoint_every_epochs,
        retries=settings.retries,
        memory_mb=settings.memory_mb,
        cluster=settings.cluster,
    )
