"""`clipsan repair` on a real local Ray: a checkpoint with its proof, and kills that cost nothing."""

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path

import mlflow
import numpy as np
import open_clip
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.verb import Summary
from clipsan.pipeline.repair.settings import Blind, CanaryConfig, EarlyStop, RepairConfig
from clipsan.pipeline.repair.verb import VERB
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.pipeline.tracking.send import log_run
from clipsan.stages.decode import decode
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.repair.par import Par
from clipsan.stages.repair.rvpt import Rvpt
from clipsan.stages.repair.unlearn import Unlearn
from clipsan.stages.sources import ParquetSource, WebDataset
from tests.conftest import NOUNS, caption, picture, write_shards
from tests.integration.test_train import kill_a_worker_after
from tests.killing import kill_once
from tests.unit.pipeline.repair.scan import write_scan

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).parents[2]
EPOCHS, WAIT_S = 10, 600


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repair")


@pytest.fixture(scope="module")
def scan(home: Path) -> Path:
    data = WebDataset(path=str(write_shards(home / "pairs", shards=2, pairs=36) / "*.tar"))
    return write_scan(home / "scanned", data, pairs=36)


@pytest.fixture(scope="module")
def labelled(home: Path) -> ParquetSource:
    rows = [{"image": picture(i), "caption": caption(i), "label": i % len(NOUNS)} for i in range(500, 540)]
    pq.write_table(pa.Table.from_pylist(rows), home / "labelled.parquet")
    return ParquetSource(path=str(home / "labelled.parquet"), label="label")


def evaluation(labelled: ParquetSource) -> dict:
    return {
        "data": {"kind": "parquet", "path": labelled.path, "label": "label"},
        "classes": list(NOUNS),
        "templates": ["a photo of a {}."],
        "attack": {"trigger": {"kind": "patch", "pattern": "yellow", "size_fraction": 0.2}, "target": "kite"},
    }


@pytest.fixture(scope="module")
def settings(home: Path, scan: Path, labelled: ParquetSource, tiny_checkpoint: Path) -> RepairConfig:
    return RepairConfig(
        model=ModelConfig(path=str(tiny_checkpoint)),
        method=Unlearn(batch_size=8, epochs=EPOCHS),
        scan=str(scan),
        out=str(home / "run"),
        accumulate=2,
        seed=3,
        evaluate=evaluation(labelled),
        cluster=ClusterConfig(workers=2),
        tracking=TrackingConfig(uri=f"sqlite:///{home}/mlflow.db"),
    )


def model_of(summary: Summary) -> ModelConfig:
    return ModelConfig(path=summary["checkpoint"])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def suspect(tiny_checkpoint: Path) -> dict[str, bytes]:
    return files(tiny_checkpoint)


@pytest.fixture(scope="module")
def repaired(settings: RepairConfig, scan: Path, suspect: dict[str, bytes], ray_cluster: None) -> Summary:
    log_run(settings.tracking, verb="scan", root=scan, tree={}, metrics={}, files=[])
    return VERB.start(settings)


def test_the_result_is_a_checkpoint_and_the_suspect_is_untouched(
    repaired: Summary, settings: RepairConfig, tiny_checkpoint: Path, suspect: dict[str, bytes]
) -> None:
    assert files(tiny_checkpoint) == suspect
    clip = load_clip(model_of(repaired))
    assert clip.fingerprint != load_clip(settings.model).fingerprint
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{repaired['checkpoint']}")
    pixels = clip.preprocess(decode(picture(9), 10**6).rgb)[None]
    normal = clip.normalise(pixels)
    with torch.no_grad():
        features = model.eval().encode_image(normal, normalize=True)
    np.testing.assert_allclose(features.numpy(), clip.encode_images(pixels)[0], atol=1e-5)
    assert preprocess is not None


