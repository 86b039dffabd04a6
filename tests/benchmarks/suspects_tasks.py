"""What there is to make of the zoo's suspects, in which order, and from which photos."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from clipsan.pipeline.bench.attacks import resolve_attack, seeds_of
from clipsan.pipeline.bench.settings import BenchConfig
from clipsan.pipeline.core.config import as_tree, load, validate
from clipsan.pipeline.train.plan import TrainConfig
from clipsan.stages.attack.poisoning import AttackConfig
from tests.benchmarks.regimes import REGIMES, ROOT, Regime
from tests.benchmarks.repair_variants import VARIANTS
from tests.benchmarks.suspects_repairs import BLIND

LEAST_ASR_PCT = 90.0
TAUGHT_BY = ("rare", "vit-pretrained", "common")
DEVELOPMENT = ("patch", "sig", "blend")
BLINDED = ("clean", "patch", "sig", "wanet")
"""Their models are also repaired as one that nothing accuses."""
FROM_SCAN = ("eftclip", "unlearn", "tbar", "project")
"""Methods that need a scan."""
VIT = "vit-pretrained"
VIT_TEST = "tiny-imagenet-val.parquet"


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to make."""

    kind: str
    """base, badclip, cell, choice (of a method's rate) or repair."""
    regime: str
    cell: str = ""
    method: str = ""
    """Of repair_variants, or BLIND."""

    @property
    def name(self) -> str:
        """Of its file."""
        if not self.method:
            return f"{self.regime}.{self.cell or self.kind}"
        return f"{self.regime}.{self.kind}.{self.cell}.{self.method}"

    @property
    def needs(self) -> list[str]:
        """What must be made before."""
        if self.kind == "base":
            return []
        if self.kind == "choice":
            return [f"{self.regime}.{self.cell}"]
        if self.kind == "repair":
            variant = VARIANTS.get(self.method)
            chosen = variant is not None and variant.lr is not None
            return [f"{self.regime}.{self.cell}", *([f"{self.regime}.choice.patch-s0.{self.method}"] if chosen else [])]
        patch = [f"{self.regime}.badclip"] if self.cell.startswith("badclip") else []
        return [f"{self.regime}.base", *patch]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a matrix."""

    attack: AttackConfig | None
    seed: int
    train: TrainConfig


def matrix(regime: Regime) -> BenchConfig:
    """Return the matrix of a regime, on the photos of this machine."""
    file = ROOT / "tests" / "benchmarks" / "matrices" / f"{regime.name}.yaml"
    paths = [f"data.path={real(regime.train)}", f"evaluate.data.path={real(regime.test)}"]
    if regime.name != "rare":
        paths.append(f"evaluate.retrieval.data.path={real(regime.test)}")
    return load(BenchConfig, str(file), paths, verb="bench")


def real(path: str) -> str:
    """Return a path with the folder of photos in it."""
    return path.replace("$CLIPSAN_ASSETS", os.environ["CLIPSAN_ASSETS"])


def cells(regime: Regime) -> dict[str, Cell]:
    """Return the cells of a regime by name; a control that trains on the clean set is the clean cell itself."""
    bench = matrix(regime)
    found: dict[str, Cell] = {}
    for name, given in {**bench.attacks, **bench.controls}.items():
        attack = None if name == "clean" else resolve_attack(bench, name, given)
        if attack is not None and attack.control and attack.trigger.kind == "identity":
            continue
        for seed in seeds_of(bench, name):
            tree = {**bench.train, "data": as_tree(bench.data), "out": "", "seed": seed}
            settings = validate(TrainConfig, tree, verb="train")
            found[f"{name}-s{seed}"] = Cell(None if attack is None else replace(attack, seed=seed), seed, settings)
    return found


def at_rate(cell: Cell, times: float) -> Cell:
    """Return the cell with so many times its pairs poisoned."""
    if cell.attack is None or cell.attack.rate is None or times == 1:
        return cell
    return replace(cell, attack=replace(cell.attack, rate=round(cell.attack.rate * times, 4)))


def tasks(regimes: Sequence[str], chosen: Sequence[str]) -> list[Task]:
    """Return what is to be made, in order: the ViT, which takes longest, the other clean models, then the cells by what they teach."""
    ordered = [name for name in (VIT, *TAUGHT_BY) if name in regimes]
    found = [Task("base", name) for name in dict.fromkeys(ordered)]
    wanted = {name: [c for c in cells(REGIMES[name]) if not chosen or c in chosen] for name in ordered}
    with_patch = [name for name, own in wanted.items() if any(c.startswith("badclip") for c in own)]
    found += [Task("badclip", name) for name in with_patch]
    every = [Task("cell", name, cell) for name in TAUGHT_BY if name in wanted for cell in wanted[name]]
    for name in (VIT, "common"):
        every += repairs(name, wanted[name]) if name in wanted else []
    return found + sorted(every, key=_rank)


def repairs(regime: str, cells: Sequence[str]) -> list[Task]:
    """Return the repairs of a regime's suspects, and the choices of their rates."""
    methods = [name for name, variant in VARIANTS.items() if variant.method not in FROM_SCAN]
    methods = [name for name in methods if regime == VIT or VARIANTS[name].method != "rvpt"]
    found = [Task("choice", regime, "patch-s0", name) for name in methods if VARIANTS[name].lr is not None]
    found = found if "patch-s0" in cells else []
    for cell in cells:
        attack, _, seed = cell.rpartition("-s")
        if attack in DEVELOPMENT and found:
            kept = methods if seed == "0" else [name for name in methods if VARIANTS[name].lr is not None]
            found += [Task("repair", regime, cell, name) for name in kept]
        if attack in BLINDED and seed == "0":
            found.append(Task("repair", regime, cell, BLIND))
    return found


