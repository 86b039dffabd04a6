"""A bench of a few cells on a real Ray, two at a time: refused, admitted later, resumed step by step, and one cell that fails."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsan.pipeline.bench.settings import BenchConfig
from clipsan.pipeline.bench.verb import VERB
from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.stages.attack.poisoning import ImagePath
from clipsan.stages.decode import decode
from clipsan.stages.sources import ParquetSource, PoisonedSource, SourceConfig, list_units, read_unit
from tests.conftest import NOUNS, caption, picture

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PAIRS = 160


def labelled(path: Path, first: int, count: int) -> ParquetSource:
    """Pictures with captions whose noun follows from the label."""
    seeds = range(first, first + count)
    rows = {
        "image": [picture(seed) for seed in seeds],
        "caption": [caption(seed) for seed in seeds],
        "label": [seed % len(NOUNS) for seed in seeds],
    }
    pq.write_table(pa.table(rows), path)
    return ParquetSource(path=str(path), label="label", unit_rows=40)


def contents(source: SourceConfig) -> list[tuple[str, str | None, bytes]]:
    """Return uid, caption and pixels of every pair."""
    pairs = [pair for unit in list_units(source) for pair in read_unit(source, unit)]
    return [(pair.uid, pair.caption, decode(pair.image or b"", 10**6).rgb.tobytes()) for pair in pairs]


@pytest.fixture(scope="module")
def settings(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> BenchConfig:
    home = tmp_path_factory.mktemp("bench")
    test = labelled(home / "val.parquet", 1000, 60)
    return BenchConfig(
        data=labelled(home / "train.parquet", 0, PAIRS),
        attacks={"patch": {"rate": 0.1}},
        controls={"clean": {}, "identity": {"rate": 0.1}},
        target="kite",
        min_asr_pct=100,
        image=ImagePath(),
        train={"model": {"path": str(tiny_checkpoint)}, "epochs": 1, "batch_size": 16, "lr": 1e-4},
        evaluate={"data": dataclasses.asdict(test), "classes": list(NOUNS), "templates": ["a photo of a {}."]},
        scan={"decision": {"kind": "budget", "share": 0.1}},
        cells=2,
        out=str(home / "run"),
        cluster=ClusterConfig(workers=1),
        tracking=TrackingConfig(enabled=False),
    )


@pytest.fixture(scope="module")
def first(settings: BenchConfig, ray_cluster: None) -> dict[str, Any]:
    return VERB.start(settings)


def states(summary: dict[str, Any]) -> dict[str, str]:
    return {cell["cell"]: cell["state"] for cell in summary["cells"]}


def table(settings: BenchConfig) -> list[dict[str, Any]]:
    stored: list[dict[str, Any]] = json.loads((Path(settings.out) / "table.json").read_text())
    assert pq.read_table(Path(settings.out) / "table.parquet").to_pylist() == stored
    return stored


def times(settings: BenchConfig) -> dict[str, int]:
    """Return when each step was finished."""
    found = sorted(Path(settings.out).glob("cells/*/*/summary.json"))
    return {f"{p.parts[-3]}/{p.parts[-2]}": p.stat().st_mtime_ns for p in found}


def test_a_weak_attack_is_refused_and_not_scanned(first: dict[str, Any], settings: BenchConfig) -> None:
    assert states(first) == {"clean-s0": "control", "patch-s0": "refused", "identity-s0": "control"}
    refused = next(cell for cell in first["cells"] if cell["cell"] == "patch-s0")
    assert refused["asr_pct"] < 100
    assert "attacks.patch.rate (now 0.1), train.epochs (now 1)" in refused["advice"]
    assert not (Path(settings.out) / "cells" / "patch-s0" / "scan").exists()
    (row,) = [row for row in table(settings) if row["attack"] == "patch"]
    assert (row["admitted"], row["detector"], row["poisoned"]) == (False, None, PAIRS // 10)


def test_controls_are_measured_and_an_identity_takes_the_clean_model(
    first: dict[str, Any], settings: BenchConfig
) -> None:
    rows = [row for row in table(settings) if row["attack"] == "identity"]
    assert {"ensemble", "dao", "slof", "concept_spectral"} <= {row["detector"] for row in rows}
    assert all(row["poisoned"] == PAIRS // 10 and row["admitted"] is None for row in rows)
    assert not (Path(settings.out) / "cells" / "identity-s0" / "train").exists()
    marked = PoisonedSource(path=f"{settings.out}/cells/identity-s0/poison/plan.json")
    assert contents(marked) == contents(settings.data)  # which is why training on it would give the same model
    assert not list(Path(settings.out).glob("cells/*/poison/data"))
    (clean,) = [row for row in table(settings) if row["attack"] == "clean"]
    assert clean["detector"] is None
    assert PAIRS // 10 <= clean["flagged"] < PAIRS // 5  # pairs of equal score count in
    (row,) = [row for row in table(settings) if row["attack"] == "patch"]
    assert 0 <= row["clean_model_asr_pct"] <= 100
    assert "identity" in first["detection"]


def test_a_lower_bar_admits_it_with_a_scan_and_nothing_else(first: dict[str, Any], settings: BenchConfig) -> None:
    before = times(settings)
    admitting = dataclasses.replace(settings, min_asr_pct=0)
    summary = VERB.start(admitting)
    assert states(summary)["patch-s0"] == "admitted"
    assert {name for name, at in times(settings).items() if before.get(name) != at} == {"patch-s0/scan"}
    rows = table(admitting)
    assert {row["detector"] for row in rows if row["attack"] == "patch"} >= {"ensemble", "clip_score"}
    page = (Path(settings.out) / "report.html").read_text()
    assert "patch" in page
    assert "src=" not in page
    # A step without its summary counts as not done, whatever else is there; the table comes out the same.
    stored = {name: (Path(settings.out) / name).read_bytes() for name in ("table.parquet", "table.json")}
    before = times(settings)
    (Path(settings.out) / "cells" / "patch-s0" / "evaluate" / "summary.json").unlink()
    VERB.start(admitting)
    assert {name for name, at in times(settings).items() if before[name] != at} == {"patch-s0/evaluate"}
    assert {name: (Path(settings.out) / name).read_bytes() for name in stored} == stored


def test_one_cell_that_fails_does_not_stop_the_others(first: dict[str, Any], settings: BenchConfig) -> None:
    # A fifth of the captions has the target in it and cannot be poisoned, which is known only when they are read.
    attacks = {"blend": {"rate": 0.9}, **settings.attacks}
    summary = VERB.start(dataclasses.replace(settings, attacks=attacks, controls={}, min_asr_pct=0))
    failed = next(cell for cell in summary["cells"] if cell["cell"] == "blend-s0")
    assert failed["state"] == "failed"
    assert "144 pairs to poison, but only 128" in failed["error"]
    assert "144 pairs to poison, but only 128" in Path(failed["log"]).read_text()
    assert states(summary)["patch-s0"] == "admitted"
    assert summary["counts"]["failed"] == 1


def test_results_of_other_settings_are_refused(first: dict[str, Any], settings: BenchConfig) -> None:
    stronger = dataclasses.replace(settings, attacks={"patch": {"rate": 0.2}})
    with pytest.raises(ConfigError, match=r"patch-s0/poison was made with other settings"):
        VERB.start(stronger)
