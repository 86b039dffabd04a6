"""A training, checked before any worker starts."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from clipsan.stages.decode import MAX_PIXELS, MaxPixels
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.precision import told
from clipsan.stages.samples import Unit
from clipsan.stages.sources import SourceConfig, identity, list_pieces
from clipsan.stages.stage import config
from clipsan.stages.training.augment import AugmentConfig
from clipsan.stages.training.contrastive import Contrastive
from clipsan.stages.training.objective import is_sigmoid
from clipsan.stages.training.optimise import OneCycle, Schedule

from ..core.cluster import ClusterConfig
from ..core.commit import fingerprint
from ..core.config import ConfigError, as_tree
from ..tracking.record import TrackingConfig
from .task import Task

TRAIN_VERSION = 2
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
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over the pairs. Give this or `steps`."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimiser steps; the last epoch ends where they are done."""
    batch_size: Annotated[int, Field(ge=2)]
    """Pairs of a global batch, over all workers; each is every other's negative."""
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate: about 2e-3 from scratch, 1e-5 to fine-tune."""
    schedule: Schedule = field(default_factory=OneCycle)
    """How the rate moves from step to step."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """AdamW's, on matrices and kernels."""
    precision: Literal["f32", "bf16"] = "f32"
    """Of the forward pass; weights and loss are float32 either way. bf16 is taken where the device has it: a processor that would only
    imitate it computes in f32."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random crops and flips."""
    seed: int = 0
    """Of weights, order and augmentation."""
    checkpoint_every_epochs: Annotated[int, Field(ge=1)] = 1
    """How much work a kill can cost."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Times the workers are started again from the last checkpoint when one is lost, within one run."""
    memory_mb: Annotated[int, Field(ge=0)] = 2048
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A checked training."""

    config: TrainConfig
    units: list[Unit]
    image_size: int
    loss: str
    model_fingerprint: str
    fingerprint: str

    @property
    def task(self) -> Task:
        """What the workers train."""
        c = self.config
        method = Contrastive(lr=c.lr, schedule=c.schedule, weight_decay=c.weight_decay, augment=c.augment)
        return Task(model=c.model, method=method, bf16=c.precision == "bf16", seed=c.seed, from_scratch=True)

    def describe(self) -> str:
        """Return the plan as text for --dry-run."""
        c = self.config
        precision = told(c.precision, c.cluster.device)
        start = "from scratch" if c.model.path is None else f"from {c.model.path}"
        length = f"{c.epochs} epochs" if c.steps is None else f"{c.steps} steps"
        lines = [
            f"data       {len(self.units)} units of {len({u.shard for u in self.units})} shards ({c.data.kind})",
            f"model      {self.model_fingerprint[:12]} {start}, {self.image_size} px",
            f"out        {c.out}",
            f"training   {length}, batch {c.batch_size}, lr {c.lr:g} {c.schedule.kind}, {self.loss} loss, {precision}, seed {c.seed}",
            f"workers    {c.cluster.describe()}",
            f"passes     checked -> rejected/, training -> checkpoint/  ({self.fingerprint[:12]})",
        ]
        return "\n".join(lines) + "\n"


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
    units = list_pieces(settings.data)
    clip = load_clip(settings.model, init_seed=settings.seed)
    free = ("out", "cluster", "tracking", "retries", "checkpoint_every_epochs", "data", "model")
    decides: dict[str, Any] = {
        "version": TRAIN_VERSION,
        **identity(settings.data, units),
        "settings": {name: value for name, value in as_tree(settings).items() if name not in free},
        "model": clip.fingerprint,
    }
    return Plan(
        config=settings,
        units=units,
        image_size=clip.image_size,
        loss="sigmoid" if is_sigmoid(clip.model) else "softmax",
        model_fingerprint=clip.fingerprint,
        fingerprint=fingerprint(decides),
    )
