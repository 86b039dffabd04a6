"""How far a repair is taken back that costs too much."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.data.choice import FlaggedByScan, ProvenByScan
from clipsan.pipeline.repair import gentle
from clipsan.pipeline.repair.gentle import nearest, said
from clipsan.pipeline.repair.line import Line
from clipsan.pipeline.repair.plan import make_plan
from clipsan.pipeline.repair.settings import Gentle, RepairConfig, Unseen
from clipsan.stages.evaluation.exam import Exam
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.repair.rvpt import Rvpt
from clipsan.stages.repair.unlearn import Unlearn
from clipsan.stages.sources import WebDataset, list_units
from tests.conftest import write_shards
from tests.unit.pipeline.repair.scan import write_scan


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> WebDataset:
    return WebDataset(path=str(write_shards(tmp_path_factory.mktemp("pairs"), shards=2, pairs=10) / "*.tar"))


class Way:
    """A model at a share of the way is that share."""

    def at(self, share: float) -> float:
        return share


ACCURACY = {0.0: 90.0, 0.25: 89.5, 0.5: 88.0, 0.75: 86.0, 1.0: 80.0}


def taken(
    monkeypatch: pytest.MonkeyPatch,
    data: WebDataset,
    asr: Mapping[float, float],
    accuracy: Mapping[float, float] = ACCURACY,
    **changes: float,
) -> tuple[float, list[float]]:
    """Return the share that is gone and those that were tried, of a way with these figures."""
    monkeypatch.setattr(
        gentle, "answers", lambda share, *_: {"accuracy_pct": accuracy[share], "proven_t1_asr_pct": asr[share]}
    )
    rule = dataclasses.replace(Gentle(data=data, steps=4, max_loss_points=1.0), **changes)
    share, tried = nearest(cast(Line, Way()), cast(Exam, None), rule, ("ball", "kite"), ("a {}",))
    assert all(figures["accuracy_pct"] == accuracy[figures["share"]] for figures in tried)
    return share, sorted(figures["share"] for figures in tried)


GONE = {0.0: 99.0, 0.25: 60.0, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0}


def test_a_repair_that_costs_little_goes_its_whole_way(monkeypatch: pytest.MonkeyPatch, data: WebDataset) -> None:
    assert taken(monkeypatch, data, GONE, max_loss_points=10.0) == (1.0, [0.0, 1.0])
    gains = dict.fromkeys(ACCURACY, 90.0)
    assert taken(monkeypatch, data, GONE, gains, max_loss_points=0.0) == (1.0, [0.0, 1.0])


def test_it_is_taken_back_to_the_first_share_that_costs_little(
    monkeypatch: pytest.MonkeyPatch, data: WebDataset
) -> None:
    assert taken(monkeypatch, data, GONE, max_loss_points=4.0) == (0.75, [0.0, 0.75, 1.0])


def test_a_trigger_that_comes_back_ends_the_way_back(monkeypatch: pytest.MonkeyPatch, data: WebDataset) -> None:
    assert taken(monkeypatch, data, GONE) == (0.5, [0.0, 0.25, 0.5, 0.75, 1.0])
    assert taken(monkeypatch, data, GONE, floor_pct=0.7) == (0.75, [0.0, 0.5, 0.75, 1.0])
    assert taken(monkeypatch, data, GONE, floor_pct=0.0) == (1.0, [0.0, 0.75, 1.0])


def test_what_the_whole_way_leaves_of_a_trigger_is_no_reason_to_stay(
    monkeypatch: pytest.MonkeyPatch, data: WebDataset
) -> None:
    left = {0.0: 99.0, 0.25: 60.0, 0.5: 41.0, 0.75: 40.0, 1.0: 40.0}
    assert taken(monkeypatch, data, left) == (0.75, [0.0, 0.5, 0.75, 1.0])


def test_of_shares_that_all_cost_too_much_the_most_accurate_is_taken(
    monkeypatch: pytest.MonkeyPatch, data: WebDataset
) -> None:
    uneven = {**ACCURACY, 0.5: 84.0}
    assert taken(monkeypatch, data, GONE, uneven)[0] == 0.75


def test_it_says_how_far_it_went() -> None:
    steps = [{"share": share, "accuracy_pct": accuracy} for share, accuracy in ACCURACY.items()]
    assert "to 75 % of its way" in said({"share": 0.75, "steps": steps})
    assert "90.0 % -> 86.0 % of accuracy on held-out images in place of 80.0 %" in said({"share": 0.75, "steps": steps})
    assert "whole way, at 90.0 % -> 80.0 %" in said({"share": 1.0, "steps": steps})


def test_it_is_for_models_of_which_a_trigger_is_proven(data: WebDataset, tiny_checkpoint: Path, tmp_path: Path) -> None:
    def plan(root: Path, **changes: Any) -> Any:
        settings = RepairConfig(
            model=ModelConfig(path=str(tiny_checkpoint)),
            method=Unlearn(batch_size=4),
            scan=str(root),
            out=str(tmp_path / "run"),
            cluster=ClusterConfig(workers=1),
        )
        return make_plan(dataclasses.replace(settings, **changes))

    named = write_scan(tmp_path / "named", data)
    proven = write_scan(tmp_path / "proven", data, proven=True)
    rule = Gentle(data=data)
    assert plan(named, gentle=rule).gentle is None
    assert plan(named, gentle=rule).fingerprint == plan(named).fingerprint
    held = plan(proven, gentle=rule)
    assert (held.gentle, held.blind) == (rule, None)
    assert "as far as the proven triggers stay gone" in held.describe()
    other = plan(proven, gentle=dataclasses.replace(rule, floor_pct=2.0))
    assert len({found.fingerprint for found in (held, other, plan(proven))}) == 3
    with pytest.raises(ConfigError, match=r"gentle: .* there is no way to go part of"):
        plan(proven, gentle=rule, method=Rvpt(batch_size=4), data=data, classes=["ball", "kite", "lamp"])


def test_the_pairs_that_are_asked_are_those_that_it_may_have_learned_from(
    data: WebDataset, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    root = write_scan(tmp_path / "scan", data, proven=True)
    settings = RepairConfig(
        model=ModelConfig(path=str(tiny_checkpoint)),
        method=Unlearn(batch_size=4),
        scan=str(root),
        gentle=Gentle(data=data),
        unseen=Unseen(withhold_pct=30),
        out=str(tmp_path / "run"),
        cluster=ClusterConfig(workers=1),
    )
    plan = make_plan(settings)
    assert plan.known is not None
    assert plan.withheld is not None
    assert plan.known.lookup == dataclasses.replace(plan.withheld.lookup, left_out=False)
    flagged = FlaggedByScan(root / "verdicts", plan.classes, 0.3)
    for unit in list_units(data):
        known = ProvenByScan(root / "verdicts", plan.classes, 0.3, left_out=False).of(unit)
        assert set(known) <= set(flagged.of(unit))
