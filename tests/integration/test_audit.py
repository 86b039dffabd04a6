"""An audit by workers: a killed one goes on, and finds what one process finds."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsan.pipeline.audit import verb as audit
from clipsan.pipeline.audit.settings import AuditConfig, SearchConfig
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.stages.audit.verdict import VerdictLimits
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.sources import ParquetSource
from tests.conftest import NOUNS, picture
from tests.integration.conftest import ON_RAY, part_bytes

pytestmark = pytest.mark.ray
PICTURES = 24


@pytest.fixture
def settings(tiny_checkpoint: Path, tmp_path: Path) -> AuditConfig:
    rows = {"image": [*(picture(i) for i in range(PICTURES)), b"no image"], "caption": [""] * (PICTURES + 1)}
    pq.write_table(pa.table(rows), tmp_path / "pictures.parquet")
    return AuditConfig(
        model=ModelConfig(path=str(tiny_checkpoint)),
        images=ParquetSource(path=str(tmp_path / "pictures.parquet")),
        classes=[*NOUNS, "tree", "house"],
        count=16,
        labels_per_task=2,
        screening=SearchConfig(steps=2, images_per_label=2),
        inversion=SearchConfig(steps=2, images_per_label=2),
        decree_steps=2,
        key_words=8,
        limits=VerdictLimits(backdoored_p=1e-9, suspicious_p=1e-9),
        out=str(tmp_path / "run"),
        cluster=ON_RAY,
        tracking=TrackingConfig(enabled=False),
    )


def test_workers_screen_every_label_and_a_killed_audit_goes_on(ray_cluster: None, settings: AuditConfig) -> None:
    first = audit.VERB.start(settings)
    assert first["counts"]["labels"] == len(first["labels"]) == 7
    assert first["verdict"] == "clean"
    home = Path(settings.out)
    before = part_bytes(home)
    assert len([name for name in before if name.startswith("screening/")]) == 4
    for name in ("screening/part-00001.parquet", "proofs", "summary.json"):
        left = home / name
        for path in sorted(left.glob("*")) if left.is_dir() else [left]:
            path.unlink()
    again = audit.VERB.start(settings)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    assert {name: content for name, content in part_bytes(home).items() if name in before}.keys() == before.keys()
    rows = pq.read_table(home / "screening").to_pylist()
    assert sorted((row["kind"], row["label"]) for row in rows) == [(k, i) for k in ("additive",) for i in range(7)]
