"""A sweep, checked before any worker starts: its points, the repairs that they stand for, and what they are measured by."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipsan.stages.dossier.dossier import Dossier
from clipsan.stages.dossier.files import read_dossiers
from clipsan.stages.samples import Unit
from clipsan.stages.search.space import Point, end_points
from clipsan.stages.sources import identity, list_units
from clipsan.stages.training.batch import Role

from ..core.commit import fingerprint
from ..core.config import ConfigError, as_tree, load_group, put, validate
from ..core.contents import contents
from ..core.place import read_here
from ..data.choice import class_index
from ..evaluate.settings import EvaluationAttack
from ..repair import plan as repair_plan
from ..repair.settings import CanaryConfig, RepairConfig
from ..tracking.record import TrackingConfig
from .settings import OptunaSearch, SweepConfig

SWEEP_VERSION = 2
"""Raised when the code comes to another result from the same settings, so that old trials are refused."""

FREE = ("out", "cluster", "tracking", "register", "retries", "concurrent")
"""Settings that change no trial."""
DATA = {"method", "method.kind", "method.shots", "pairs", "seed"}
"""Settings of a repair that decide which pairs it learns from; see data_key."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked sweep."""

    config: SweepConfig
    points: tuple[Point, ...] | None
    """Of all trials; None where a point depends on the results of others."""
    base: repair_plan.Plan
    """The repair of the first point: what is the same for all of them is read off it."""
    dossiers: tuple[Dossier, ...]
    """The scan's proven triggers."""
    classes: tuple[str, ...]
    """Names by index for the measurements: those of the repair, then targets that none of them names."""
    held_out: list[Unit]
    final: list[Unit]
    """Empty where the final data are a part of the held-out ones."""
    objective: str
    """proven, canary or resistivity."""
    fingerprint: str
    repairs: dict[str, repair_plan.Plan] = field(default_factory=dict)
    """Checked repairs by what decides their data; see repair_of."""

    @property
    def trials(self) -> int:
        search = self.config.search
        return search.trials if isinstance(search, OptunaSearch) else len(self.points or ())

    @property
    def rungs(self) -> int:
        """Measurements of a whole trial."""
        return 1 if self.config.halving is None else self.config.halving.rungs

    def targets(self, dossier: Dossier) -> tuple[int, ...]:
        """Return the classes that a trigger makes of an image."""
        index = class_index(self.classes)
        return tuple(index[name.casefold()] for name in dossier.targets)

    def repair_of(self, point: Point) -> repair_plan.Plan:
        """Return the checked repair of a point; repairs of the same pairs are checked against model and data once.

        Raises:
            ConfigError: the point is no valid repair.
        """
        return _repair_of(self.config, point, self.repairs)

    def describe(self) -> str:
        """Return the plan as text for --dry-run."""
        c, base = self.config, self.base
        halving = (
            "none"
            if c.halving is None
            else f"ASHA, best 1/{c.halving.reduction} go on, {c.halving.rungs} measurements from {100 * c.halving.first_share:g} % on"
        )
        lines = [
            f"suspect    {base.model_fingerprint[:12]} {base.config.model.path}, {base.image_size} px (only read)",
            f"data       {base.main.name}: {len(base.main.units)} units ({base.main.source.kind})",
            f"scan       {'none' if base.scan is None else base.scan.root}",
            f"held out   {len(self.held_out)} units ({c.held_out.data.kind}); final: "
            + (f"{len(self.final)} units" if self.final else f"{100 * c.held_out.final_share:g} % of them"),
            f"objective  {self.objective}: {self._meaning()}",
            f"rule       lowest objective at an accuracy loss of at most {c.max_accuracy_loss_points:g} points",
            f"search     {c.search.kind}, {self.trials} trials of {c.workers_per_trial} workers, seed {c.seed}; halving: {halving}",
            *(f"space      {name}: {_range(dimension)}" for name, dimension in c.space.items()),
            f"truth      {'recorded, enters no decision' if c.truth is not None else 'not known'}",
            f"out        {c.out}  ({self.fingerprint[:12]})",
        ]
        return "\n".join(lines) + "\n"

    def _meaning(self) -> str:
        if self.objective == "proven":
            return "ASR of " + ", ".join(f"{d.id} ({d.kind} -> {'/'.join(d.targets)})" for d in self.dossiers)
        return "ASR of a planted trigger" if self.objective == "canary" else "what small perturbations destroy"


