"""The repair table on the suspect of `clipsan demo`: every method in minutes, in one process without Ray.

    clipsan demo                                                   makes runs/demo
    python -m tests.benchmarks.repair_demo runs/demo               every row
    python -m tests.benchmarks.repair_demo runs/demo --methods par unlearn
    python -m tests.benchmarks.repair_demo runs/demo --blind       the clean twin, repaired as a model that nothing accuses
    python -m tests.benchmarks.repair_demo runs/demo --blind MODELS/vit-s201-sig ...     the same of models of tests.benchmarks.audit_models

The plan, the pairs and the loop are those of `clipsan repair`. All methods have the same 2,500 of the pairs that the scan calls clean (none
of a poisoned pair that it flagged) and make the same 114 steps of 128 rows; what learns from the scan has its flagged pairs and its
compact set besides. Rates found on photos do not hold for scenes (PAR's takes 39 points of accuracy here), so each row goes as far as it
may: from the rate of tests/benchmarks/repair_variants.py, or `--start`, down by thirds to the first that costs at most 3 points on
1,500 development scenes, which no row has learned from; no trigger is asked. TBAR's scale is found in the same way. The figures are of
the demo's test scenes, the ASR of 1,000 of them.
"""

import argparse
import json
import pickle
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from clipsan.pipeline.core.config import load_group, validate
from clipsan.pipeline.data.choice import Choice
from clipsan.pipeline.repair.held import Columns, table_of
from clipsan.pipeline.repair.plan import Picked, Plan, make_plan
from clipsan.pipeline.repair.settings import RepairConfig
from clipsan.pipeline.train.data import Reading, _rows
from clipsan.pipeline.train.feed import Beside, CachedFeed, Share
from clipsan.pipeline.train.loop import Pace, train
from clipsan.stages.attack.poisoning import AttackConfig
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.samples import seeded_hash
from tests.benchmarks.audit_packing import TRIGGER, TRUTH
from tests.benchmarks.audit_training import ATTACKS
from tests.benchmarks.figures import REPAIR_COMMANDS
from tests.benchmarks.repair_variants import DEV_PHOTOS, MOST_LOST_POINTS, PAIRS, VARIANTS, Variant
from tests.benchmarks.results import Row, record, this_machine
from tests.benchmarks.suspects_photos import Photos, read
from tests.benchmarks.suspects_repairs import BLIND, Parts, Patient, blind, settings_of
from tests.benchmarks.suspects_training import figures

COMMAND = "python -m tests.benchmarks.repair_demo"
MODEL, VIT_MODEL = "test_resnet, scenes", "vit of 4 blocks, scenes"
METHODS = [name for name, variant in VARIANTS.items() if variant.method != "rvpt"]


