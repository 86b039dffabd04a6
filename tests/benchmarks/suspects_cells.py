"""What the GPU's machine sent, as run folders: clean models, BadCLIP's patches, and finished trainings of the zoo's cells."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from clipsan.pipeline.bench.cell import Cell
from clipsan.pipeline.bench.plan import Plan, make_plan
from clipsan.pipeline.core.commit import write_text
from clipsan.pipeline.core.config import as_tree
from clipsan.stages.model.clip import ModelConfig, load_clip, save_clip
from tests.benchmarks import photos, zoo
from tests.benchmarks.regimes import REGIMES, ROOT, Regime, write_classes
from tests.benchmarks.results import Row, record
from tests.benchmarks.suspects import COMMAND
from tests.benchmarks.suspects_packing import Packed, unpack
from tests.benchmarks.suspects_tasks import LEAST_ASR_PCT, matrix, model_file
from tests.benchmarks.suspects_worker import say

State = dict[str, torch.Tensor]
REPAIR_FIGURES = (
    *("clean_accuracy_pct", "asr_pct", "accuracy_under_trigger_pct", "rebound_asr_pct", "rebound_clean_accuracy_pct"),
    *("pairs", "steps", "trained_parameters", "settings", "seconds"),
)
LIKE = "what it says is what the machine that trained it measured; evaluate says what holds"


def unpack_all(folders: Sequence[Path]) -> int:
    """Write all that stands in the bundles; what is there already is written again."""
    found = [
        packed
        for folder in folders
        for path in sorted(folder.glob("*.bin"))
        for packed in Packed.loads(path.read_bytes())
    ]
    kept: dict[str, list[Packed]] = {"base": [], "badclip": [], "cell": [], "choice": [], "repair": []}
    for packed in found:
        kept[packed.facts["task"]["kind"]].append(packed)
    bases = {packed.facts["task"]["regime"]: _write_base(packed) for packed in kept["base"]}
    for packed in kept["badclip"]:
        _write_patch(packed)
    plans: dict[str, Plan] = {}
    for packed in kept["cell"]:
        regime = REGIMES[packed.facts["task"]["regime"]]
        if regime.name not in plans:
            plans[regime.name] = plan_of(regime)
        before = bases.get(regime.name) or _state(ROOT / regime.base_run / "checkpoint")
        _write_cell(packed, plans[regime.name], before)
    for packed in kept["choice"]:
        say(json.dumps({name: value for name, value in packed.facts.items() if name != "tensors"}))
    store_suspects(kept["cell"])
    _store_repairs(kept["cell"], kept["repair"])
    return 0


def store_suspects(suspects: Sequence[Packed]) -> None:
    """Store what was measured of each suspect where it was made."""
    rows: list[Row] = []
    for packed in suspects:
        regime, cell = cell_of(packed)
        facts = packed.facts
        named = ("pairs", "poisoned", "concept_poisoned_pct", "clean_accuracy_pct", "asr_pct")
        row: Row = {**zoo.cell_names(f"{regime}/{cell}"), **{name: facts[name] for name in named if name in facts}}
        if facts.get("rate") is not None:
            row["rate_pct"] = round(100 * facts["rate"], 2)
        rows.append(row | {"admitted": facts.get("asr_pct", 0.0) >= LEAST_ASR_PCT})
    if rows:
        record("suspects", rows, command=f"{COMMAND} unpack FOLDER")


def _store_repairs(suspects: Sequence[Packed], repairs: Sequence[Packed]) -> None:
    """Store the rows of the repair table, each suspect before its repairs."""
    rows: list[Row] = []
    known = {cell_of(packed): packed.facts for packed in suspects}
    for packed in repairs:
        facts, cell = packed.facts, cell_of(packed)
        name = f"{facts['task']['regime']}/{facts['task']['cell']}"
        suspect: Row = {**zoo.cell_names(name), "cpu": facts["card"]}
        row: Row = {
            **suspect,
            "method": facts["task"]["method"],
            **{key: facts[key] for key in REPAIR_FIGURES if key in facts},
        }
        if "share" in facts:
            row["settings"] = f"{100 * facts['share']:.0f} % of the way"
        if cell in known:
            before = known[cell]
            rows.append(
                {
                    **suspect,
                    "method": "none",
                    **{key: before[key] for key in REPAIR_FIGURES if key in before and key != "pairs"},
                }
            )
            row["clean_accuracy_change_points"] = round(facts["clean_accuracy_pct"] - before["clean_accuracy_pct"], 1)
        rows.append(row)
    if rows:
        record("repair", rows, command=f"{COMMAND} unpack FOLDER")


def cell_of(packed: Packed) -> tuple[str, str]:
    """Return regime and cell."""
    return packed.facts["task"]["regime"], packed.facts["task"]["cell"]


def plan_of(regime: Regime) -> Plan:
    """Return the checked matrix of a regime; its clean model must be there."""
    folder = photos.assets()
    if folder is None:
        raise SystemExit("CLIPSAN_ASSETS names no folder of photos")
    write_classes(folder / Path(regime.test).name, ROOT / regime.classes)
    with contextlib.chdir(ROOT):
        return make_plan(matrix(regime))


def _state(checkpoint: Path) -> State:
    return dict(load_clip(ModelConfig(path=str(checkpoint))).model.state_dict())


def _save(regime: Regime, state: State, home: Path, packed: Packed) -> None:
    clip = load_clip(ModelConfig(config=str(model_file(regime))), init_seed=0)
    clip.model.load_state_dict(state)
    save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, home / "checkpoint")
    facts = {name: value for name, value in packed.facts.items() if name != "tensors"}
    summary = {"checkpoint": str(home / "checkpoint"), "seconds": 0.0, "made_elsewhere": facts, "note": LIKE}
    write_text(home / "summary.json", json.dumps(summary, indent=1) + "\n")


def _write_base(packed: Packed) -> State:
    regime = REGIMES[packed.facts["task"]["regime"]]
    fresh = load_clip(ModelConfig(config=str(model_file(regime))), init_seed=0)
    state = unpack(packed, fresh.model.state_dict())
    _save(regime, state, ROOT / regime.base_run, packed)
    say(f"{regime.base_run}: {_told(packed)}")
    return state


def _write_patch(packed: Packed) -> None:
    regime = REGIMES[packed.facts["task"]["regime"]]
    assert regime.patch is not None
    home = ROOT / regime.patch
    home.mkdir(parents=True, exist_ok=True)
    (home / "patch.png").write_bytes(packed.body)
    write_text(
        home / "summary.json", json.dumps({"picture": str(home / "patch.png"), "made_elsewhere": packed.facts}) + "\n"
    )
    say(f"{regime.patch}: {_told(packed)}")


def _write_cell(packed: Packed, plan: Plan, before: State) -> None:
    name = packed.facts["task"]["cell"]
    label = f"{packed.facts['task']['regime']}/{name}: {_told(packed)}"
    found = next((cell for cell in plan.cells if cell.name == name), None)
    if found is None:
        say(f"{label}; left out: the matrix has no such cell")
        return
    meant: Any = json.loads(json.dumps(as_tree(found.attack)))
    if meant != packed.facts["attack"]:
        rate = None if found.attack is None else found.attack.rate
        say(f"{label}; left out: the matrix has another attack (rate {rate}, made with {packed.facts.get('rate')})")
        return
    step = found.step("train")
    assert step is not None
    regime = REGIMES[packed.facts["task"]["regime"]]
    _save(regime, unpack(packed, before), step.folder, packed)
    write_text(step.fingerprint_file, step.fingerprint)
    say(label)


def _told(packed: Packed) -> str:
    return json.dumps({k: v for k, v in packed.facts.items() if k not in ("tensors", "attack", "task")})


def go_on(name: str, chosen: Sequence[str], only: Sequence[str]) -> int:
    """Do the other steps of the cells whose models are there, one after the other, and store the figures."""
    regime = REGIMES[name]
    plan = plan_of(regime)
    folder = photos.assets()
    assert folder is not None
    with contextlib.chdir(ROOT):
        for cell in _trained(plan, chosen):
            for step in cell.left(plan.config.min_asr_pct):
                if step.name == "scan" and not cell.is_admitted(plan.config.min_asr_pct):
                    say(f"{cell.name} refused: ASR {cell.asr_pct}")
                elif not only or step.kind in only:
                    say(f"{cell.name} {step.name}")
                    step.run()
            zoo.store(regime, "bf16", folder)
    return 0


def _trained(plan: Plan, chosen: Sequence[str]) -> Iterator[Cell]:
    for cell in plan.cells:
        step = cell.step("train")
        if (not chosen or cell.name in chosen) and step is not None and step.done:
            yield cell
