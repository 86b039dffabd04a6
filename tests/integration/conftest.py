"""What the integration tests share: passes in this process, and settings of small runs."""

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from clipsan.pipeline.core import verb
from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.pass_ import in_this_process
from clipsan.pipeline.proof.inquiry import ProofConfig
from clipsan.pipeline.scan import verb as scan
from clipsan.pipeline.scan.plan import ScanConfig
from clipsan.pipeline.story import verb as run
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.oracle import SuperpixelsConfig
from clipsan.stages.sources import ParquetSource, SourceConfig
from clipsan.stages.verdicts import BudgetDecision, ThresholdDecision
from tests.closed_form import Case, make_case

BUDGET = 0.1
SCENES, POISONED = 1200, 40
"""Of the backdoored set."""
ON_RAY = ClusterConfig(workers=2, alone_below_pairs=0)
"""Of tests that are about workers: small passes are done by them, too."""
PROOF = ProofConfig(budget=0.1, held_out=192, groups=2, group_size=100)


@pytest.fixture(scope="session")
def backdoored(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A set with a patch on POISONED of its SCENES pairs, and a model with that backdoor."""
    return make_case(tmp_path_factory.mktemp("backdoored"), scenes=SCENES, poisoned=POISONED)


@pytest.fixture(scope="session")
def scanned(backdoored: Case, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """Run folder of a scan of that set, on two workers, that proves the patch and writes the clean copy."""
    out = tmp_path_factory.mktemp("scanned") / "run"
    scan_case(backdoored, out, oracle=SuperpixelsConfig(), proof=PROOF, write=["clean"], cluster=ON_RAY)
    return out


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Do the pieces of every pass here, one after the other: the same work without Ray's seconds."""
    for module in (verb, run, scan):
        monkeypatch.setattr(module, "ray_session", lambda _: nullcontext(), raising=False)
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
    return scan.VERB.start(scan_settings(data, model, out, **changes))


def part_bytes(folder: Path) -> dict[str, bytes]:
    """Return every part below a folder: relative path -> content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("part-*.parquet"))}


def scan_case(case: Case, out: Path, **changes: Any) -> dict[str, Any]:
    """Scan a set of tests.closed_form; return the summary."""
    return scan_now(pairs_of(case), case.checkpoint, out, **{"decision": ThresholdDecision()} | changes)


def pairs_of(case: Case) -> ParquetSource:
    """Return the data of a set of tests.closed_form."""
    return ParquetSource(path=str(case.data / "*.parquet"), label="label", key="key")
