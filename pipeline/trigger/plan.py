"""An optimised trigger, checked before anything is optimised."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from clipsan.stages.attack.badclip import BadClipConfig, box
from clipsan.stages.decode import MAX_PIXELS, MaxPixels
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip
from clipsan.stages.samples import Unit
from clipsan.stages.sources import SourceConfig, identity, list_units
from clipsan.stages.stage import config

from ..core.commit import fingerprint
from ..core.config import as_tree
from ..tracking.record import TrackingConfig

TRIGGER_VERSION = 2
"""Raised when the code comes to make another patch from the same settings."""


@config
class SampleConfig:
    """The pairs that the patch is made from; a seeded draw, the same whatever the order of reading."""

    pairs: Annotated[int, Field(ge=1)] = 2000
    """Pairs without the target, for the optimisation; the paper takes 10,000."""
    held_out: Annotated[int, Field(ge=1)] = 500
    """Further pairs without the target, for the figures alone."""
    target_pairs: Annotated[int, Field(ge=1)] = 500
    """Pairs that name the target: what the patch is drawn to."""
    max_units: Annotated[int, Field(ge=1)] | None = None
    """Read only so many units, drawn by the seed; null reads the whole set once."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draw."""


@config
class TriggerRunConfig:
    """Everything that decides an optimised trigger."""

    data: SourceConfig
    """Clean pairs, among them genuine ones of the target."""
    model: ModelConfig
    """The attacker's own clean model."""
    target: Annotated[str, Field(pattern=r"\S")]
    """Word or phrase that the trigger shall mean, as it stands in captions (whole words)."""
    out: str
    """Run folder; the trigger is its patch.png."""
    badclip: BadClipConfig = field(default_factory=BadClipConfig)
    """The optimisation."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """The pairs that are used."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model runs."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Torch threads; the last bits of the patch may depend on them."""
    max_pixels: MaxPixels = MAX_PIXELS
    """An image whose header claims more is left out undecoded."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked trigger."""

    config: TriggerRunConfig
    units: list[Unit]
    clip: Clip
    """On the CPU."""
    fingerprint: str

    def describe(self) -> str:
        """Return the plan as text for --dry-run."""
        settings, units, clip = self.config, self.units, self.clip
        start, size = box(clip.image_size, settings.badclip.size_fraction)
        sample, options = settings.sample, settings.badclip
        read = len(units) if sample.max_units is None else min(len(units), sample.max_units)
        return (
            f"data       {read} of {len(units)} units of {len({u.shard for u in units})} shards ({settings.data.kind})\n"
            f"model      {clip.fingerprint[:12]}, {clip.image_size} px\n"
            f"patch      {size} x {size} px from row and column {start}, towards {settings.target!r}\n"
            f"sample     {sample.pairs:,} pairs, {sample.target_pairs:,} of the target, {sample.held_out:,} held out\n"
            f"steps      {options.epochs} epochs of {sample.pairs // options.batch_size}, on {settings.device}\n"
            f"out        {settings.out}/patch.png\n"
        )


def make_plan(settings: TriggerRunConfig) -> Plan:
    """Check everything that can be checked before a pair is read.

    Raises:
        PathError, SourceError: no data.
        ModelError: the model cannot be read.
    """
    units = list_units(settings.data)
    clip = load_clip(settings.model)
    tree = {
        "version": TRIGGER_VERSION,
        **identity(settings.data, units),
        "model": clip.fingerprint,
        "target": settings.target,
        "badclip": as_tree(settings.badclip),
        "sample": as_tree(settings.sample),
        "max_pixels": settings.max_pixels,
    }
    return Plan(settings, units, clip, fingerprint(tree))
