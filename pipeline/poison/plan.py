"""A poisoning, checked before any worker starts."""

from dataclasses import dataclass, field
from typing import Any

from clipsan.stages.attack.poisoning import AttackConfig, ImagePath
from clipsan.stages.samples import Unit
from clipsan.stages.sources import SourceConfig, identity, list_units
from clipsan.stages.stage import config

from ..core.cluster import ClusterConfig
from ..core.commit import fingerprint
from ..core.config import as_tree
from ..core.contents import contents
from ..tracking.record import TrackingConfig

POISON_VERSION = 3
"""Raised when the code comes to poison otherwise from the same settings, so that old parts are refused."""
LATER_SETTINGS: dict[str, Any] = {"also": [], "pairs": "others", "victim": None, "text_key": None}
"""Settings that are left out of the fingerprint where they are not used: copies made before they came stay valid."""


@config
class PoisonConfig:
    """Everything that decides a poisoned copy."""

    data: SourceConfig
    """The clean pairs."""
    attack: AttackConfig
    """What is done, to how many."""
    image: ImagePath = field(default_factory=ImagePath)
    """What every image goes through, poisoned or not."""
    out: str
    """Run folder; the copy is in its data/, or the plan in plan.json, and the ground truth in manifest.parquet."""
    copy_data: bool = True
    """false: nothing is copied. The folder gets a plan.json, and `data={kind: poisoned, path: OUT/plan.json}` reads the same
    pairs, poisoned on the fly; the manifest then has the clean set's uids."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        if not self.copy_data and self.data.on_the_fly:
            raise ValueError("copy_data: false needs the clean data set itself as data, not a plan")

    @property
    def result(self) -> str:
        """Where the poisoned data set is read."""
        return f"{self.out}/data" if self.copy_data else f"{self.out}/plan.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked poisoning."""

    config: PoisonConfig
    units: list[Unit]
    fingerprint: str

    def describe(self) -> str:
        """Return the plan as text for --dry-run."""
        settings, units = self.config, self.units
        attack = settings.attack
        share = f"{100 * attack.rate:g} %" if attack.rate is not None else f"{attack.count:,}"
        strands = [
            f"{strand.trigger.kind} as a control"
            if attack.control
            else f"{strand.trigger.kind} towards {strand.target!r}"
            for strand in attack.strands
        ]
        key = f", {attack.text_key!r} in front" if attack.text_key is not None else ""
        return (
            f"data       {len(units)} units of {len({u.shard for u in units})} shards ({settings.data.kind})\n"
            f"attack     {', '.join(strands)} on {share} of the pairs, seed {attack.seed}\n"
            f"pairs      those that {attack.condition}; captions: {attack.captions}{key}\n"
            f"image      {settings.image.resize_px or 'own'} px, {settings.image.codec}\n"
            f"out        {settings.result}, {settings.out}/manifest.parquet\n"
        )


def make_plan(settings: PoisonConfig) -> Plan:
    """Check everything that can be checked before a worker starts.

    Raises:
        PathError, SourceError: no data.
    """
    units = list_units(settings.data)
    attack = as_tree(settings.attack)
    used = {name: value for name, value in attack.items() if LATER_SETTINGS.get(name, ...) != value}
    tree: dict[str, Any] = {
        "version": POISON_VERSION,
        **identity(settings.data, units),
        "attack": used,
        "image": as_tree(settings.image),
        **contents(settings.attack),
    }
    return Plan(settings, units, fingerprint(tree if settings.copy_data else {**tree, "copy_data": False}))