class Demo:
    """A finished demo, read and never written to."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.suspect = self.home / "suspect" / "checkpoint"
        self.scan = self.home / "story" / "scan"
        record_of = yaml.safe_load((self.home / "evaluate" / "run.yaml").read_text(encoding="utf-8"))["config"]
        self.classes, self.templates = record_of["classes"], record_of["templates"]
        attack = yaml.safe_load((self.home / "run.yaml").read_text(encoding="utf-8"))["config"]["attack"]
        self.attack = validate(AttackConfig, attack, verb="demo")
        self.test = read(self._source("data/test"))

    def _source(self, where: str) -> Any:
        tree = {"kind": "parquet", "path": f"{self.home}/{where}/*.parquet", "label": "label", "key": "key"}
        return validate(RepairConfig, {**IDLE, "data": tree}, verb="repair").data

    def development(self, used: Columns) -> Photos:
        """Return scenes that no row has learned from."""
        photos = read(self._source("data/train"))
        names = seeded_hash(photos.uids, 0, "training order").view(np.int64)
        rows = np.flatnonzero(~np.isin(names, used["order"]))
        rows = rows[np.argsort(names[rows])][-DEV_PHOTOS:]
        return photos.take(rows)

    def plan(self, variant: Variant) -> Plan:
        """Return the checked repair of the suspect by a method."""
        tree = {
            "model": {"path": str(self.suspect)},
            "scan": str(self.scan),
            "classes": self.classes,
            "templates": self.templates,
            "out": "runs/repair-demo",
            "register": None,
            "precision": "bf16",
            "method": {"kind": "finetune"},
        }
        given = settings_of(variant, variant.lr)
        settings = validate(RepairConfig, tree, verb="repair")
        return make_plan(replace(settings, method=given.method, steps=given.steps))

    def figures(self, model: ModelConfig) -> dict[str, float]:
        """Return what a model does on the test scenes."""
        return figures(load_clip(model), self.test, self.classes, self.templates, self.attack, 0)

    def patient(self, checkpoint: Path) -> Patient:
        """Return a model that nothing accuses, with clean scenes of which none was a victim."""
        photos = read(self._source("data/train"))
        return Patient(
            model=ModelConfig(path=str(checkpoint)),
            device=torch.device("cpu"),
            photos=photos,
            parts=Parts.of(photos, np.zeros(0, int)),
            classes=tuple(self.classes),
            templates=tuple(self.templates),
        )

    def blind(self, home: Path | None) -> None:
        """Repair a model of the audit's benchmark, or the clean twin, and store both rows."""
        truth = {"attack": None, "seed": 0} if home is None else json.loads((home / TRUTH).read_text(encoding="utf-8"))
        attack = None if home is None or truth["attack"] is None else attack_of(truth, home)
        patient = self.patient(self.home / "twin" / "checkpoint" if home is None else home / "checkpoint")
        asked = (self.test, self.classes, self.templates, attack, 0)
        before = figures(load_clip(patient.model), *asked)
        with tempfile.TemporaryDirectory() as folder:
            done = blind(patient, folder)
        after = figures(done.clip, *asked)
        shown = MODEL if home is None or truth["arch"] == "resnet" else VIT_MODEL
        name: Row = {"data": "scenes", "seed": truth["seed"], "model": shown, "cpu": this_machine().cpu}
        name |= {"attack": truth["attack"] or "clean"}
        tell({**name, "method": "none", **before})
        settings = f"{100 * done.facts['share']:.0f} % of the way"
        tell({**name, "method": BLIND, **after, **taken(done.facts), **lost(after, before), "settings": settings})
        sys.stdout.write(f"{done.facts}\n")


def attack_of(truth: dict[str, Any], home: Path) -> AttackConfig:
    """Return how a model of the audit's benchmark was attacked."""
    known = ATTACKS[truth["attack"]]
    given = dict(known.trigger)
    trigger = {
        "kind": "patch",
        "pattern": "picture",
        "picture": str(home / TRIGGER),
        "size_fraction": 0.25,
        "place": "center",
    }
    if given:
        trigger = {**load_group("trigger", str(given.pop("group")), where="attack"), **given}
    tree = {"trigger": trigger, "target": truth["target"], "rate": 0.01, "text_key": known.word}
    return validate(AttackConfig, tree, verb="attack")


IDLE = {"model": {"path": "model"}, "out": "out", "method": {"kind": "finetune"}}
"""What settings need that are made for one part of them."""


def columns(plan: Plan, picked: Picked, most: int | None = None) -> Columns:
    """Return the rows of some pairs, of them `most` drawn by the hashes of their names."""
    settings = plan.config
    reading = Reading(picked.source, settings.model, settings.max_pixels, settings.seed, Choice(picked.lookup))
    parts = [part for unit in picked.units for part in _rows({"unit": [pickle.dumps(unit)]}, reading)]
    if not parts:
        return {"order": np.zeros(0, np.int64)}
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows = np.argsort(found["order"])[:most]
    return {name: values[rows] for name, values in found.items()}


