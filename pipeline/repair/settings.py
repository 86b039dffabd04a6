"""Settings of `clipsan repair`."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from clipsan.stages.attack.triggers import PatchConfig, TriggerConfig
from clipsan.stages.decode import MAX_PIXELS, MaxPixels
from clipsan.stages.evaluation.zero_shot import check_templates
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.repair import Method
from clipsan.stages.sources import SourceConfig
from clipsan.stages.stage import config

from ..core.cluster import ClusterConfig
from ..core.config import refuse_filled_in
from ..tracking.record import TrackingConfig
from ..tracking.registry import MAX_ASR_PCT, MAX_LOSS_POINTS

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
class CanaryConfig:
    """A trigger of our own, planted into a copy of the suspect model to see whether a repair gets rid of it.

    The copy is fine-tuned on the clean pairs with the trigger on some of them, under captions of a class that the seed
    draws; then it is repaired as the suspect model is, which doubles the work.
    """

    trigger: TriggerConfig = field(default_factory=lambda: PatchConfig(pattern="stripes", size_fraction=0.25, seed=1))
    """What is planted."""
    target: str | None = None
    """A class; null: drawn by the seed."""
    share_pct: Annotated[float, Field(gt=0, lt=100)] = 20.0
    """Share of each batch that carries it."""
    steps: Annotated[int, Field(ge=1)] = 200
    """Optimiser steps of the planting, which is repeated up to three times where the copy has not learned it."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Pairs of a step."""
    lr: float = 5e-4
    """Peak rate."""
    min_asr_pct: Annotated[float, Field(ge=0, le=100)] = 80.0
    """A canary that succeeds less often tells nothing about repairs, and the run stops there."""


@config
class HeldOut:
    """Labelled images that tell what a repair costs, so that it can be taken back towards the suspect weights."""

    data: SourceConfig
    """Labelled images, neither those that are trained on nor those of the evaluation."""
    images: Annotated[int, Field(ge=1)] = 2000
    """Of them at most, drawn by the seed."""
    max_loss_points: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Percentage points of zero-shot accuracy on them that the repair may cost."""
    steps: Annotated[int, Field(ge=1)] = 20
    """Into how many the way between the weights is cut."""


@config
class Gentle(HeldOut):
    """A repair that costs more accuracy than it may is taken back, as long as the triggers that the scan has proven stay gone.

    Most repairs go further than the trigger needs: on the way to the repaired weights its success is at its floor before the end,
    and the accuracy falls all the way. The known triggers say how far back is too far, not how good the repair is: see `unseen`.
    """

    floor_pct: Annotated[float, Field(ge=0, le=100)] = 1.0
    """A trigger that makes the model say its target at most this often is gone; one that does so more often at the end of the way
    must not do so any oftener before it. Found on the demo's suspect."""

    def describe(self) -> str:
        """Return it as a line of a plan."""
        return (
            f"gentle     where more than {self.max_loss_points:g} points are lost on {self.images} images of {self.data.path}, taken back "
            "as far as the proven triggers stay gone"
        )


@config
class Blind(HeldOut):
    """A repair of a model that nothing accuses: the scan found nothing, or there was none.

    It must not harm. The repaired weights are taken back towards the suspect ones to the largest step whose loss of accuracy on
    held-out images is small, and a canary in a copy of the model tells whether so much of the repair is of use; where it is
    not, the model is left as it is.
    """

    max_canary_asr_pct: Annotated[float, Field(ge=0, le=100)] = 50.0
    """A repair that leaves the canary more than this would leave a backdoor, too: then nothing is changed."""
    canary: CanaryConfig = field(default_factory=CanaryConfig)
    """What is planted into the copy."""
    canary_pairs: Annotated[int, Field(ge=2)] = 4096
    """Clean pairs that it is planted with at most."""

    def describe(self) -> str:
        """Return it as a line of a plan."""
        return (
            f"blind      taken back until at most {self.max_loss_points:g} points are lost on {self.images} images of "
            f"{self.data.path}; left alone where a canary keeps more than {self.max_canary_asr_pct:g} %"
        )


@config
class Unseen:
    """By what a repair is judged where nobody knows the attack: triggers that it did not train on.

    Poisoned pairs that are kept from it, proven patches at other places than their own, and dossiers from elsewhere.
    """

    withhold_pct: Annotated[float, Field(ge=0, lt=100)] = 20.0
    """Share of the flagged pairs that the repair does not learn from; of them those that are proven to be poisoned judge it."""
    images: Annotated[int, Field(ge=1)] = 500
    """Images of the evaluation that a trigger is put on at most."""
    judges: tuple[str, ...] = ()
    """Folders with dossiers of other triggers: inverted from the model, or of another scan. The repair must not learn from them."""
    min_before_pct: Annotated[float, Field(ge=0, le=100)] = 50.0
    """A trigger that makes the suspect model say its target less often judges nothing."""


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
    """Run folder of `clipsan scan` on the suspect data: what it flags and proves is what some methods unlearn. Or of `clipsan audit`
    on the suspect model, beside `data`: the triggers that it proves."""
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
    """Of the forward pass; weights and loss are float32 either way. bf16 is taken where the device has it: a processor that would only
    imitate it computes in f32."""
    seed: int = 0
    """Of order, sample, augmentation and new weights."""
    early_stop: EarlyStop | None = None
    """Null: all epochs are made."""
    blind: Blind | None = None
    """What is done where the scan accuses nothing, or there is none. Null: with a scan that accuses nothing nothing is repaired, and
    without a scan the repair goes its whole way."""
    gentle: Gentle | None = None
    """What is done where the scan has proven a trigger and the repair costs too much. Null: it goes its whole way."""
    unseen: Unseen | None = None
    """Null: the repair learns from all that the scan flags, and the ASR is that of the evaluation's attack. Else it is judged by
    triggers that it did not train on, in the summary and in the registry."""
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
    max_asr_pct: Annotated[float, Field(ge=0, le=100)] | None = MAX_ASR_PCT
    """The ASR that the registry's champion may have at most. Null: no such demand."""
    max_loss_points: Annotated[float, Field(ge=0, le=100)] | None = MAX_LOSS_POINTS
    """Percentage points of clean accuracy that it may have lost at most. Null: no such demand."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers, threads, GPUs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        if self.data is None and self.scan is None:
            raise ValueError("give data (clean pairs), or scan (a run folder, for the pairs that it calls clean)")
        check_templates(self.templates)
        refuse_filled_in(self.evaluate, FILLED_IN, section="evaluate", by="by the repair")