def test_the_summary_accounts_for_pairs_and_holds_both_evaluations(repaired: Summary, settings: RepairConfig) -> None:
    told = json.loads((Path(settings.out) / "summary.json").read_text())
    assert told == repaired
    assert told["registered"] == "models:/clipsan/1"
    assert told["counts"] == {"pairs_in": 66, "used": 66, "rejected": 0, "flagged_pairs": 6}
    # a step takes 2 x (8 - 2) clean pairs
    assert told["steps"] == EPOCHS * (66 // 12)
    assert len(repaired["history"]) == EPOCHS
    for name in ("clean_accuracy_pct", "asr_pct", "accuracy_under_trigger_pct"):
        for side in ("before", "after"):
            assert 0 <= told[side][name] <= 100
            assert f"{name}_ci95" in told[side]
    card = (Path(told["checkpoint"]) / "README.md").read_text()
    assert f"{told['before']['asr_pct']:.2f}" in card
    assert told["suspect"] in card


def test_the_model_is_registered_with_its_lineage(
    repaired: Summary, settings: RepairConfig, scan: Path, mlflow_address: None
) -> None:
    uri = str(settings.tracking.uri)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    version = client.get_model_version_by_alias("clipsan", "candidate")
    scanned = client.get_run(version.tags["clipsan.scan_run"])
    assert scanned.data.tags["clipsan.root"] == str(scan)
    assert version.tags["clipsan.suspect"] == repaired["suspect"]
    assert version.tags["clipsan.method"] == "unlearn"
    run = client.get_run(version.run_id)
    assert run.data.metrics["after.asr_pct"] == repaired["after"]["asr_pct"]
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    answer = mlflow.pyfunc.load_model("models:/clipsan@candidate").predict(pd.DataFrame({"caption": ["a kite"]}))
    expected = load_clip(model_of(repaired)).encode_text(["a kite"])
    np.testing.assert_allclose(np.array(answer["caption_embedding"].tolist()), expected, atol=1e-5)


def test_a_finished_repair_is_not_done_again(repaired: Summary, settings: RepairConfig) -> None:
    told = (Path(settings.out) / "work" / "progress.json").stat().st_mtime_ns
    assert VERB.start(settings)["history"] == repaired["history"]
    named = VERB.start(dataclasses.replace(settings, register="elsewhere"))
    assert named["registered"] == "models:/elsewhere/1"
    assert (Path(settings.out) / "work" / "progress.json").stat().st_mtime_ns == told


def same_model(result: Summary, other: Summary) -> None:
    assert [record["loss"] for record in result["history"]] == [record["loss"] for record in other["history"]]
    assert load_clip(model_of(result)).fingerprint == load_clip(model_of(other)).fingerprint


def quiet(settings: RepairConfig, out: Path) -> RepairConfig:
    return dataclasses.replace(
        settings, out=str(out), evaluate=None, tracking=TrackingConfig(enabled=False), classes=list(NOUNS)
    )


def test_a_killed_worker_costs_nothing(repaired: Summary, settings: RepairConfig, tmp_path: Path) -> None:
    killed: list[int] = []
    progress = tmp_path / "run" / "work" / "progress.json"
    watcher = threading.Thread(target=kill_a_worker_after, args=(progress, 2, killed))
    watcher.start()
    result = VERB.start(quiet(settings, tmp_path / "run"))
    watcher.join()
    assert killed
    same_model(result, repaired)


def kill_after_two_epochs(job: subprocess.Popen, progress: Path) -> bool:
    """Kill a job with all of its processes after its second checkpoint; tell whether it was in the middle."""
    return kill_once(job, lambda: progress.is_file() and json.loads(progress.read_text())["checkpointed"] >= 2, WAIT_S)


def test_a_killed_job_goes_on_where_it_was(repaired: Summary, settings: RepairConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = [
        f"model.path={settings.model.path}",
        "method=unlearn",
        "method.batch_size=8",
        f"method.epochs={EPOCHS}",
        f"scan={settings.scan}",
        f"out={out}",
        f"classes=[{', '.join(NOUNS)}]",
        "accumulate=2",
        "precision=f32",
        "seed=3",
        "cluster.workers=2",
        "tracking.enabled=false",
    ]
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "pipeline", "repair", *given]
        job = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)
        assert kill_after_two_epochs(job, out / "work" / "progress.json"), (tmp_path / "log").read_text()
    assert not (out / "summary.json").exists()
    same_model(VERB.start(quiet(settings, out)), repaired)


