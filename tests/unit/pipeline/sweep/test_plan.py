"""What a sweep is refused for before any trial starts."""

import dataclasses
from pathlib import Path

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
