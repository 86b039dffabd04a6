"""Settings of `clipsan audit`."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from clipsan.stages.audit.verdict import VerdictLimits
from clipsan.stages.decode import MAX_PIXELS, MaxPixels
from clipsan.stages.evaluation.zero_shot import check_templates
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.sources import SourceConfig
from clipsan.stages.stage import Count, Seed, config

from ..core.cluster import ClusterConfig
from ..tracking.record import TrackingConfig

Kind = Literal["patch", "additive", "blend"]


@config
class SearchConfig:
    """How long a trigger is sought."""

    steps: Count
    """Of Adam."""
    images_per_label: Count
    """Of a step."""


@config
class AuditConfig:
    """Everything that decides an audit."""

    model: ModelConfig
    """The checkpoint; it is only read. A version of MLflow's registry is told the verdict as tags."""
    images: SourceConfig | None = None
    """Images of any kind; captions and labels are not looked at. Null: rendered scenes."""
    count: Annotated[int, Field(ge=16)] = 128
    """Images that are used, drawn by the seed: half to seek triggers on, half to try them on."""
    compared: Annotated[int, Field(ge=0)] = 1500
    """Images by which it is told how far each label's text stands from the pictures that the model takes for it, where so many are
    at hand; a forward pass each. 0: it is not looked at."""
    classes: list[str] | str | None = None
    """The vocabulary: names, or a YAML file with them, as for `clipsan evaluate`. Null: the words of `captions`, or where that is
    null too the things of the rendered scenes."""
    captions: str | None = None
    """A text file with a caption a line, whose words make the vocabulary."""
    words: Annotated[int, Field(ge=2)] = 100
    """Words of `captions` at most, the most frequent ones."""
    sought: Annotated[int, Field(ge=0)] = 0
    """Labels at most that are sought where neither classes nor captions name any: the words of CLIP's vocabulary that the model takes most
    pictures for. 0: none are."""
    templates: tuple[str, ...] = ("a photo of a {}.", "a {}")
    """Sentences with {} where a name goes."""
    reference: ModelConfig | None = None
    """A clean model of the same architecture, best the one that the suspect was tuned from: triggers that it obeys as well are no backdoor
    of the suspect, nor are texts that stood as far from their pictures before the tuning."""
    peers: tuple[str, ...] = ()
    """Run folders of finished audits of models known to be clean, tuned from the model that the suspect was tuned from, made with the
    same settings, images, labels and reference: each label of the suspect is held against the same label in these."""
    screening_kinds: tuple[Kind, ...] = ("additive",)
    """What is sought towards every label; of several kinds the mean counts."""
    kinds: tuple[Kind, ...] = ("patch", "additive", "blend")
    """What the triggers of the labels that stand out are inverted as."""
    screening: SearchConfig = field(default_factory=lambda: SearchConfig(steps=100, images_per_label=4))
    """Of every label."""
    inversion: SearchConfig = field(default_factory=lambda: SearchConfig(steps=100, images_per_label=8))
    """Of the labels that stand out."""
    candidates: Count = 2
    """Labels that are looked at closely at most, the most suspicious ones."""
    decree_steps: Annotated[int, Field(ge=0)] = 150
    """Steps of DECREE's search, whose score stands beside the verdict and decides nothing; 0: none."""
    key_words: Annotated[int, Field(ge=0)] = 8000
    """Words of CLIP's vocabulary that are tried before captions as the key of an attack on the text tower, the most frequent ones; 0: none.
    They are not tried either where no pictures are compared."""
    limits: VerdictLimits = field(default_factory=VerdictLimits)
    """What makes a verdict."""
    labels_per_task: Count = 10
    """Labels of one task of a worker, whose triggers are sought in the same batches."""
    max_pixels: MaxPixels = MAX_PIXELS
    """An image whose header claims more is left out undecoded."""
    seed: Seed = 0
    """Of images, starts and controls."""
    out: str
    """Run folder; proven triggers are in OUT/triggers, pairs to repair from in OUT/repair."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers, threads, GPUs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        check_templates(self.templates)
        if self.classes is not None and self.captions is not None:
            raise ValueError("classes and captions both give the vocabulary; set one of them")
        if self.peers and not self.compared:
            raise ValueError(
                "compared=0: by these images it is told that peers were tuned from the suspect's model; set more, or no peers"
            )
        if self.sought and (self.classes is not None or self.captions is not None):
            raise ValueError("sought, and classes or captions, both give the vocabulary; set one of them")
        if self.sought and self.peers:
            raise ValueError(
                "sought: peers are compared label by label, and other labels are found in each; name them by classes"
            )
        for name in ("screening_kinds", "kinds"):
            kinds = getattr(self, name)
            if not kinds or len(set(kinds)) != len(kinds):
                raise ValueError(f"{name}: name at least one kind, each once")
