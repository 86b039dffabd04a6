"""An evaluation, checked before any worker starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clipsan.stages.evaluation.attack_success import Aim
from clipsan.stages.model.clip import Clip, load_clip
from clipsan.stages.samples import Unit
from clipsan.stages.sources import identity, list_units

from ..core.commit import fingerprint
from ..core.config import ConfigError, as_tree
from ..core.contents import contents
from .settings import EvaluateConfig

EVALUATE_VERSION = 4
"""Raised when the code comes to predict something else from the same settings, so that old parts are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A checked evaluation."""

    config: EvaluateConfig
    units: list[Unit]
    retrieval_units: list[Unit]
    """Empty where there is no retrieval."""
    probe_units: list[Unit]
    """Empty where there is no probe."""
    names: list[str]
    clip: Clip
    aim: Aim | None
    layers: list[str]
    """Blocks whose resistivity is measured."""
    fingerprint: str

    @property
    def passes(self) -> dict[str, int]:
        """Folder of each pass below the run's -> number of parts."""
        sizes = {"predictions": len(self.units)}
        if self.retrieval_units:
            sizes["retrieval"] = len(self.retrieval_units)
        if self.probe_units:
            sizes["probe"] = len(self.probe_units)
        if self.config.resistivity is not None:
            sizes["resistivity"] = len(self.units)
        if self.config.rebound is not None:
            sizes["rebound-predictions"] = len(self.units)
        return sizes

    def describe(self) -> str:
        """Return the plan as text for --dry-run."""
        c = self.config
        attack = "none" if c.attack is None else f"{', '.join(c.attack.names)} ({c.attack.convention})"
        rebound = "" if c.rebound is None else f", {c.rebound.steps} benign steps -> rebound/"
        lines = [
            f"data       {len(self.units)} units of {len({u.shard for u in self.units})} shards ({c.data.kind})",
            f"model      {self.clip.fingerprint[:12]}",
            f"classes    {len(self.names)}, {len(c.templates)} templates",
            f"attack     {attack}",
            f"workers    {c.cluster.describe()}",
            f"passes     {', '.join(f'{name} ({parts})' for name, parts in self.passes.items())}{rebound}",
            f"out        {c.out}  ({self.fingerprint[:12]})",
        ]
        return "\n".join(lines) + "\n"


def make_plan(settings: EvaluateConfig) -> Plan:
    """Check everything that can be checked before a worker starts.

    Raises:
        ConfigError, ValueError, OSError: no data, an unreadable model, an unknown target or victim, an unusable trigger.
    """
    names = read_classes(settings.classes)
    aim = None
    if settings.attack is not None:
        aim = settings.attack.aim(names)
        for strand in settings.attack.strands:
            strand.trigger.build()
    units = list_units(settings.data)
    other = {
        part: (config.data, list_units(config.data))
        for part, config in (
            ("retrieval", settings.retrieval),
            ("probe", settings.probe),
            ("rebound", settings.rebound),
        )
        if config is not None
    }
    clip = load_clip(settings.model)
    layers = [] if settings.resistivity is None else clip.layers(settings.resistivity.layers)
    tree = as_tree(settings)
    for name in ("out", "cluster", "tracking", "classes", "data", "model"):
        del tree[name]
    for part in other:
        del tree[part]["data"]
    decides = {
        "version": EVALUATE_VERSION,
        **identity(settings.data, units),
        "other": {part: identity(*found) for part, found in other.items()},
        "model": clip.fingerprint,
        "classes": names,
        "settings": tree,
        **contents(settings.attack),
    }
    retrieval, probe = (other[part][1] if part in other else [] for part in ("retrieval", "probe"))
    return Plan(
        config=settings,
        units=units,
        retrieval_units=retrieval,
        probe_units=probe,
        names=names,
        clip=clip,
        aim=aim,
        layers=layers,
        fingerprint=fingerprint(decides),
    )


def read_classes(classes: list[str] | str) -> list[str]:
    """Return the class names by index.

    Raises:
        ConfigError: the file is missing or does not hold names for the indices 0, 1, 2, ...
    """
    stored: Any = classes
    if isinstance(classes, str):
        try:
            stored = yaml.safe_load(Path(classes).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"classes={classes}: not a readable YAML file: {' '.join(str(error).split())}") from None
    if isinstance(stored, dict) and sorted(stored, key=str) == sorted(range(len(stored)), key=str):
        stored = [stored[index] for index in range(len(stored))]
    if not isinstance(stored, list) or not stored or not all(isinstance(name, str) and name.strip() for name in stored):
        raise ConfigError(f"classes={classes}: needs a list of names, or a mapping from 0, 1, 2, ... to names")
    return stored
