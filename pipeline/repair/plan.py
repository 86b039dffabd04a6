"""A repair, checked before any worker starts: which pairs it learns from, what it knows, and what it is measured on."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.precision import told
from clipsan.stages.samples import Unit
from clipsan.stages.sources import ParquetSource, SourceConfig, identity, list_pieces
from clipsan.stages.training.batch import Role

from ..core.commit import fingerprint
from ..core.config import ConfigError, as_tree, validate
from ..core.contents import contents, digests
from ..core.parts import Parts
from ..core.place import AnyPath, is_below, place_of
from ..core.run_folder import RunFolder, finished_scan, read_summary
from ..data.choice import CleanByScan, FlaggedByScan, Lookup, ProvenByScan, RepairSetRoles, class_index
from ..evaluate import plan as evaluate
from ..evaluate.plan import EVALUATE_VERSION, read_classes
from ..evaluate.settings import EvaluateConfig
from ..tracking.record import TrackingConfig
from ..train.task import Task
from .settings import Blind, Gentle, HeldOut, RepairConfig

REPAIR_VERSION = 3
"""Raised when the code comes to make another model from the same settings, so that old checkpoints are refused."""

FREE = (
    "out",
    "cluster",
    "tracking",
    "register",
    "max_asr_pct",
    "max_loss_points",
    "retries",
    "checkpoint_every_epochs",
)
"""Settings that do not change the repaired model or its figures."""
SEPARATE = ("model", "data", "scan", "evaluate", "early_stop", "blind", "gentle", "classes")
"""Settings that enter the fingerprint by their content."""

_SOURCE: Any = SourceConfig
REPAIR_SET = "repair"
"""Folder with a scan's compact set, below its run folder."""
TRIGGERS = "triggers"
"""Folder with a scan's dossiers, below its run folder."""
BEFORE = "evaluate-before"
"""Folder of the evaluation of the suspect, below the repair's."""


