"""What `clipsan run` may be told, and what it tells a scheduler."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clipsan.pipeline.core.config import ConfigError, as_tree, load, validate
from clipsan.pipeline.story import steps as run_steps
from clipsan.pipeline.story.ending import judge
from clipsan.pipeline.story.settings import RunConfig
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.pipeline.tracking.versions import Version
from clipsan.stages.attack.triggers import ProvenConfig
from clipsan.stages.dossier.dossier import Rate
from clipsan.stages.dossier.match import Cutout
from clipsan.stages.dossier.patch import Alike, Patch, Place
from clipsan.stages.report.story import compare
from clipsan.stages.sources import WebDataset
from tests.conftest import write_shards
from tests.unit.pipeline.repair.scan import write_scan

EVALUATE = {"data": {"kind": "parquet", "path": "val.parquet", "label": "label"}, "classes": ["ball", "kite"]}


BLIND = {
    "method": {"kind": "unlearn"},
    "blind": {"data": {"kind": "parquet", "path": "dev.parquet", "label": "label"}},
}


def config(**changes: Any) -> RunConfig:
    tree = {
        "data": {"kind": "parquet", "path": "pairs.parquet"},
        "model": {"path": "suspect"},
        "scan": {"decision": {"kind": "threshold"}},
        "repair": {"method": {"kind": "unlearn"}},
        "evaluate": EVALUATE,
        "out": "run",
    }
    return validate(RunConfig, tree | changes, verb="run")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"scan": {"decision": {}, "out": "x"}}, "scan: out is filled in"),
        ({"repair": {"method": {}, "scan": "x", "model": {}}}, "repair: model, scan is filled in"),
        ({"repair": {}}, "repair: needs a method"),
        ({"evaluate": {"data": {}}}, "evaluate: needs data"),
        ({"evaluate": None}, "max_asr_pct: nothing is measured"),
        ({"force": True}, "force: .* give repair.blind.data"),
        ({"max_asr_pct": 101}, "max_asr_pct: .* less than or equal to 100"),
        ({"max_loss_points": -1}, "max_loss_points: .* greater than or equal to 0"),
    ],
)
def test_what_the_story_fills_in_or_cannot_do_is_refused(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        config(**changes)


def test_the_file_that_comes_with_clipsan_is_whole() -> None:
    given = ["data.path=pairs.tar", "model.path=suspect", "evaluate.data.path=val.tar"]
    settings = load(RunConfig, None, given, verb="run")
    assert settings.scan["write"] == ["clean", "quarantine"]
    assert settings.repair["method"]["kind"] == "unlearn"
    assert (settings.max_asr_pct, settings.max_loss_points, settings.force) == (10, 3, False)


HELD_BACK = {
    "share": 0.5,
    "steps": [{"share": 0.0, "accuracy_pct": 70.0}, {"share": 0.5, "accuracy_pct": 69.5}],
    "canary_before_pct": 99.0,
    "canary_after_pct": 1.0,
}


def repaired(asr: float | None, accuracy: float, trained: float = 0.0) -> dict[str, Any]:
    """A repair with an ASR by triggers that it did not train on; by those that it trained on it has another."""
    judge = {"name": "withheld", "before_pct": 99.0, "after_pct": asr, "counts": True}
    idle = {"name": "t1 at other places", "before_pct": 3.0, "after_pct": 40.0, "counts": False}
    return {
        "before": {"clean_accuracy_pct": 70.0, "asr_pct": 100.0},
        "after": {"clean_accuracy_pct": accuracy, "asr_pct": trained},
        "unseen": [idle] if asr is None else [judge, idle],
        "blind": HELD_BACK if asr is None else None,
    }


ATTACK = {**EVALUATE, "attack": {"trigger": {"kind": "patch"}, "target": "kite"}}
"""An evaluation with the attack; without it the success by the scan's own triggers says nothing."""


NAMED: dict[str, Any] = {"targets": ["kite"]}
PROVEN: dict[str, Any] = {"targets": [], "proof": {"triggers": [{"id": "t1", "targets": ["kite"]}]}}
NOTHING: dict[str, Any] = {"targets": [], "proof": {"triggers": []}}