def make_plan(settings: SweepConfig) -> Plan:
    """Check everything that can be checked before a worker starts.

    Raises:
        ConfigError, ValueError, OSError: a point that is no valid repair, an objective that nothing measures, a canary that
            the method cannot be tried on, a missing package, and whatever `clipsan repair` refuses.
    """
    points = _points(settings)
    if points is None:
        check_optuna()
        _check_shared(settings)
    repairs: dict[str, repair_plan.Plan] = {}
    for point in points if points is not None else end_points(settings.space):
        _repair_of(settings, point, repairs)
    base = next(iter(repairs.values()))
    dossiers = _dossiers(base)
    objective = _objective(settings, dossiers)
    if settings.canary is not None:
        _check_canary(settings.canary, repairs)
    classes = _classes(base, dossiers)
    if len(classes) < 2:
        raise ConfigError("repair.classes: the measurements need class names; give classes, or a scan")
    if settings.truth is not None:
        _check_truth(settings.truth.attack, classes)
    held_out = list_units(settings.held_out.data)
    final = [] if settings.held_out.final is None else list_units(settings.held_out.final)
    made_of = fingerprint(
        {
            "version": SWEEP_VERSION,
            "settings": {
                name: value for name, value in as_tree(settings).items() if name not in (*FREE, "repair", "held_out")
            },
            "repairs": [plan.fingerprint for plan in repairs.values()],
            "points": points,
            "base": {
                k: v for k, v in as_tree(base.config).items() if k in ("steps", "accumulate", "method", "precision")
            },
            "triggers": [[d.id, d.kind, d.targets, d.pairs, d.flips.pct] for d in dossiers],
            "held_out": [
                identity(settings.held_out.data, held_out),
                settings.held_out.final and identity(settings.held_out.final, final),
            ],
            "split": [settings.held_out.final_share, settings.held_out.images],
            **contents(settings),
        }
    )
    return Plan(
        config=settings,
        points=points,
        base=base,
        dossiers=dossiers,
        classes=classes,
        held_out=held_out,
        final=final,
        objective=objective,
        fingerprint=made_of,
        repairs=repairs,
    )


def _check_shared(settings: SweepConfig) -> None:
    """Refuse proposals that would ask for other pairs while trials run: pairs are gathered before the first one."""
    wrong = sorted(settings.space.keys() & DATA)
    if wrong:
        raise ConfigError(
            f"space: {', '.join(wrong)} decides which pairs a trial learns from, which search.kind=optuna leaves alone; take "
            "random or grid"
        )