@dataclass(frozen=True, slots=True)
class Picked:
    """Pairs of a source that play some role."""

    name: str
    source: SourceConfig
    units: list[Unit]
    lookup: Lookup | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A finished scan that a repair builds on, or an audit, which has triggers and a compact set but no pairs."""

    root: AnyPath
    fingerprint: str
    data: SourceConfig | None
    """None of an audit."""
    units: list[Unit]
    targets: tuple[str, ...]
    concepts: tuple[str, ...]

    @property
    def verdicts(self) -> AnyPath:
        return RunFolder(self.root).verdicts

    @property
    def repair_set(self) -> AnyPath | None:
        """The folder with the compact set; None where the scan proved no trigger."""
        folder = self.root / REPAIR_SET
        return folder if any(folder.glob("*.parquet")) else None

    @property
    def accuses(self) -> bool:
        """Whether it names a concept or proves a trigger."""
        return bool(self.targets) or self.repair_set is not None

    @property
    def finding(self) -> str:
        """What it found, in a few words; a trigger may be proven where statistics name no concept."""
        if self.targets:
            return "accuses " + ", ".join(self.targets)
        return "names nothing, has proven a trigger" if self.accuses else "accuses nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A checked repair."""

    config: RepairConfig
    main: Picked
    beside: tuple[Picked, ...]
    validation: Picked | None
    held_out: Picked | None
    """Images that tell how far the repair goes; None where it goes its whole way."""
    scan: Scan | None
    classes: tuple[str, ...]
    image_size: int
    model_fingerprint: str
    data_fingerprint: str
    fingerprint: str
    section: str = "method"
    """Where the method's settings stand: those of another one where the scan leaves the method nothing to do."""
    notes: tuple[str, ...] = ()
    """What a reader of the result must know, beside how the method differs from the published one."""
    judging_fingerprint: str | None = None
    """Of the evaluation of the suspect, which tells other test data from those of a finished repair; None without one."""

    @property
    def blind(self) -> Blind | None:
        """How the repair is held back, where nothing accuses the model; None where that does not hold it back."""
        accused = self.scan is not None and self.scan.accuses
        return None if self.held_out is None or accused else self.config.blind

    @property
    def gentle(self) -> Gentle | None:
        """How the repair is held back, where a trigger is proven; None where that does not hold it back."""
        return None if self.held_out is None or self.blind is not None else self.config.gentle

    @property
    def withheld(self) -> Picked | None:
        """The poisoned pairs that are kept from the repair to judge it; None where it is not judged so."""
        return None if self.config.unseen is None else self._proven("withheld pairs", left_out=True)

    @property
    def known(self) -> Picked | None:
        """The proven poisoned pairs that are not kept from the repair; None where no scan of pairs has proven any."""
        return self._proven("proven pairs", left_out=False)

    def _proven(self, name: str, *, left_out: bool) -> Picked | None:
        scan = self.scan
        if scan is None or scan.data is None:
            return None
        share = 0.0 if self.config.unseen is None else self.config.unseen.withhold_pct / 100
        return Picked(name, scan.data, scan.units, ProvenByScan(scan.verdicts, self.classes, share, left_out))

    @property
    def judging(self) -> Picked | None:
        """The evaluation's images; None without one."""
        if self.config.evaluate is None:
            return None
        data = self.evaluation(self.config.model, place_of(self.config.out)).data
        return Picked("judging images", data, list_pieces(data))

    @property
    def task(self) -> Task:
        """What the workers train."""
        c = self.config
        return Task(
            model=c.model,
            method=c.method,
            bf16=c.precision == "bf16",
            seed=c.seed,
            classes=self.classes,
            templates=c.templates,
        )

    @property
    def is_adapter(self) -> bool:
        """Whether the result is an adapter for the suspect checkpoint, not a checkpoint of its own."""
        return self.config.method.result == "adapter"

    @property
    def target(self) -> str:
        """Folder of the result, below the run's."""
        return self.config.method.result

    def describe(self) -> str:
        """Return the plan as text for --dry-run."""
        c, method = self.config, self.config.method
        precision = told(c.precision, c.cluster.device)
        length = f"{method.epochs} epochs" if c.steps is None else f"{c.steps} steps"
        more = f", {c.accumulate} a step" if c.accumulate > 1 else ""
        lines = [
            f"suspect    {self.model_fingerprint[:12]} {c.model.path}, {self.image_size} px (only read)",
            f"data       {self.main.name}: {len(self.main.units)} units ({self.main.source.kind})"
            + "".join(f"; beside them {some.name}" for some in self.beside),
            f"scan       {'none' if self.scan is None else f'{self.scan.root}, {self.scan.finding}'}",
            f"method     {method.kind}, {length}, batch {method.batch_size}{more}, lr {method.lr:g}, {precision}, seed {c.seed}",
            *(held.describe() for held in (self.blind, self.gentle) if held is not None),
            f"evaluate   {'nothing' if c.evaluate is None else 'before and after'}",
            f"workers    {c.cluster.describe()}",
            f"out        {c.out}  ({self.fingerprint[:12]})",
            *(f"note       {note}" for note in self.notes),
        ]
        return "\n".join(lines) + "\n"

    def evaluation(self, model: ModelConfig, out: AnyPath) -> EvaluateConfig:
        """Return the settings of one evaluation.

        Raises:
            ConfigError: the section does not fit `clipsan evaluate`.
        """
        c = self.config
        section = {"classes": list(self.classes), "templates": list(c.templates), "seed": c.seed, **(c.evaluate or {})}
        own = {
            "model": as_tree(model),
            "out": str(out),
            "cluster": as_tree(c.cluster),
            "tracking": as_tree(TrackingConfig(enabled=False)),
        }
        try:
            return validate(EvaluateConfig, {**section, **own}, verb="evaluate")
        except ConfigError as error:
            raise ConfigError(f"evaluate: {error}") from None

    def evaluation_fingerprint(self) -> str:
        """Return the fingerprint of what both models are measured on, whichever models they are."""
        settings = self.evaluation(self.config.model, place_of(self.config.out))
        own = ("data", "model", "out", "cluster", "tracking")
        tree = {name: value for name, value in as_tree(settings).items() if name not in own}
        data = identity(settings.data, list_pieces(settings.data))
        return fingerprint({"version": EVALUATE_VERSION, "data": data, "settings": tree})