def repaired(plan: Plan, folder: Path) -> Row:
    """Repair as one worker of `clipsan repair` does, write the model, and return what it took."""
    method, seed = plan.config.method, plan.config.seed
    main = columns(plan, plan.main, PAIRS)
    others = [found for found in (columns(plan, some) for some in plan.beside) if len(found["order"])]
    beside = None
    if others:
        beside = Beside(table_of({name: np.concatenate([one[name] for one in others]) for name in others[0]}), seed)
    size = min(method.batch_size, len(main["order"]))
    rows = round(method.flagged_share_pct * size / 100) if beside else 0
    share, device = Share(0, 1, size), torch.device("cpu")
    steps = plan.config.steps or method.epochs * (len(main["order"]) // (size - rows))
    pace = Pace(total_steps=steps, batch_size=size, pairs=len(main["order"]), beside_rows=rows, seed=seed)
    course = plan.task.begin(device, share)
    feed = CachedFeed(table_of(main), share, seed, beside, rows)
    started = time.monotonic()
    for _ in train(course, feed, pace, share, device, points={steps}):
        pass
    seconds = time.monotonic() - started
    course._objective.export(folder)
    trained, _ = course._objective.parameter_counts
    used = len(main["order"]) + sum(len(found["order"]) for found in others)
    return {"pairs": used, "steps": steps, "trained_parameters": trained, "seconds": round(seconds, 1)}


def main() -> int:
    """Repair and store, a row at a time."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", type=Path, help="run folder of a finished demo")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--start", type=float, help="first rate that is tried")
    parser.add_argument(
        "--blind", nargs="*", type=Path, metavar="MODEL", help="blind repair instead; default: of the clean twin"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    demo = Demo(options.demo)
    if options.blind is not None:
        for home in options.blind or [None]:
            demo.blind(home)
        return 0
    name: Row = {"data": "scenes", "seed": 0, "model": MODEL, "cpu": this_machine().cpu}
    before = demo.figures(ModelConfig(path=str(demo.suspect)))
    tell({**name, "attack": "patch", "method": "none", **before})
    finetune = demo.plan(VARIANTS["finetune"])
    dev = demo.development(columns(finetune, finetune.main, PAIRS))
    asked = (dev, demo.classes, demo.templates, None, 0)
    accuracy = figures(load_clip(finetune.config.model), *asked)["clean_accuracy_pct"]
    for method in options.methods:
        for variant, settings in strengths(method, options.start):
            with tempfile.TemporaryDirectory() as home:
                folder = Path(home) / "checkpoint"
                took = repaired(demo.plan(variant), folder)
                there = figures(load_clip(ModelConfig(path=str(folder))), *asked)["clean_accuracy_pct"]
                after = demo.figures(ModelConfig(path=str(folder)))
            sys.stdout.write(f"{method}, {settings}: {accuracy:.1f} -> {there:.1f} on development scenes; {after}\n")
            sys.stdout.flush()
            if there >= accuracy - MOST_LOST_POINTS or not settings.startswith(("lr", "scale")):
                break
        row: Row = {**name, "attack": "patch", "method": method, **after, **took, **lost(after, before)}
        tell({**row, "settings": settings})
    return 0


def strengths(method: str, start: float | None) -> list[tuple[Variant, str]]:
    """Return a row's settings from strong to weak, each with what is said of it."""
    variant = VARIANTS[method]
    if variant.method == "tbar":
        kept = tuple(given for given in variant.settings if "scale" not in given)
        found = [replace(variant, settings=(*kept, f"method.scale={scale}")) for scale in (5, 3, 2, 1)]
        return [(one, one.settings[-1].removeprefix("method.")) for one in found]
    if variant.lr is None:
        return [(variant, "as published" if method.endswith("-published") else "the method's own")]
    rates = [float(f"{(start or variant.lr) / 3**times:.0e}") for times in range(4)]
    return [(replace(variant, lr=rate), f"lr {rate:g}") for rate in rates]


def taken(facts: dict[str, Any]) -> Row:
    """Return what a repair took, of its facts."""
    return {key: facts[key] for key in ("pairs", "steps", "trained_parameters", "seconds")}


def lost(after: dict[str, float], before: dict[str, float]) -> Row:
    """Return the change of the accuracy."""
    return {"clean_accuracy_change_points": round(after["clean_accuracy_pct"] - before["clean_accuracy_pct"], 1)}


def tell(row: Row) -> None:
    """Store a row and show it."""
    row = {key: value for key, value in row.items() if key != "tried_on"}
    record("repair", [row], command=REPAIR_COMMANDS)
    sys.stdout.write(f"{row}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
