"""The matrix of `clipsan bench`: which cells there are, what every step of a cell does, and what is done already.

A step is one verb with a run folder of its own, OUT/cells/CELL/STEP. Beside the folder lies STEP.mark, the fingerprint of
everything that decides the step and the steps before it; a step is done when its mark fits and its summary is there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from clipsan.stages.attack.poisoning import AttackConfig, ImagePath
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.sources import PoisonedSource, SourceConfig, identity, list_units
from clipsan.stages.stage import config

from ..core.cluster import ClusterConfig
from ..core.commit import FingerprintError, fingerprint
from ..core.config import ConfigError, as_tree, load_group, validate
from ..evaluate.plan import EVALUATE_VERSION, read_classes
from ..evaluate.settings import EvaluateConfig, EvaluationAttack
from ..poison.plan import POISON_VERSION, PoisonConfig
from ..scan import plan as scan_plan
from ..tracking.record import TrackingConfig
from ..train import verb as train
from ..train.plan import TRAIN_VERSION

T = TypeVar("T")

CLEAN = "clean"
"""The control without any change: the model trained on it must stay silent."""
EXTRA_PARTS = ("rebound", "resistivity", "probe", "retrieval")
"""Parts of an evaluation that say nothing more of a clean model under one trigger than under another; and nothing can come
back after benign steps (rebound) where nothing was implanted."""
FILLED_IN = {
    "train": ("data", "out", "seed", "cluster", "tracking"),
    "evaluate": ("model", "image", "out", "seed", "cluster", "tracking"),
    "scan": ("data", "model", "manifest", "out", "cluster", "tracking"),
}
"""Settings of a section that each cell has its own value for."""
FREE = ("out", "cluster", "tracking", "retries", "checkpoint_every_epochs")
"""Settings that do not change a result."""
VERSIONS = {
    "poison": POISON_VERSION,
    "train": TRAIN_VERSION,
    "evaluate": EVALUATE_VERSION,
    "scan": [scan_plan.EMBED_VERSION, scan_plan.SCORE_VERSION, scan_plan.VERDICT_VERSION],
}


@config
class BenchConfig:
    """Everything that decides a bench."""

    data: SourceConfig
    """Clean pairs; every attack poisons them on the fly, no cell has a copy."""
    attacks: dict[str, dict[str, Any]]
    """Name -> settings of the attack that differ from conf/attack/NAME.yaml. `attack: OTHER` starts from conf/attack/OTHER.yaml,
    `seeds: [..]` replaces the bench's seeds for this one."""
    controls: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The same for the controls; `clean` is the one without any change."""
    target: str | None = None
    """Target of the attacks and controls that do not name their own."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Each is one cell: seed of the poisoning, of the model's weights and order, and of the evaluation's triggers."""
    min_asr_pct: float = 90.0
    """An attack whose measured ASR is lower is refused: a detector has nothing to find in a model that did not learn it."""
    image: ImagePath = field(default_factory=ImagePath)
    """What every image goes through, in poisoning and in evaluation."""
    train: dict[str, Any]
    """Settings of `clipsan train`: model (an architecture, or a clean checkpoint to poison), epochs, batch_size, lr, ..."""
    evaluate: dict[str, Any]
    """Settings of `clipsan evaluate`: data (labelled images), classes, templates, ...; of `attack` only the convention.
    `rebound` takes the bench's own pairs unless it names others."""
    scan: dict[str, Any]
    """Settings of `clipsan scan`: decision, detectors, ..."""
    cells: int = 1
    """Cells at a time. Each has the workers that `cluster` says, so this many times as many run at once."""
    out: str
    """Run folder."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers, threads and GPUs of one cell; workers: null shares the CPUs out among the cells."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        if self.data.on_the_fly:
            raise ValueError("data must be the clean data set itself, not a plan: every cell makes its own")
        if self.cells < 1:
            raise ValueError("cells must be at least 1")
        if not 0 <= self.min_asr_pct <= 100:
            raise ValueError(f"min_asr_pct is a percentage, 0 to 100, not {self.min_asr_pct}")
        if not self.attacks and not self.controls:
            raise ValueError("attacks: name at least one attack or control")
        both = sorted(self.attacks.keys() & self.controls.keys() | ({CLEAN} & self.attacks.keys()))
        if both:
            raise ValueError(f"attacks: {', '.join(both)} is a control; give the attack another name")
        for section, names in FILLED_IN.items():
            given = sorted(set(names) & getattr(self, section).keys())
            if given:
                raise ValueError(f"{section}: {', '.join(given)} is filled in for each cell; leave it out")


@dataclass(frozen=True, slots=True)
class Step:
    """One verb of a cell."""

    name: str
    """Name of its folder within the cell's."""
    settings: PoisonConfig | train.TrainConfig | EvaluateConfig | scan_plan.ScanConfig
    mark: str

    @property
    def folder(self) -> Path:
        return Path(self.settings.out)

    @property
    def mark_file(self) -> Path:
        return self.folder.with_name(f"{self.name}.mark")

    @property
    def done(self) -> bool:
        return self.mark_file.is_file() and (self.folder / "summary.json").is_file()

    def check(self) -> None:
        """Refuse results that other settings made.

        Raises:
            FingerprintError: they are there.
        """
        if self.mark_file.is_file() and self.mark_file.read_text(encoding="utf-8") != self.mark:
            raise FingerprintError(
                f"{self.folder} was made with other settings, other input or another version of clipsan; "
                f"remove it and {self.mark_file.name} (and the steps after it), or give another `out`"
            )


