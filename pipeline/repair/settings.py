"""Settings of `clipsan repair`."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from clipsan.stages.decode import MAX_PIXELS, MaxPixels
from clipsan.stages.evaluation.zero_shot import check_templates
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.repair import Method
from clipsan.stages.sources import SourceConfig
from clipsan.stages.stage import config

from ..core.cluster import ClusterConfig
from ..core.config import refuse_filled_in
from ..tracking.record import TrackingConfig

FILLED_IN = ("model", "out", "cluster", "tracking")
"""Settings of the evaluation that the repair has its own values for."""


@config
class EarlyStop:
    """Ends the training when the clean accuracy no longer rises.

    The model of the last epoch is kept, not the most accurate one: that is often the one that was repaired least.
    """

    data: SourceConfig
    """Labelled images, neither those that are trained on nor those of the evaluation."""
    images: Annotated[int, Field(ge=1)] = 1000
    """Of them at most, drawn by the seed."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Epochs in a row without a better accuracy. Methods that first disturb the model (PAR) need half of all epochs."""
    min_gain_points: Annotated[float, Field(ge=0)] = 0.1
    """What counts as better, in percentage points."""


@config
class RepairConfig:
    """Everything that decides a repair."""

    model: ModelConfig
    """The suspect checkpoint; it is read, never written to."""
    method: Method
    """What is done to it; epochs, batch size and learning rate are the method's."""
    data: SourceConfig | None = None
    """Clean pairs, or labelled images for the methods that learn from them. Null: the pairs that `scan` calls clean."""
    scan: str | None = None
    """Run folder of `clipsan scan` on the suspect data: what it flags and proves is what some methods unlearn."""
    pairs: Annotated[int, Field(ge=1)] | None = None
    """Pairs of `data` at most, drawn by the seed; null: all (RVPT takes its own number of images a class)."""
    classes: list[str] | str | None = None
    """Class names by index, or a YAML file with them, as for `clipsan evaluate`; null: those of `evaluate`, else the
    concepts of the scan."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Sentences with {} where the class name goes, for the methods that learn from labels."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimiser steps in place of the method's epochs; the last epoch ends where they are done."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches whose gradients are averaged in one optimiser step. Each is its own world: its rows are negatives of each
    other only, and means (PAR's threshold) are taken over it alone."""
    precision: Literal["f32", "bf16"] = "f32"
    """Of the forward pass; weights and loss are float32 either way."""
    seed: int = 0
    """Of order, sample, augmentation and new weights."""
    early_stop: EarlyStop | None = None
    """Null: all epochs are made."""
    evaluate: dict[str, Any] | None = None
    """Settings of `clipsan evaluate` (data, classes, templates, attack, retrieval, resistivity, rebound, ...): the same
    evaluation is made of the suspect model and of the repaired one. Null: neither is evaluated."""
    checkpoint_every_epochs: Annotated[int, Field(ge=1)] = 1
    """How much work a kill can cost."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Times the workers are started again from the last checkpoint when one is lost, within one run."""
    memory_mb: Annotated[int, Field(ge=0)] = 2048
    """Sets whose decoded pixels fit are held in every worker's memory; larger ones are streamed."""
    max_pixels: MaxPixels = MAX_PIXELS
    """An image whose header claims more is rejected undecoded."""
    out: str
    """Run folder; the repaired model ends in OUT/checkpoint, or as an adapter in OUT/adapter."""
    register: str | None = "clipsan"
    """Name under which MLflow registers the model as a new version; null: it is not registered."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers, threads, GPUs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        if self.data is None and self.scan is None:
            raise ValueError("give data (clean pairs), or scan (a run folder, for the pairs that it calls clean)")
        check_templates(self.templates)
        refuse_filled_in(self.evaluate, FILLED_IN, section="evaluate", by="by the repair")