def make_plan(settings: RepairConfig) -> Plan:
    """Check everything that can be checked before a worker starts.

    Raises:
        ConfigError, ValueError, OSError: no data, a scan that is not finished, an unreadable model, a method that does not
            fit the model or lacks what it learns from, a batch that the workers cannot share.
    """
    # Ray Train starts its workers in a folder of their own.
    settings = dataclasses.replace(settings, model=settings.model.absolute())
    scan = None if settings.scan is None else read_scan(settings.scan)
    section = "method"
    notes: tuple[str, ...] = ()
    fallback = settings.method.when_nothing_accused
    if fallback is not None and scan is not None and not scan.accuses:
        settings = dataclasses.replace(settings, method=getattr(settings.method, fallback.field))
        section, notes = f"method.{fallback.field}", (fallback.note,)
    check_batch(settings, section)
    clip = load_clip(settings.model)
    check_out(settings)
    classes = _classes(settings, scan)
    main, beside = _pairs(settings, scan, classes)
    validation = None
    if settings.early_stop is not None:
        if len(classes) < 2:
            raise ConfigError("early_stop: clean accuracy needs class names; give classes")
        data = settings.early_stop.data
        validation = Picked("validation", data, list_pieces(data))
    if settings.unseen is not None and scan is None:
        raise ConfigError("unseen: triggers that the repair does not train on come from a scan; give scan")
    held_out = _held_out(settings, scan, classes)
    learned: list[Any] = [_content(some) for some in (main, *beside)]
    data_fingerprint = fingerprint(learned if scan is None else [*learned, {"scan": scan.fingerprint}])
    tree = as_tree(settings)
    stop = {} if validation is None else {**tree["early_stop"], "data": _content(validation)}
    decides = {
        "version": REPAIR_VERSION,
        "settings": {name: value for name, value in tree.items() if name not in (*FREE, *SEPARATE)},
        "model": clip.fingerprint,
        "data": data_fingerprint,
        "classes": classes,
        "early_stop": stop,
        **{section: {**tree[section], "data": _content(some)} for section, some in held_out.items()},
        "evaluate": [EVALUATE_VERSION, tree["evaluate"]],
        **contents(settings),
        **_read_from(settings, scan),
    }
    plan = Plan(
        config=settings,
        main=main,
        beside=beside,
        validation=validation,
        held_out=next(iter(held_out.values()), None),
        scan=scan,
        classes=classes,
        image_size=clip.image_size,
        model_fingerprint=clip.fingerprint,
        data_fingerprint=data_fingerprint,
        fingerprint=fingerprint(decides),
        section=section,
        notes=notes,
    )
    if settings.evaluate is not None:
        judging = evaluate.make_plan(plan.evaluation(settings.model, place_of(settings.out) / BEFORE))
        plan = dataclasses.replace(plan, judging_fingerprint=judging.fingerprint)
    plan.task.objective()  # says now whether method and model fit
    return plan


def _read_from(settings: RepairConfig, scan: Scan | None) -> dict[str, list[str]]:
    """Return the SHA-256 of the folders that a repair reads of an audit and of those with judges; nothing where there are none.

    An audit that is judged anew has the fingerprint that it had, and other triggers.
    """
    judges = () if settings.unseen is None else settings.unseen.judges
    audited = (
        [str(scan.root / name) for name in (TRIGGERS, REPAIR_SET)] if scan is not None and scan.data is None else []
    )
    found = digests([*audited, *judges])
    return {"read": found} if found else {}


def _held_out(settings: RepairConfig, scan: Scan | None, classes: tuple[str, ...]) -> dict[str, Picked]:
    """Return the images that tell how far a repair goes, by the section of the settings that has them; none where it goes its whole way.

    Raises:
        ConfigError: there is no way to go part of, or there are no classes.
    """
    held: HeldOut | None
    if scan is None or not scan.accuses:
        section, held = "blind", settings.blind
    else:
        section, held = "gentle", None if scan.repair_set is None else settings.gentle
    if held is None:
        return {}
    if settings.method.result != "checkpoint":
        raise ConfigError(
            f"{section}: method {settings.method.kind} leaves the weights as they are; there is no way to go part of"
        )
    if len(classes) < 2:
        raise ConfigError(f"{section}: held-out accuracy needs class names; give classes")
    return {section: Picked("held-out images", held.data, list_pieces(held.data))}


def make_verb_plan(settings: RepairConfig) -> Plan:
    """Return the plan of a repair by itself, which is made only where there is something to repair.

    Raises:
        ConfigError: the scan accuses nothing and `blind` is not set, or of make_plan.
    """
    plan = make_plan(settings)
    if plan.scan is not None and not plan.scan.accuses and plan.blind is None:
        raise ConfigError(
            f"scan={plan.scan.root}: it accuses nothing, so nothing is repaired; to repair a model that nothing accuses, as far as "
            "its accuracy allows, give blind.data, labelled images (blind in conf/repair.yaml)"
        )
    return plan


def check_out(settings: RepairConfig) -> None:
    """Refuse an output that lies in the suspect checkpoint or around it, unless this run fetched that."""
    out, suspect = place_of(settings.out), place_of(str(settings.model.path))
    if is_below(out, suspect) or (is_below(suspect, out) and not is_below(suspect, RunFolder(out).models)):
        raise ConfigError(f"out={settings.out}: the suspect checkpoint {suspect} is there; give another `out`")


