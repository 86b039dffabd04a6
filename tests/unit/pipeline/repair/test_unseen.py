"""By what a repair is judged where nobody knows the attack."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.commit import read_part, write_part
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.core.pass_ import in_this_process
from clipsan.pipeline.core.run_folder import RunFolder
from clipsan.pipeline.data.choice import FlaggedByScan, Withheld
from clipsan.pipeline.repair import pairs as pairs_module
from clipsan.pipeline.repair import unseen as unseen_module
from clipsan.pipeline.repair.lineage import measured
from clipsan.pipeline.repair.plan import make_plan
from clipsan.pipeline.repair.settings import RepairConfig, Unseen
from clipsan.pipeline.repair.unseen import unseen, worst
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.repair.finetune import FineTune
from clipsan.stages.repair.unlearn import Unlearn
from clipsan.stages.sources import WebDataset, list_units
from tests.conftest import caption, picture, write_shards
from tests.unit.pipeline.repair.in_driver import columns_of
from tests.unit.pipeline.repair.scan import write_scan
from tests.unit.pipeline.story.test_story import dossier

PAIRS = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> WebDataset:
    return WebDataset(path=str(write_shards(tmp_path_factory.mktemp("pairs"), shards=2, pairs=PAIRS) / "*.tar"))


@pytest.fixture
def scan(data: WebDataset, tmp_path: Path) -> Path:
    """A scan of which every flagged pair is proven to be poisoned, but one."""
    root = write_scan(tmp_path / "scan", data, pairs=PAIRS)
    for unit in range(2):
        table = read_part(root / "verdicts", unit, None)
        rows = table.to_pylist()
        for i, row in enumerate(rows):
            flagged = i < 20
            row["verdict"] = "poisoned" if flagged and (unit, i) != (0, 0) else "suspect" if flagged else "clean"
            row["reasons"], row["target"] = (["poison_suspect"], "kite") if flagged else ([], None)
        write_part(root / "verdicts", unit, type(table).from_pylist(rows), "mark")
    return root


def test_what_is_withheld_is_not_trained_on_and_nothing_is_lost(data: WebDataset, scan: Path) -> None:
    units, classes = list_units(data), ("ball", "kite", "lamp")
    every, kept, withheld = set(), set(), set()
    for unit in units:
        every |= set(FlaggedByScan(scan / "verdicts", classes).of(unit))
        kept |= set(FlaggedByScan(scan / "verdicts", classes, 0.3).of(unit))
        found = Withheld(scan / "verdicts", classes, 0.3).of(unit)
        assert {own.accused for own in found.values()} <= {1}
        withheld |= set(found)
    assert len(every) == 40
    assert not kept & withheld
    # only the pair that nothing proves to be poisoned may be neither trained on nor a judge
    assert every - kept - withheld <= {"00000.tar/000000"}
    assert 4 <= len(withheld) <= 20


def settings_of(scan: Path, tiny_checkpoint: Path, tmp_path: Path) -> RepairConfig:
    return RepairConfig(
        model=ModelConfig(path=str(tiny_checkpoint)),
        method=Unlearn(batch_size=8),
        scan=str(scan),
        unseen=Unseen(withhold_pct=30),
        out=str(tmp_path / "run"),
        cluster=ClusterConfig(workers=1),
    )


def test_the_plan_keeps_them_from_the_repair(scan: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = settings_of(scan, tiny_checkpoint, tmp_path)
    plan = make_plan(settings)
    (flagged,) = plan.beside
    assert flagged.lookup == FlaggedByScan(scan / "verdicts", plan.classes, 0.3)
    assert plan.withheld is not None
    assert plan.withheld.lookup == Withheld(scan / "verdicts", plan.classes, 0.3)
    other = make_plan(dataclasses.replace(settings, unseen=None))
    assert other.withheld is None
    assert other.fingerprint != plan.fingerprint
    with pytest.raises(ConfigError, match=r"unseen: .* give scan"):
        make_plan(dataclasses.replace(settings, scan=None, data=plan.main.source, method=FineTune(batch_size=8)))


def record(name: str, before: float, after: float) -> dict:
    return {"name": name, "before_pct": before, "after_pct": after, "counts": before >= 50}


def test_the_judge_that_counts_and_has_most_left_decides(scan: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    found = [record("a", 90.0, 4.0), record("b", 60.0, 7.0), record("c", 10.0, 10.0)]
    judge = worst(found)
    assert judge is not None
    assert judge["name"] == "b"
    assert worst(found[2:]) is None
    assert worst(None) is None


def test_triggers_that_were_trained_on_make_no_champion(
    data: WebDataset, scan: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    evaluate = {"data": {"kind": "webdataset", "path": data.path}, "classes": ["ball", "kite", "lamp"]}
    plan = make_plan(dataclasses.replace(settings_of(scan, tiny_checkpoint, tmp_path), evaluate=evaluate))
    figures = {"clean_accuracy_pct": 70.0, "asr_pct": 0.0}
    summary = {"before": {**figures, "asr_pct": 100.0}, "after": figures}
    by_judge = measured(plan, {**summary, "unseen": [record("a", 90.0, 40.0)]})
    assert (by_judge["clipsan.asr_pct"], by_judge["clipsan.asr_before_pct"]) == ("40.0000", "90.0000")
    assert measured(plan, {**summary, "unseen": [record("a", 10.0, 0.0)]}) == {}
    assert measured(plan, {**summary, "unseen": None})["clipsan.asr_pct"] == "0.0000"


def test_a_patch_elsewhere_is_the_same_patch_at_any_place() -> None:
    patch = dossier()
    moved = patch.elsewhere()
    assert moved is not None
    assert moved.cutouts == patch.cutouts
    assert (patch.place.fixed, moved.place.fixed) == (True, False)
    assert moved.elsewhere() is None


def test_withheld_pairs_patches_elsewhere_and_given_dossiers_judge_both_models(
    data: WebDataset, scan: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs_module, "columns_of", columns_of)
    monkeypatch.setattr(unseen_module, "columns_of", columns_of)
    side = load_clip(ModelConfig(path=str(tiny_checkpoint))).image_size
    shown = dataclasses.replace(dossier(), side=side, heat=np.zeros((side, side), np.float32))
    shown.save(scan / "triggers" / "t1")
    dataclasses.replace(shown, id="t7").save(tmp_path / "inverted" / "t7")
    rows = [{"image": picture(i), "caption": caption(i), "label": i % 3} for i in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "labelled.parquet")
    settings = dataclasses.replace(
        settings_of(scan, tiny_checkpoint, tmp_path),
        unseen=Unseen(withhold_pct=30, images=20, judges=(str(tmp_path / "inverted"),), min_before_pct=0),
        evaluate={
            "data": {"kind": "parquet", "path": str(tmp_path / "labelled.parquet"), "label": "label"},
            "classes": ["ball", "kite", "lamp"],
        },
    )
    plan = make_plan(settings)
    assert settings.unseen is not None
    with in_this_process():
        found = unseen(plan, settings.unseen, RunFolder(tmp_path / "run"), (settings.model, settings.model))
    names = [record["name"] for record in found]
    assert names == ["withheld poisoned pairs", "t1 at other places", f"{tmp_path / 'inverted'}/t7"]
    withheld = set().union(*(plan.withheld.lookup.of(unit) for unit in plan.withheld.units))
    assert found[0]["images"] == len(withheld)
    # kites are no picture for a trigger that means kite
    assert 0 < found[1]["images"] < 20
    for record in found:
        assert record["targets"] == ["kite"]
        assert record["before_pct"] == record["after_pct"]
        assert record["counts"]


def test_where_nothing_was_withheld_and_no_place_is_fixed_nobody_judges(
    data: WebDataset, scan: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = dataclasses.replace(settings_of(scan, tiny_checkpoint, tmp_path), unseen=Unseen(withhold_pct=0))
    with in_this_process():
        assert (
            unseen(make_plan(settings), Unseen(withhold_pct=0), RunFolder(tmp_path / "run"), (settings.model,) * 2)
            == []
        )