@pytest.mark.parametrize(
    ("scan", "result", "changes", "outcome", "words"),
    [
        (NOTHING, None, {}, "clean", "names no concept"),
        (NOTHING, None, {}, "clean", "proves no trigger; nothing was repaired"),
        (NOTHING, repaired(None, 70.0), {"force": True, "repair": BLIND}, "clean", "force is set: the model went 50 %"),
        (NOTHING, repaired(None, 66.9), {"force": True, "repair": BLIND}, "not repaired", "cost 3.1 points"),
        (NAMED, None, {}, "unproven", "the scan names kite but proves no trigger; nothing was repaired"),
        (NAMED, repaired(4.0, 69.0), {}, "repaired", "ASR 99.0 % -> 4.0 %"),
        (PROVEN, repaired(10.0, 67.0), {}, "repaired", "towards kite"),
        (PROVEN, repaired(10.1, 69.0), {}, "not repaired", "above the 10 % asked for"),
        (PROVEN, repaired(10.1, 69.0), {"max_asr_pct": None}, "repaired", "ASR"),
        (PROVEN, repaired(4.0, 66.9), {}, "not repaired", "cost 3.1 points"),
        (NAMED, repaired(None, 69.0), {}, "not repaired", "was not measured"),
        (NAMED, repaired(None, 69.0), {"max_asr_pct": None}, "repaired", "found and repaired"),
        (PROVEN, repaired(4.0, 69.0, trained=50.0), {}, "repaired", "did not train on (withheld)"),
        (PROVEN, repaired(40.0, 69.0, trained=0.0), {}, "not repaired", "40.0 % by triggers that it did not train on"),
        (PROVEN, repaired(None, 69.0, trained=0.0), {}, "not repaired", "was not measured by any trigger"),
        (PROVEN, repaired(40.0, 69.0, trained=2.0), {"evaluate": ATTACK}, "repaired", "ASR 100.0 % -> 2.0 %"),
    ],
)
def test_the_outcome_follows_from_the_demands(
    scan: dict[str, Any], result: dict[str, Any] | None, changes: dict[str, Any], outcome: str, words: str
) -> None:
    found = judge(config(**changes), scan, result)
    assert found.name == outcome
    assert words in found.why
    assert found.exit_status == (0 if outcome in ("clean", "repaired") else 3)


def test_a_repair_is_made_where_a_trigger_is_proven_or_by_force() -> None:
    step, forced = (
        run_steps.RepairStep(given, given.tracking, {}) for given in (config(), config(force=True, repair=BLIND))
    )
    assert step.idle({"scan": PROVEN}) is None
    assert step.idle({"scan": NAMED}) == "the scan names kite but proves no trigger"
    assert step.idle({"scan": NOTHING}) == "the scan names no concept and proves no trigger"
    assert [forced.idle({"scan": found}) for found in (PROVEN, NAMED, NOTHING)] == [None] * 3


def dossier(target: str = "kite", number: int = 1) -> Patch:
    picture = np.full((2, 3, 3), 200, np.uint8)
    cutout = Cutout(picture=picture, mask=np.ones((2, 3), bool), top=4, left=5)
    place = Place(fixed=True, top=4.0, left=5.0, top_std=0.0, left_std=0.0, mode_share=1.0)
    rate = Rate(pct=90.0, low_pct=80.0, high_pct=95.0, trials=100)
    none = Rate(pct=0.0, low_pct=0.0, high_pct=2.0, trials=100)
    return Patch(
        id=f"t{number}",
        targets=(target,),
        side=8,
        flips=rate,
        control=none,
        uids=("a",),
        cutouts=(cutout,),
        place=place,
        heat=np.zeros((8, 8), np.float32),
        alike=Alike(mean=picture, likeness=1.0),
    )


def test_a_proven_trigger_is_pasted_as_the_model_sees_it(tmp_path) -> None:
    dossier().save(tmp_path / "t1")
    trigger = ProvenConfig(path=str(tmp_path / "t1")).build()
    image = np.zeros((8, 8, 3), np.uint8)
    marked, drawn = trigger(image, np.random.default_rng(0))
    expected = image.copy()
    expected[4:6, 5:8] = 200
    np.testing.assert_array_equal(marked, expected)
    assert not image.any()
    assert (drawn["height"], drawn["width"]) == (8, 8)
    with pytest.raises(ValueError, match=r"must be \[8, 8, 3\]"):
        trigger(np.zeros((9, 8, 3), np.uint8), np.random.default_rng(0))


