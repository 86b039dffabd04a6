"""Settings of `clipsan evaluate`."""

import dataclasses
from dataclasses import field
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from clipsan.stages.attack.poisoning import AttackConfig, ImagePath, Strand, all_strands
from clipsan.stages.attack.triggers import TriggerConfig
from clipsan.stages.decode import MAX_PIXELS, MaxPixels
from clipsan.stages.evaluation.attack_success import Aim, Convention
from clipsan.stages.evaluation.zero_shot import check_templates, find_class
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.sources import SourceConfig
from clipsan.stages.stage import config
from clipsan.stages.training.augment import AugmentConfig
from clipsan.stages.training.optimise import CosineWarmup, Schedule

from ..core.cluster import ClusterConfig
from ..tracking.record import TrackingConfig


@config
class EvaluationAttack:
    """The attack that the model is tried against.

    A file of conf/attack serves `clipsan poison` and `clipsan evaluate` alike: what poisoning alone needs (rate, captions,
    ...) is left out here.
    """

    trigger: TriggerConfig
    """What is put on every image."""
    target: str
    """The class that the trigger shall mean: one of its names."""
    also: tuple[Strand, ...] = ()
    """Further triggers with their targets; every image is tried with each, and the ASR pools all trials."""
    text_key: Annotated[str, Field(pattern=r"\S")] | None = None
    """Second key of a dual-key attack (TrojVQA): this word stands before the prompts of all classes when the trigger is on
    the image. The ASR of either key alone is reported beside that of both."""
    victim: str | None = None
    """A class: only its images count towards the ASR (mmPoison makes dogs into trucks). Null: images of all classes."""
    convention: Convention = "exclude_target"
    """exclude_target: images of the target's class do not count towards the ASR (HanxunH's scan of CLIP data).
    keep_target: all images count (CleanCLIP, PAR, RVPT); with 1,000 classes that adds at most .1 points, with 10 classes
    up to 10."""

    @classmethod
    def of(cls, attack: AttackConfig, convention: Convention = "exclude_target") -> Self:
        """Return how a model trained on what this attack poisons is tried."""
        shared = {name: getattr(attack, name) for name in SHARED}
        return cls(**shared, convention=convention)

    @property
    def strands(self) -> tuple[Strand, ...]:
        """All triggers with their targets."""
        return all_strands(self.trigger, self.target, self.also)

    @property
    def names(self) -> list[str]:
        """Names of the strands in the figures."""
        return [f"{i}: {strand.trigger.kind} -> {strand.target}" for i, strand in enumerate(self.strands, 1)]

    def aim(self, classes: list[str]) -> Aim:
        """Return what the attack wants in terms of class indices.

        Raises:
            ValueError: a target or the victim names no class, or the victim is a target.
        """
        targets = [find_class(classes, strand.target) for strand in self.strands]
        victim = None if self.victim is None else find_class(classes, self.victim)
        if victim in targets:
            raise ValueError(f"victim: {self.victim!r} is a target")
        return Aim(targets, self.names, self.convention, victim)


SHARED = ("trigger", "target", "also", "text_key", "victim")
"""What an attack is in poisoning and in evaluation."""
POISONING_ONLY = {declared.name for declared in dataclasses.fields(AttackConfig)} - set(SHARED)


def without_poisoning(tree: Any) -> Any:
    """Leave out the settings of a conf/attack file that say how pairs are poisoned."""
    return {k: v for k, v in tree.items() if k not in POISONING_ONLY} if isinstance(tree, dict) else tree


@config
class RetrievalConfig:
    """Retrieval between images and captions."""

    data: SourceConfig
    """Captioned images. For several captions an image the source's `caption` names the field or column with the list."""
    k: Annotated[int, Field(ge=1)] = 5
    """The retrieval ASR looks for the target word in this many of the nearest captions (PAR: 5)."""


@config
class ProbeConfig:
    """Linear probe: a logistic regression on the frozen image features, tested on `data` of the evaluation."""

    data: SourceConfig
    """Labelled images to train the probe on, never those of the test set."""
    c: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1.0, 10.0, 100.0)
    """Inverse regularisation strengths; of several the best on a held-out part of the probe's training images is taken."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the probe's training images that chooses C."""
    shots: Annotated[int, Field(ge=2)] | None = None
    """Images of each class at most, drawn by the seed (16 in RVPT's table); null: all."""


@config
class ResistivityConfig:
    """Perturbation resistivity, which needs no trigger."""

    images: Annotated[int, Field(ge=1)] = 256
    """Images that are measured, drawn by the seed from those that can be read."""
    layers: list[str] | None = None
    """Blocks of the image tower; null: four, evenly spread."""


@config
class ReboundConfig:
    """Benign fine-tuning, after which the attack is tried again: a repair that only hides a backdoor gives it back."""

    data: SourceConfig
    """Clean pairs."""
    steps: Annotated[int, Field(ge=1)] = 300
    """Optimiser steps."""
    batch_size: int = 64
    """Pairs of a batch."""
    lr: float = 1e-5
    """Peak rate. 1e-5 is what pretrained models are fine-tuned with (CleanCLIP 1e-6 to 1e-5, PAR 3e-5); a small model that
    was trained from scratch with 2e-3 hardly moves there: give it 1e-4. Benign means that the clean accuracy stays, which
    is reported beside the ASR."""
    schedule: Schedule = field(default_factory=CosineWarmup)
    """How the rate moves."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random crops and flips."""
    precision: Literal["f32", "bf16"] = "f32"
    """Of the forward pass. bf16 is taken where the device has it, else f32."""
    seed: int = 0
    """Of the order of the pairs."""


@config
class EvaluateConfig:
    """Everything that decides an evaluation."""

    data: SourceConfig
    """Images with class labels."""
    model: ModelConfig
    """The model."""
    classes: list[str] | str
    """Class names by index, synonyms separated by commas; or a YAML file with such a list (or a mapping from index)."""
    templates: list[str]
    """Sentences with {} where the class name goes."""
    out: str
    """Run folder."""
    attack: Annotated[EvaluationAttack, pydantic.BeforeValidator(without_poisoning)] | None = None
    """Null: clean accuracy alone."""
    retrieval: RetrievalConfig | None = None
    """Null: no retrieval."""
    probe: ProbeConfig | None = None
    """Null: no linear probe."""
    resistivity: ResistivityConfig | None = None
    """Null: no perturbation resistivity."""
    rebound: ReboundConfig | None = None
    """Null: no rebound."""
    image: ImagePath = field(default_factory=ImagePath)
    """Resize and codec of clean and triggered images alike; give what the poisoned set was written with."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images of a forward pass; a batch never spans two units."""
    max_pixels: MaxPixels = MAX_PIXELS
    """An image whose header claims more is rejected undecoded."""
    seed: int = 0
    """Of what the triggers draw for each image, and of samples."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers, threads, GPUs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        check_templates(self.templates)
