"""A sweep of the detectors' settings, checked before any worker starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import pyarrow.compute as pc
import pydantic
from pydantic import Field

from clipsan.stages.search.space import Dimension, Point
from clipsan.stages.stage import config
from clipsan.stages.verdicts import Verdict

from ..core.cluster import ClusterConfig
from ..core.commit import fingerprint
from ..core.config import ConfigError, as_tree, validate
from ..core.parts import Parts
from ..core.run_folder import RunFolder, finished_scan, read_summary
from ..scan.plan import ScanConfig
from ..sweep.settings import GridSearch, RandomSearch
from ..tracking.record import TrackingConfig
from .rescan import Rescan

SPACE = "detectors."
FREE = ("out", "cluster", "tracking", "retries", "concurrent")
"""Settings that change no trial."""


@config
class DetectorSweepConfig:
    """Everything that decides a sweep of detectors."""

    scan: str
    """Run folder of a scan that has proven a trigger; its embeddings are scored anew."""
    space: dict[str, Dimension]
    """Setting of the scan, as a dotted path (detectors.density.k) -> what it may be."""
    search: Annotated[RandomSearch | GridSearch, pydantic.Discriminator("kind")] = field(default_factory=RandomSearch)
    """How points are chosen; random ones after the scan's own, so that what is recommended is never worse than what is there.
    A trial takes seconds, so none is stopped early."""
    manifest: str | None = None
    """For benchmarks alone: the truth, written down for every trial; it enters no decision."""
    concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trials at a time; null: as many as the cluster has CPUs for."""
    retries: Annotated[int, Field(ge=0)] = 1
    """Times that a trial is tried again after an error."""
    seed: int = 0
    """Of the points."""
    out: str
    """Run folder."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """A trial takes threads_per_worker CPUs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        wrong = sorted(name for name in self.space if not name.startswith(SPACE))
        if wrong or not self.space:
            raise ValueError(f"space: must name settings that begin with {SPACE} ({', '.join(wrong) or 'it is empty'})")


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked sweep."""

    config: DetectorSweepConfig
    base: ScanConfig
    trials: tuple[Rescan, ...]
    proven: tuple[str, ...]
    """Uids of the pairs that the scan calls poisoned."""
    targets: tuple[str, ...]
    """What its triggers aim at."""
    fingerprint: str

    def describe(self) -> str:
        """Return the plan as text for --dry-run."""
        settings = self.config
        lines = [
            f"scan       {settings.scan}: {len(self.proven)} proven pairs, triggers aim at {', '.join(self.targets)}",
            f"search     {settings.search.kind}, {len(self.trials)} trials, seed {settings.seed}",
            *(f"space      {name}" for name in settings.space),
            f"truth      {'recorded, enters no decision' if settings.manifest else 'not known'}",
            f"out        {settings.out}  ({self.fingerprint[:12]})",
        ]
        return "\n".join(lines) + "\n"


def make_plan(settings: DetectorSweepConfig) -> Plan:
    """Check everything that can be checked before a worker starts.

    Raises:
        ConfigError, OSError: no finished scan, one that has proven nothing, or a point that is no valid setting.
    """
    folder, record = finished_scan(settings.scan)
    root = folder.root
    base = validate(ScanConfig, record["config"], verb="scan")
    base = replace(base, embeddings=base.embeddings or str(root), oracle=None, write=[], manifest=None)
    base = replace(base, tracking=TrackingConfig(enabled=False), cluster=replace(settings.cluster, workers=1))
    proven = _proven(folder)
    if not proven:
        raise ConfigError(
            f"scan={settings.scan}: it calls no pair poisoned, and settings are compared by the pairs that it has proven; "
            "scan with an oracle"
        )
    if settings.manifest is not None and not Path(settings.manifest).is_file():
        raise ConfigError(f"manifest={settings.manifest}: no such file")
    try:
        points = settings.search.points(settings.space, settings.seed, first=_own(base, settings.space))
    except ValueError as error:
        raise ConfigError(f"space: {error}") from None
    triggers = read_summary(root).get("proof", {}).get("triggers", [])
    targets = tuple(dict.fromkeys(target for trigger in triggers for target in trigger["targets"]))
    scanned = [record["fingerprint"], sorted(proven)]
    made_of = fingerprint(
        {"scan": scanned, "settings": {k: v for k, v in as_tree(settings).items() if k not in (*FREE, "scan")}}
    )
    home = Path(settings.out).expanduser().resolve() / "trials"
    trials = tuple(_trial(i, point, base, home / f"{i:04d}", made_of) for i, point in enumerate(points))
    return Plan(config=settings, base=base, trials=trials, proven=proven, targets=targets, fingerprint=made_of)


def _proven(folder: RunFolder) -> tuple[str, ...]:
    found: list[str] = []
    for table in Parts.of(folder.verdicts).tables(["uid", "verdict"]):
        found += table.filter(pc.equal(table.column("verdict"), Verdict.POISONED.value)).column("uid").to_pylist()
    return tuple(found)


def _own(base: ScanConfig, space: Mapping[str, Dimension]) -> list[Point]:
    """Return the scan's own settings as a point; none where the space names what the scan does not have."""
    point: Point = {}
    tree = as_tree(base)
    for name in space:
        node: Any = tree
        for part in name.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if node is None:
            return []
        point[name] = node
    return [point]


def _trial(number: int, point: Point, base: ScanConfig, folder: Path, sweep: str) -> Rescan:
    tree = as_tree(base)
    for name, value in point.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.get(parent)
            if not isinstance(node, dict):
                raise ConfigError(f"space: {name}: there is no section {parent}")
        node[last] = value
    shown = ", ".join(f"{name}={value}" for name, value in point.items())
    try:
        own = validate(ScanConfig, {**tree, "out": str(folder / "scan")}, verb="scan")
    except ConfigError as error:
        raise ConfigError(f"scan with {shown}: {error}") from None
    return Rescan(number=number, point=point, scan=own, folder=folder, fingerprint=fingerprint([sweep, number, point]))