def test_the_proven_triggers_become_the_attack_and_an_unknown_target_a_class(tmp_path) -> None:
    for number, target in ((1, "Kite"), (2, "lamp")):
        dossier(target, number).save(tmp_path / "scan" / "triggers" / f"t{number}")
    (tmp_path / "scan" / "summary.json").write_text("{}")
    step = run_steps.RepairStep(config(out=str(tmp_path)), config().tracking, {})
    found = step.config().evaluate
    assert found is not None
    assert found["classes"] == ["ball", "kite", "lamp"]
    assert found["attack"]["target"] == "Kite"
    assert [strand["target"] for strand in found["attack"]["also"]] == ["lamp"]
    given = config(out=str(tmp_path), evaluate={**EVALUATE, "attack": {"target": "ball"}})
    assert run_steps.RepairStep(given, given.tracking, {}).config().evaluate == given.evaluate


def test_a_change_is_good_or_bad_only_beyond_its_intervals() -> None:
    before = {"asr_pct": 90.0, "asr_pct_ci95": [88.0, 92.0], "clean_accuracy_pct": 70.0}
    before |= {"clean_accuracy_pct_ci95": [68.0, 72.0], "retrieval_r1_pct": 50.0}
    after = {"asr_pct": 3.0, "asr_pct_ci95": [2.0, 4.0], "clean_accuracy_pct": 60.0}
    after |= {"clean_accuracy_pct_ci95": [58.0, 62.0], "retrieval_r1_pct": 40.0}
    found = {row.words: row.good for row in compare(before, after)}
    assert found == {"Attack success rate": True, "Clean accuracy": False, "Retrieval R@1": None}
    close = compare(before, {"asr_pct": 89.0, "asr_pct_ci95": [87.0, 91.0]})
    assert [row.good for row in close] == [None]


def test_a_step_is_told_the_versions_that_its_own_settings_named(tmp_path, monkeypatch) -> None:
    def version(number: int) -> Version:
        parts = {"checkpoint": "checkpoint"}
        return Version(name=f"models:/m/{number}", source=f"s{number}", home=tmp_path, fetched=False, parts=parts)

    keys = ("model", "repair.teacher", "evaluate.probe", "scan.trusted")
    versions = {key: version(number) for number, key in enumerate(keys, 1)}
    given = config(out=str(tmp_path))
    scan, repair = (step(given, given.tracking, versions) for step in run_steps.STEPS)
    assert scan.versions == {"model": versions["model"], "trusted": versions["scan.trusted"]}
    expected = {
        "model": versions["model"],
        "teacher": versions["repair.teacher"],
        "evaluate.probe": versions["evaluate.probe"],
    }
    assert repair.versions == expected
    told: list[Any] = []
    stands_in = SimpleNamespace(plan=lambda settings: settings, go=lambda plan, versions: told.append(versions))
    monkeypatch.setattr(run_steps.repair, "VERB", stands_in)
    repair.run()
    assert told == [expected]


def test_a_dry_run_tells_what_a_scan_that_is_there_leaves_to_repair(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pairs = WebDataset(path=str(write_shards(tmp_path / "pairs", shards=2, pairs=10) / "*.tar"))
    root = write_scan(tmp_path / "run" / "scan", pairs)
    told = config(
        data=as_tree(pairs),
        model={"path": str(tiny_checkpoint)},
        out=str(tmp_path / "run"),
        evaluate=None,
        max_asr_pct=None,
    )
    step = run_steps.RepairStep(told, TrackingConfig(enabled=False), {})
    (root / "summary.json").write_text('{"targets": []}')
    assert step.describe() == "nothing    the scan names no concept and proves no trigger\n"
    (root / "summary.json").write_text('{"targets": ["kite"]}')
    assert step.describe() == "nothing    the scan names kite but proves no trigger\n"
    (root / "summary.json").write_text('{"targets": [], "unread_shards": {"count": 1}}')
    assert "which is still to do" in step.describe()
