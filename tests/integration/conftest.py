"""What the integration tests share: passes in this process, and settings of small runs."""

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pipeline import poison, run, scan
from pipeline.cluster import ClusterConfig
from pipeline.passes import in_this_process
from pipeline.scan import ScanConfig, make_plan, run_scan
from pipeline.tracking import TrackingConfig
from stages.clip_model import ModelConfig
from stages.sources import SourceConfig
from stages.verdicts import BudgetDecision

BUDGET = 0.1


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Do the pieces of every pass here, one after the other: the same work without Ray's seconds."""
    for module in (poison, run, scan):
        monkeypatch.setattr(module, "ray_session", lambda _: nullcontext())
    with in_this_process():
        yield


def scan_settings(data: SourceConfig, model: Path, out: Path, **changes: Any) -> ScanConfig:
    """Settings of a scan that flags the `BUDGET` most suspicious share: an untrained model accuses no concept."""
    settings = ScanConfig(
        data=data,
        model=ModelConfig(path=str(model)),
        out=str(out),
        decision=BudgetDecision(share=BUDGET),
        cluster=ClusterConfig(workers=2),
        tracking=TrackingConfig(enabled=False),
    )
    return dataclasses.replace(settings, **changes)


def scan_now(data: SourceConfig, model: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Plan and run a scan; return its summary."""
    return run_scan(make_plan(scan_settings(data, model, out, **changes)))


def part_bytes(folder: Path) -> dict[str, bytes]:
    """Return every part below a folder: relative path -> content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("part-*.parquet"))}
