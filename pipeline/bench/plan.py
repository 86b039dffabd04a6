"""The matrix of `clipsan bench`: which cells there are, what every step of a cell does, and what is done already."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipsan.stages.attack.poisoning import AttackConfig
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.report.text import duration
from clipsan.stages.sources import PoisonedSource, identity, list_units

from ..core.cluster import ClusterConfig
from ..core.commit import fingerprint
from ..core.config import ConfigError, as_tree
from ..core.contents import contents
from ..core.verb import Verb
from ..evaluate import verb as evaluate
from ..evaluate.plan import EVALUATE_VERSION, read_classes
from ..evaluate.settings import EvaluateConfig, EvaluationAttack
from ..poison import verb as poison
from ..poison.plan import POISON_VERSION, PoisonConfig
from ..scan import verb as scan
from ..scan.plan import EMBED_VERSION, SCORE_VERSION, VERDICT_VERSION, ScanConfig
from ..tracking.record import TrackingConfig
from ..train import verb as train
from ..train.plan import TRAIN_VERSION, TrainConfig
from .attacks import resolve_attack, section, seeds_of
from .cell import Cell, Step
from .settings import CLEAN, BenchConfig

EXTRA_PARTS = ("rebound", "resistivity", "probe", "retrieval")
"""Parts of an evaluation that say nothing more of a clean model under one trigger than under another; and nothing can come
back after benign steps (rebound) where nothing was implanted."""
FREE = ("out", "cluster", "tracking", "retries", "checkpoint_every_epochs")
"""Settings that do not change a result."""
VERSIONS = {
    "poison": POISON_VERSION,
    "train": TRAIN_VERSION,
    "evaluate": EVALUATE_VERSION,
    "scan": [EMBED_VERSION, SCORE_VERSION, VERDICT_VERSION],
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked bench."""

    config: BenchConfig
    root: Path
    cells: tuple[Cell, ...]
    fingerprint: str
    """Of the input; each step has a fingerprint of its own."""

    @property
    def pending(self) -> list[Cell]:
        """The cells of which something is left to do."""
        return [cell for cell in self.cells if cell.left(self.config.min_asr_pct)]

    def estimate(self, cells: Sequence[Cell]) -> float | None:
        """Return the seconds that the missing steps of some cells may take, from the finished steps of all; None if unknown."""
        spent: dict[str, list[float]] = defaultdict(list)
        for cell in self.cells:
            took = cell.seconds()
            for step in cell.steps:
                if step.name in took:
                    spent[step.kind].append(took[step.name])
        missing = [step.kind for cell in cells for step in cell.left(self.config.min_asr_pct)]
        if not missing or any(kind not in spent for kind in missing):
            return None
        return sum(sum(spent[kind]) / len(spent[kind]) for kind in missing) / self.config.cells

    def describe(self) -> str:
        """Return the cells, their steps and what is done of them as text."""
        settings = self.config
        lines = [
            f"data       {settings.data.path} ({settings.data.kind})",
            f"cells      {len(self.cells)}, {settings.cells} at a time; refused under {settings.min_asr_pct:g} % ASR",
            f"out        {settings.out}",
        ]
        for cell in self.cells:
            todo = cell.left(settings.min_asr_pct)
            what = "clean" if cell.attack is None else _meaning(cell.attack)
            steps = ", ".join(f"{step.name}{'' if step in todo else ' (done)'}" for step in cell.steps)
            model = "" if cell.model_of == cell.name else f"; model of {cell.model_of}"
            lines.append(f"{cell.name:<24} {what}: {steps}{model}")
        known = self.estimate(self.cells)
        steps_left = sum(len(cell.left(settings.min_asr_pct)) for cell in self.cells)
        lines.append(f"to do      {steps_left} steps" + (f", about {duration(known)}" if known else ""))
        return "\n".join(lines) + "\n"


def _meaning(attack: AttackConfig) -> str:
    share = f"{100 * attack.rate:g} %" if attack.rate is not None else f"{attack.count:,} pairs"
    return f"{attack.trigger.kind} on {share}" + ("" if attack.control else f" towards {' and '.join(attack.targets)}")


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
        for seed in seeds_of(settings, name)
    ]
    for cell in cells:
        for step in cell.steps:
            step.check()
    return Plan(settings, root, tuple(cells), fingerprint({"data": shared.data}))


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

    def training(self, data: Any, out: Path, seed: int) -> TrainConfig:
        own = {"data": as_tree(data), "out": str(out), "seed": seed}
        return section(TrainConfig, self._tree({**self.config.train, **own}), where="train")

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
        return section(EvaluateConfig, self._tree({**given, **own}), where="evaluate")

    def scanning(self, data: Any, model: ModelConfig, manifest: Path | None, out: Path) -> ScanConfig:
        own: dict[str, Any] = {"data": as_tree(data), "model": as_tree(model), "out": str(out)}
        own["manifest"] = None if manifest is None else str(manifest)
        return section(ScanConfig, self._tree({**self.config.scan, **own}), where="scan")

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
            attack = section(AttackConfig, {**as_tree(attack), "seed": seed}, where=name)
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
            poisoned = self._fingerprint(poison.VERB, settings, made)
            steps.append(Step("poison", poison.VERB, settings, poisoned))
            made = made if same_as_clean else poisoned
            data = data if same_as_clean else PoisonedSource(path=f"{home}/poison/plan.json")
            manifest = home / "poison" / "manifest.parquet"
            model_of = f"{CLEAN}-s{seed}" if same_as_clean else label
        training = self.training(data, self.root / "cells" / model_of / "train", seed)
        trained = self._fingerprint(train.VERB, training, made, {"model": self.model})
        if model_of == label:
            steps.append(Step("train", train.VERB, training, trained))
        model = ModelConfig(path=f"{training.out}/checkpoint")
        steps += self._evaluations(model, attack, home, seed, trained)
        scanning = self.scanning(data, model, manifest, home / "scan")
        scanned = self._fingerprint(scan.VERB, scanning, trained, {"poison": steps[0].fingerprint})
        steps.append(Step("scan", scan.VERB, scanning, scanned))
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
            Step(
                name, evaluate.VERB, settings, self._fingerprint(evaluate.VERB, settings, trained, {"test": self.test})
            )
            for name, settings in tried.items()
        ]

    def _same_as_clean(self, attack: AttackConfig, seed: int) -> bool:
        """Whether training on the set gives, pair by pair, what training on the clean set gives, which a cell does anyway."""
        untouched = attack.control and {strand.trigger.kind for strand in attack.strands} == {"identity"}
        trained = CLEAN in self.config.controls and seed in seeds_of(self.config, CLEAN)
        return untouched and self.config.image.keeps_pixels and trained

    def _fingerprint(
        self, verb: Verb[Any, Any], settings: Any, before: str, more: Mapping[str, Any] | None = None
    ) -> str:
        """Fingerprint of a step: its settings without places, what came before, and its further input."""
        tree = {k: v for k, v in as_tree(settings).items() if k not in FREE}
        for name in ("data", "model", "manifest"):
            tree.pop(name, None)
        if tree.get("oracle", ...) is None:
            # without an oracle nothing is proven, however a proof would be made
            del tree["oracle"], tree["proof"]
        own = {"version": VERSIONS[verb.name], "settings": tree, "before": before, **contents(settings), **(more or {})}
        return fingerprint(own)