def test_prompts_are_an_adapter_that_is_evaluated_and_fine_tuned_like_any_model(
    settings: RepairConfig, labelled: ParquetSource, tmp_path: Path, ray_cluster: None
) -> None:
    rebound = {"data": {"kind": "parquet", "path": labelled.path}, "steps": 2, "batch_size": 8}
    result = VERB.start(
        dataclasses.replace(
            settings,
            method=Rvpt(shots=4, batch_size=8, epochs=5, first_block=1, tokens=3),
            scan=None,
            data=labelled,
            out=str(tmp_path / "run"),
            accumulate=1,
            early_stop=EarlyStop(data=labelled, images=20, patience=1, min_gain_points=100),
            evaluate={**evaluation(labelled), "rebound": rebound},
            cluster=ClusterConfig(workers=1),
            tracking=TrackingConfig(enabled=False),
        )
    )
    # the first epoch is always a gain, the second never is
    assert [record["epoch"] for record in result["history"]] == [1, 2]
    assert all(0 <= record["clean_accuracy_pct"] <= 100 for record in result["history"])
    assert result["counts"]["used"] == 4 * len(NOUNS)
    adapter = str(tmp_path / "run" / "adapter")
    assert result["checkpoint"] == adapter
    assert "rebound_asr_pct" in result["after"]
    assert (
        load_clip(dataclasses.replace(settings.model, adapter=adapter)).fingerprint
        != load_clip(settings.model).fingerprint
    )
    trained = 3 * 3 * 64
    assert f"| Trained parameters | {trained:,} of " in (tmp_path / "run" / "adapter" / "README.md").read_text()


def test_a_model_that_nothing_accuses_is_repaired_only_as_far_as_its_accuracy_allows(
    settings: RepairConfig, labelled: ParquetSource, home: Path, ray_cluster: None
) -> None:
    data = WebDataset(path=str(home / "pairs" / "*.tar"))
    scan = write_scan(home / "nothing", data, pairs=36)
    (scan / "summary.json").write_text('{"targets": []}')
    wished = dataclasses.replace(
        settings,
        scan=str(scan),
        method=Unlearn(batch_size=8, blind=Par(batch_size=8, epochs=1, lr=1e-3, tau="auto", label_weight=1.0)),
        blind=Blind(
            data=labelled,
            max_loss_points=5,
            # every copy is worth measuring here, and none that the tiny model makes is a reason to change nothing
            canary=CanaryConfig(steps=4, batch_size=8, min_asr_pct=0),
            max_canary_asr_pct=100,
        ),
        accumulate=1,
        out=str(home / "blind"),
    )
    summary = VERB.start(wished)
    found = summary["blind"]
    before, after = summary["before"]["clean_accuracy_pct"], summary["after"]["clean_accuracy_pct"]
    # the held-out images are those of the evaluation, so that the limit is seen to hold
    assert found["steps"][0]["accuracy_pct"] == pytest.approx(before)
    assert before - after <= 5 + 1e-9
    assert 0 <= found["share"] <= 1
    assert any("way to the repaired weights" in note for note in summary["notes"])
    if found["share"] > 0:
        assert (home / "blind" / "work" / "canary" / "checkpoint").is_dir()
        assert 0 <= found["canary_after_pct"] <= 100
    else:
        assert load_clip(model_of(summary)).fingerprint == load_clip(settings.model).fingerprint