def check_batch(settings: RepairConfig, section: str = "method") -> None:
    """Refuse a batch that the workers cannot share; `section` is where its size was given."""
    size, workers = settings.method.batch_size, settings.cluster.worker_count()
    if size % workers:
        raise ConfigError(
            f"{section}.batch_size={size}: must be a multiple of the workers, {workers} (cluster.workers)"
        )


def read_scan(run: str) -> Scan:
    """Return what a repair needs of a finished scan.

    Raises:
        ConfigError: the folder holds no finished scan, or its data have changed since.
    """
    folder, record = finished_scan(run, ("scan", "audit"))
    root = folder.root
    if record["verb"] == "audit":
        summary = read_summary(root)
        return Scan(
            root=root,
            fingerprint=record["fingerprint"],
            data=None,
            units=[],
            targets=tuple(summary["targets"]),
            concepts=tuple(sorted(summary["labels"])),
        )
    data: SourceConfig = validate(_SOURCE, record["config"]["data"], verb="scan")
    summary = read_summary(root)
    units = list_pieces(data)
    parts = len(list(folder.verdicts.glob("part-*.parquet")))
    if parts != len(units):
        raise ConfigError(f"scan={run}: it has verdicts of {parts} units, its data have {len(units)}: scan them again")
    targets = tuple(summary.get("targets", ()))
    return Scan(
        root=root,
        fingerprint=record["fingerprint"],
        data=data,
        units=units,
        targets=targets,
        concepts=_concepts(folder, targets),
    )


def _concepts(folder: RunFolder, targets: Sequence[str]) -> tuple[str, ...]:
    """Return the concepts of a scan's captions, the accused ones with them, in alphabetical order."""
    found = set(targets)
    for table in Parts.of(folder.verdicts).tables(["concept"]):
        found |= set(table.column("concept").unique().to_pylist())
    return tuple(sorted(name for name in found if name))


def _classes(settings: RepairConfig, scan: Scan | None) -> tuple[str, ...]:
    """Return the class names; targets of the scan that none of them names stand at their end."""
    given = settings.classes if settings.classes is not None else (settings.evaluate or {}).get("classes")
    if given is None:
        return () if scan is None else scan.concepts
    classes = tuple(read_classes(given))
    index = class_index(classes)
    missing = [name for name in (() if scan is None else scan.targets) if name.casefold() not in index]
    return (*classes, *missing)


def _pairs(settings: RepairConfig, scan: Scan | None, classes: tuple[str, ...]) -> tuple[Picked, tuple[Picked, ...]]:
    """Return the pairs that an epoch goes over, and the small sets of which every batch has some."""
    method = settings.method
    lacking = f"method {method.kind} {method.needs_scan}; give scan, a run folder of `clipsan scan` or `clipsan audit`"
    if method.needs_scan is not None and scan is None:
        raise ConfigError(lacking)
    if Role.PAIR not in method.roles:
        found = None if scan is None else _repair_set(scan, method.roles, classes)
        if found is None:
            raise ConfigError(f"{lacking} with an oracle")
        return found, ()
    beside: list[Picked] = []
    if scan is not None and scan.data is not None and Role.FLAGGED in method.roles:
        share = 0.0 if settings.unseen is None else settings.unseen.withhold_pct / 100
        flagged = FlaggedByScan(scan.verdicts, classes, share)
        beside.append(Picked("flagged pairs", scan.data, scan.units, flagged))
    if scan is not None and Role.TRIGGER_PASTED in method.roles:
        pasted = _repair_set(scan, (Role.TRIGGER_PASTED,), classes)
        beside += [] if pasted is None else [pasted]
    if settings.data is not None:
        return Picked("clean pairs", settings.data, list_pieces(settings.data)), tuple(beside)
    assert scan is not None
    if scan.data is None:
        raise ConfigError(f"scan={settings.scan}: an audit has no pairs to learn from; give data, clean pairs of yours")
    clean = CleanByScan(scan.verdicts, classes)
    return Picked("pairs that the scan calls clean", scan.data, scan.units, clean), tuple(beside)


def _repair_set(scan: Scan, roles: tuple[Role, ...], classes: tuple[str, ...]) -> Picked | None:
    if scan.repair_set is None:
        return None
    source = ParquetSource(path=str(scan.repair_set), key="uid")
    lookup = RepairSetRoles(roles, classes)
    return Picked("the scan's compact set", source, list_pieces(source), lookup)


def _content(picked: Picked) -> dict[str, Any]:
    return {"name": picked.name, **identity(picked.source, picked.units)}