@dataclass(frozen=True, slots=True)
class Cell:
    """One attack (or control) with one seed."""

    name: str
    attack_name: str
    seed: int
    control: bool
    attack: AttackConfig | None
    """None: clean."""
    model_of: str
    """The cell in whose folder the model is trained: its own, but for an identity control, which trains on the clean set."""
    steps: tuple[Step, ...]
    """In order; the scan is last."""

    def step(self, name: str) -> Step | None:
        return next((step for step in self.steps if step.name == name), None)


@dataclass(frozen=True, slots=True)
class Plan:
    """A bench, checked before any worker starts."""

    config: BenchConfig
    root: Path
    cells: tuple[Cell, ...]
    mark: str
    """Of the input; each step has a mark of its own."""


def make_plan(settings: BenchConfig) -> Plan:
    """Expand the matrix and check everything that can be checked before a worker starts.

    Raises:
        ConfigError, ValueError, OSError: an unknown attack or setting, no data, an unreadable model, an unknown target, results
            of other settings in the folder.
    """
    attacks = {name: resolve_attack(settings, name, given) for name, given in settings.attacks.items()}
    controls = {
        name: None if name == CLEAN else resolve_attack(settings, name, given)
        for name, given in settings.controls.items()
    }
    wrong = [name for name, attack in controls.items() if attack is not None and not attack.control]
    if wrong:
        raise ConfigError(f"controls.{wrong[0]}: changes captions or chooses pairs by them, so it is an attack")
    root = Path(settings.out).expanduser().resolve()
    shared = _Shared.of(settings, attacks, root)
    cells = [
        shared.cell(name, attack, seed, control=name in controls)
        for name, attack in {**{k: v for k, v in controls.items() if v is None}, **attacks, **controls}.items()
        for seed in _seeds(settings, name)
    ]
    for cell in cells:
        for step in cell.steps:
            step.check()
    mark = fingerprint({"data": identity(settings.data, list_units(settings.data))})
    return Plan(settings, root, tuple(cells), mark)


