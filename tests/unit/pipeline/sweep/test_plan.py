"""What a sweep is refused for before any trial starts."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.config import ConfigError, as_tree
from clipsan.pipeline.sweep.plan import make_plan
from clipsan.pipeline.sweep.settings import GridSearch, HeldOutConfig, SweepConfig
from clipsan.stages.search.space import Choice
from clipsan.stages.sources import WebDataset
from tests.conftest import write_shards
from tests.unit.pipeline.repair.scan import write_scan


def test_unlearning_is_not_swept_where_the_scan_accuses_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    data = WebDataset(path=str(write_shards(tmp_path / "pairs", shards=2, pairs=10) / "*.tar"))
    root = write_scan(tmp_path / "scan", data)
    settings = SweepConfig(
        repair={
            "model": {"path": str(tiny_checkpoint)},
            "method": {"kind": "unlearn", "batch_size": 8},
            "scan": str(root),
            "data": as_tree(data),
        },
        space={"method.lr": Choice(kind="grid", values=(1e-3, 1e-2))},
        search=GridSearch(),
        held_out=HeldOutConfig(data=data),
        objective="resistivity",
        out=str(tmp_path / "run"),
        cluster=ClusterConfig(workers=2),
    )
    assert make_plan(settings).base.config.method.kind == "unlearn"
    (root / "summary.json").write_text('{"targets": []}')
    with pytest.raises(ConfigError, match=r"accuses nothing, so that method unlearn .* take repair\.method=par"):
        make_plan(settings)
    blind = {**settings.repair, "method": {"kind": "par", "batch_size": 8}}
    assert make_plan(dataclasses.replace(settings, repair=blind)).base.config.method.kind == "par"


@pytest.mark.parametrize("section", ["blind", "gentle", "unseen"])
def test_what_no_trial_does_is_refused_as_a_setting(section: str, tmp_path: Path) -> None:
    held = {"data": {"kind": "webdataset", "path": "val.tar"}}
    data = WebDataset(path="pairs.tar")
    dimension = Choice(kind="grid", values=(1.0, 2.0))

    def sweep(repair: dict[str, Any], space: str) -> SweepConfig:
        return SweepConfig(
            repair={"model": {"path": "suspect"}, "method": {"kind": "par"}, "data": as_tree(data), **repair},
            space={space: dimension},
            held_out=HeldOutConfig(data=data),
            out=str(tmp_path),
        )

    with pytest.raises(ValueError, match=f"repair: {section} is filled in by the sweep"):
        sweep({section: held}, "method.lr")
    with pytest.raises(ValueError, match=f"space: {section}.max_loss_points is the same in all trials"):
        sweep({}, f"{section}.max_loss_points")