def check_optuna() -> None:
    """Raise ConfigError, with the remedy, unless Optuna can be imported."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ConfigError(
            "search.kind=optuna: the package optuna is not installed; `pip install optuna`, or take search.kind=random"
        ) from None


def _points(settings: SweepConfig) -> tuple[Point, ...] | None:
    """Return the points of all trials; None where a point depends on the results of others."""
    try:
        # ASHA lets the first trials through whatever they are worth, which along a grid are those of one end
        return settings.search.points(settings.space, settings.seed, shuffled=settings.halving is not None)
    except ValueError as error:
        raise ConfigError(f"space: {error}") from None


def _repair_of(settings: SweepConfig, point: Point, known: dict[str, repair_plan.Plan]) -> repair_plan.Plan:
    repair = _repair_settings(settings, point)
    key = data_key(repair)
    if key not in known:
        known[key] = repair_plan.make_plan(repair)
    plan = known[key]
    if plan.section != "method":  # of a method that it falls back on
        raise ConfigError(
            f"repair.scan={repair.scan}: it accuses nothing, so that method {repair.method.kind} has nothing to search; take "
            f"repair.method={plan.config.method.kind} and its space"
        )
    repair_plan.check_batch(repair)
    # only what stands in the settings differs: make_plan would load the model again for the same answer
    repair = dataclasses.replace(repair, model=plan.config.model)
    return dataclasses.replace(plan, config=repair)


def _repair_settings(settings: SweepConfig, point: Point) -> RepairConfig:
    """Return the repair of a point: the shared settings with the point's own in their places."""
    tree = copy.deepcopy(settings.repair)
    for name in sorted(point, key=lambda name: name.count(".")):
        value = point[name]
        whole = name == "method" and isinstance(value, str)
        put(
            tree, name, load_group("method", value, where="space") if whole else value, where=f"space: {name} in repair"
        )
    cluster = dataclasses.replace(settings.cluster, workers=settings.workers_per_trial)
    own = {
        "out": str(Path(settings.out) / "trials"),
        "cluster": as_tree(cluster),
        "tracking": as_tree(TrackingConfig(enabled=False)),
        "register": None,
    }
    shown = ", ".join(f"{name}={value}" for name, value in point.items())
    try:
        return validate(RepairConfig, {**tree, **own}, verb="repair")
    except ConfigError as error:
        raise ConfigError(f"repair with {shown}: {error}") from None


def data_key(settings: RepairConfig) -> str:
    """Return what decides which pairs a repair learns from, among the settings that may differ between trials."""
    method = settings.method
    return fingerprint([method.kind, settings.pairs, settings.seed, method.shots])


def _dossiers(base: repair_plan.Plan) -> tuple[Dossier, ...]:
    if base.scan is None:
        return ()
    with read_here(base.scan.root / repair_plan.TRIGGERS) as folder:
        found = read_dossiers(folder)
    for dossier in found:
        if dossier.side != base.image_size:
            raise ConfigError(
                f"repair.scan: trigger {dossier.id} is {dossier.side} px, the model's input {base.image_size}: "
                "the scan is of another model"
            )
    return found


def _objective(settings: SweepConfig, dossiers: tuple[Dossier, ...]) -> str:
    if settings.objective == "proven" and not dossiers:
        raise ConfigError("objective=proven: the scan has proven no trigger; take canary or resistivity")
    if settings.objective != "auto":
        return settings.objective
    return "proven" if dossiers else "canary" if settings.canary is not None else "resistivity"


def _classes(base: repair_plan.Plan, dossiers: tuple[Dossier, ...]) -> tuple[str, ...]:
    index = class_index(base.classes)
    named = dict.fromkeys(target for dossier in dossiers for target in dossier.targets)
    return (*base.classes, *(target for target in named if target.casefold() not in index))


def _check_canary(canary: CanaryConfig, repairs: Mapping[str, repair_plan.Plan]) -> None:
    for plan in repairs.values():
        method = plan.config.method
        if method.roles != (Role.PAIR,) or plan.is_adapter:
            raise ConfigError(
                f"canary: no scan has seen it, so {method.kind}, which learns from what a scan finds or trains no encoder, "
                "cannot be tried on it; leave canary out"
            )
    canary.trigger.build()


def _check_truth(attack: EvaluationAttack, classes: tuple[str, ...]) -> None:
    if attack.text_key is not None:
        raise ConfigError("truth.attack.text_key: the sweep shows triggers on images alone; leave it out")
    attack.aim(list(classes))
    for strand in attack.strands:
        strand.trigger.build()


def _range(dimension: Any) -> str:
    tree = as_tree(dimension)
    kind = tree.pop("kind")
    return f"{kind} " + ", ".join(str(value) for value in (tree.get("values") or (tree["low"], tree["high"])))