def resolve_attack(settings: BenchConfig, name: str, given: Mapping[str, Any]) -> AttackConfig:
    """Return the attack of an entry of `attacks` or `controls`; its seed is that of the cell and 0 here.

    Raises:
        ConfigError: unknown base, unknown setting, or no target.
    """
    where = f"{'controls' if name in settings.controls else 'attacks'}.{name}"
    own = {key: value for key, value in given.items() if key not in ("attack", "seeds")}
    if "seed" in own:
        raise ConfigError(f"{where}.seed: the cell's seed is used; give seeds: [...]")
    base = given["attack"] if "attack" in given else load_group("attack", name, where=where)
    if settings.target is not None and "target" not in base:
        base = {**base, "target": settings.target}
    if {"rate", "count"} & own.keys():
        base = {key: value for key, value in base.items() if key not in ("rate", "count")}
    return _section(AttackConfig, merge(base, own), where=where)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`, mapping by mapping; one that names another `kind` replaces the whole mapping."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if (
            isinstance(value, Mapping)
            and isinstance(old, Mapping)
            and value.get("kind", old.get("kind")) == old.get("kind")
        ):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def _seeds(settings: BenchConfig, name: str) -> list[int]:
    given = {**settings.attacks, **settings.controls}[name].get("seeds", settings.seeds)
    if not isinstance(given, list) or not given or not all(type(seed) is int and seed >= 0 for seed in given):
        raise ConfigError(f"{name}.seeds: needs a list of whole numbers from 0 (got {given!r})")
    return list(dict.fromkeys(given))


def _section(schema: type[T], tree: Mapping[str, Any], *, where: str) -> T:
    try:
        return validate(schema, dict(tree), verb="bench")
    except ConfigError as error:
        raise ConfigError(f"in {where}: {error}") from None


@dataclass(frozen=True, slots=True)
class _Shared:
    """What all cells have in common."""

    config: BenchConfig
    attacks: Mapping[str, AttackConfig]
    root: Path
    data: dict[str, Any]
    """Identity of the clean pairs."""
    test: dict[str, Any]
    """Identity of the labelled images."""
    model: str
    """Fingerprint of the model before training, at seed 0 where its weights are drawn."""

    @classmethod
    def of(cls, settings: BenchConfig, attacks: Mapping[str, AttackConfig], root: Path) -> "_Shared":
        known = cls(settings, attacks, root, {}, {}, "")
        training = known.training(settings.data, root / "train", 0)
        evaluation = known.evaluation(ModelConfig(path="checkpoint"), None, root / "evaluate", 0)
        names = read_classes(evaluation.classes)
        for name, attack in attacks.items():
            try:
                EvaluationAttack.of(attack).aim(names)
            except ValueError as error:
                raise ConfigError(f"in attacks.{name}: {error}") from None
        return cls(
            settings,
            attacks,
            root,
            identity(settings.data, list_units(settings.data)),
            identity(evaluation.data, list_units(evaluation.data)),
            load_clip(training.model, init_seed=0).fingerprint,
        )

    @property
    def _cluster(self) -> ClusterConfig:
        """A cell's share of the machine."""
        cluster = self.config.cluster
        return replace(cluster, workers=cluster.workers or max(1, cluster.worker_count() // self.config.cells))

    @property
    def _quiet(self) -> TrackingConfig:
        """The bench logs its cells itself: many processes that write to one SQLite file get into each other's way."""
        return TrackingConfig(enabled=False)

    def training(self, data: Any, out: Path, seed: int) -> train.TrainConfig:
        own = {"data": as_tree(data), "out": str(out), "seed": seed}
        return _section(train.TrainConfig, self._tree({**self.config.train, **own}), where="train")

    def evaluation(
        self, model: ModelConfig, attack: AttackConfig | None, out: Path, seed: int, *, without: tuple[str, ...] = ()
    ) -> EvaluateConfig:
        given = {name: value for name, value in self.config.evaluate.items() if name not in without}
        how = given.get("attack") or {}
        if set(how) - {"convention"}:
            raise ConfigError("evaluate.attack: of it only the convention is free; the attacks are those of the bench")
        if "classes" in given:
            given["classes"] = read_classes(given["classes"])
        if isinstance(given.get("rebound"), Mapping):
            given["rebound"] = {"data": as_tree(self.config.data), **given["rebound"]}
        own = {"model": as_tree(model), "image": as_tree(self.config.image), "out": str(out), "seed": seed}
        own["attack"] = None if attack is None else as_tree(EvaluationAttack.of(attack, **how))
        return _section(EvaluateConfig, self._tree({**given, **own}), where="evaluate")

    def scanning(self, data: Any, model: ModelConfig, manifest: Path | None, out: Path) -> scan_plan.ScanConfig:
        own: dict[str, Any] = {"data": as_tree(data), "model": as_tree(model), "out": str(out)}
        own["manifest"] = None if manifest is None else str(manifest)
        return _section(scan_plan.ScanConfig, self._tree({**self.config.scan, **own}), where="scan")

    def _tree(self, section: Mapping[str, Any]) -> dict[str, Any]:
        run = {"cluster": as_tree(self._cluster), "tracking": as_tree(self._quiet)}
        return {**section, **run}

    def cell(self, name: str, attack: AttackConfig | None, seed: int, *, control: bool) -> Cell:
        """Build a cell and its steps."""
        label = f"{name}-s{seed}"
        home = self.root / "cells" / label
        steps: list[Step] = []
        data: Any = self.config.data
        manifest = None
        made = fingerprint({"version": VERSIONS["poison"], "data": self.data})
        model_of = label
        if attack is not None:
            attack = _section(AttackConfig, {**as_tree(attack), "seed": seed}, where=name)
            settings = PoisonConfig(
                data=data,
                attack=attack,
                image=self.config.image,
                out=str(home / "poison"),
                copy_data=False,
                cluster=self._cluster,
                tracking=self._quiet,
            )
            same_as_clean = self._same_as_clean(attack, seed)
            poisoned = self._mark("poison", settings, made)
            steps.append(Step("poison", settings, poisoned))
            made = made if same_as_clean else poisoned
            data = data if same_as_clean else PoisonedSource(path=f"{home}/poison/plan.json")
            manifest = home / "poison" / "manifest.parquet"
            model_of = f"{CLEAN}-s{seed}" if same_as_clean else label
        training = self.training(data, self.root / "cells" / model_of / "train", seed)
        trained = self._mark("train", training, made, {"model": self.model})
        if model_of == label:
            steps.append(Step("train", training, trained))
        model = ModelConfig(path=f"{training.out}/checkpoint")
        steps += self._evaluations(model, attack, home, seed, trained)
        scanning = self.scanning(data, model, manifest, home / "scan")
        steps.append(Step("scan", scanning, self._mark("scan", scanning, trained, {"poison": steps[0].mark})))
        return Cell(label, name, seed, control, attack, model_of, tuple(steps))

    def _evaluations(
        self, model: ModelConfig, attack: AttackConfig | None, home: Path, seed: int, trained: str
    ) -> list[Step]:
        """One of the model with its attack; a clean model is tried with every attack's trigger."""
        harmless = attack is None or attack.control
        without = ("rebound",) if harmless else ()
        tried = {"evaluate": self.evaluation(model, attack, home / "evaluate", seed, without=without)}
        if attack is None:
            for name, other in self.attacks.items():
                out = home / f"evaluate-{name}"
                tried[out.name] = self.evaluation(model, other, out, seed, without=EXTRA_PARTS)
        return [
            Step(name, settings, self._mark("evaluate", settings, trained, {"test": self.test}))
            for name, settings in tried.items()
        ]

    def _same_as_clean(self, attack: AttackConfig, seed: int) -> bool:
        """Whether training on the set gives, pair by pair, what training on the clean set gives, which a cell does anyway."""
        untouched = attack.control and {strand.trigger.kind for strand in attack.strands} == {"identity"}
        trained = CLEAN in self.config.controls and seed in _seeds(self.config, CLEAN)
        return untouched and self.config.image.keeps_pixels and trained

    def _mark(self, verb: str, settings: Any, before: str, more: Mapping[str, Any] | None = None) -> str:
        """Fingerprint of a step: its settings without places, what came before, and its further input."""
        tree = {k: v for k, v in as_tree(settings).items() if k not in FREE}
        for name in ("data", "model", "manifest"):
            tree.pop(name, None)
        if tree.get("oracle", ...) is None:
            # without an oracle nothing is proven, however a proof would be made
            del tree["oracle"], tree["proof"]
        own = {"version": VERSIONS[verb], "settings": tree, "before": before, **(more or {})}
        return fingerprint(own)
