"""A run, every step of it checked before anything starts."""

from collections.abc import Mapping
from dataclasses import dataclass

from clipsan.stages.model.clip import load_clip
from clipsan.stages.samples import Unit
from clipsan.stages.sources import identity, list_units

from ..core.commit import fingerprint
from ..tracking.record import TrackingConfig
from ..tracking.versions import Version
from .settings import RunConfig
from .steps import STEPS, Step


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked run."""

    config: RunConfig
    units: list[Unit]
    """Of the suspect pairs."""
    fingerprint: str
    """Of the input: each step has a fingerprint of its own, and other demands judge the same run anew."""

    def describe(self) -> str:
        """Return the plan of every step as text for --dry-run."""
        settings = self.config
        lines = []
        for step in steps_of(settings, settings.tracking, {}):
            lines += [f"{step.name}", *(f"  {line}" for line in step.describe().splitlines())]
        limits = [
            f"{name} at most {value:g} {unit}"
            for name, value, unit in (
                ("ASR", settings.max_asr_pct, "%"),
                ("loss of accuracy", settings.max_loss_points, "points"),
            )
            if value is not None
        ]
        demand = " and ".join(limits) or "nothing"
        when = "always" if settings.force else "where the scan proves a trigger"
        lines += ["story", f"  repair     {when}", f"  asked for  {demand}", f"  out        {settings.out}"]
        return "\n".join(lines) + "\n"


def make_plan(settings: RunConfig) -> Plan:
    """Check every step as far as it can be known now.

    Raises:
        ConfigError, ValueError, OSError: with the section and the setting.
    """
    for step in steps_of(settings, settings.tracking, {}):
        step.check()
    units = list_units(settings.data)
    tree = {**identity(settings.data, units), "model": load_clip(settings.model).fingerprint}
    return Plan(settings, units, fingerprint(tree))


def steps_of(settings: RunConfig, tracking: TrackingConfig, versions: Mapping[str, Version]) -> list[Step]:
    """Return the steps in their order; `versions` are those of a model registry that the settings named, by the setting."""
    return [step(settings, tracking, versions) for step in STEPS]
