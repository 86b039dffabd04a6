"""By what a repair is judged where nobody knows the attack."""

import dataclasses
from pathlib import Path

import pytest

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.commit import read_part, write_part
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.data.choice import FlaggedByScan, ProvenByScan
from clipsan.pipeline.repair.lineage import measured
from clipsan.pipeline.repair.plan import make_plan
from clipsan.pipeline.repair.settings import RepairConfig, Unseen
from clipsan.pipeline.repair.unseen import worst
from clipsan.pipeline.tracking.registry import is_champion
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.repair.finetune import FineTune
from clipsan.stages.repair.unlearn import Unlearn
from clipsan.stages.sources import WebDataset, list_units
from tests.conftest import write_shards
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
        found = ProvenByScan(scan / "verdicts", classes, 0.3, left_out=True).of(unit)
        assert {own.accused for own in found.values()} <= {1}
        learned = set(ProvenByScan(scan / "verdicts", classes, 0.3, left_out=False).of(unit))
        assert not learned & set(found)
        assert learned <= set(FlaggedByScan(scan / "verdicts", classes, 0.3).of(unit)) <= learned | {"00000.tar/000000"}
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
    assert plan.withheld.lookup == ProvenByScan(scan / "verdicts", plan.classes, 0.3, left_out=True)
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
    assert (by_judge["clipsan.max_asr_pct"], by_judge["clipsan.max_loss_points"]) == ("10.0000", "3.0000")
    assert not is_champion(by_judge, None)
    assert measured(plan, {**summary, "unseen": [record("a", 10.0, 0.0)]}) == {}
    assert measured(plan, {**summary, "unseen": None})["clipsan.asr_pct"] == "0.0000"
    free = dataclasses.replace(plan, config=dataclasses.replace(plan.config, max_asr_pct=None))
    assert is_champion(measured(free, {**summary, "unseen": [record("a", 90.0, 40.0)]}), None)


def test_a_patch_elsewhere_is_the_same_patch_at_any_place() -> None:
    patch = dossier()
    moved = patch.elsewhere()
    assert moved is not None
    assert moved.cutouts == patch.cutouts
    assert (patch.place.fixed, moved.place.fixed) == (True, False)
    assert moved.elsewhere() is None