def _rank(task: Task) -> tuple[int, int]:
    attack, _, seed = task.cell.rpartition("-s")
    regime = TAUGHT_BY.index(task.regime)
    if task.kind == "choice" or (task.method == BLIND):
        return 1, regime
    if task.kind == "repair":
        return 2 + 2 * (seed != "0"), regime
    if (attack in DEVELOPMENT or task.regime == VIT) and seed == "0":
        return 0, regime
    if attack in BLINDED and task.regime == "common" and seed == "0":
        return 0, regime
    return 1 + (task.regime == "common") + 2 * (seed != "0"), regime


def sets(regimes: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Return name -> (source, path) of the photos that are needed."""
    found: dict[str, tuple[Any, str]] = {}
    for name in regimes:
        regime, bench = REGIMES[name], matrix(REGIMES[name])
        for path in (regime.base, regime.train, regime.test):
            found[set_name(path)] = (bench.data, path)
    if VIT in regimes:
        found["tiny-imagenet-val"] = (matrix(REGIMES[VIT]).data, "$CLIPSAN_ASSETS/tiny-imagenet-val.parquet")
    return found


def set_name(path: str) -> str:
    """Return the name of the folder of some photos."""
    return Path(path).name.partition(".")[0].replace("[", "").replace("]", "").replace("*", "all")


def names_of(path: str) -> list[str]:
    """Return the class names by label of some photos."""
    found: dict[int, str] = {}
    for file in sorted(Path(os.environ["CLIPSAN_ASSETS"]).glob(Path(path).name)):
        table = pq.read_table(file, columns=["label", "names"])
        found |= dict(zip(table.column("label").to_pylist(), table.column("names").to_pylist(), strict=True))
    return [found[label] for label in sorted(found)]


def model_file(regime: Regime) -> Path:
    """Return the architecture of a regime."""
    return ROOT / "conf" / "model" / f"{regime.model}.json"


def base_training(regime: Regime, tiny: bool) -> TrainConfig:
    """Return how a clean ResNet is trained: as `python -m tests.benchmarks.zoo` does."""
    tree = {
        "data": as_tree(replace(matrix(regime).data, path=real(regime.base))),
        "model": {"config": str(model_file(regime))},
        "out": "",
        "epochs": 1 if tiny else regime.base_epochs,
        "batch_size": 128,
        "lr": 2e-3,
        "precision": "bf16",
    }
    return validate(TrainConfig, tree, verb="train")


def as_tree_of(task: Task) -> dict[str, str]:
    """Return a task as plain data."""
    return {"kind": task.kind, "regime": task.regime, "cell": task.cell, "method": task.method}
