"""Runs whose folder lies on an object store: the bytes of a local run, whatever kills it, and no credentials in any object."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from mlflow import MlflowClient

import clipsan
from clipsan.pipeline.cli import main
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.core.place import AnyPath, ObjectPath, place_of, read_here
from clipsan.pipeline.core.run_folder import read_run_yaml
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.pipeline.tracking.registry import register
from clipsan.pipeline.tracking.send import log_run
from clipsan.stages.model.checkpoints import ModelConfig
from clipsan.stages.model.clip import load_clip
from tests.closed_form import Case
from tests.conftest import write_shards
from tests.integration.conftest import PROOF
from tests.killing import kill_once
from tests.object_store import KEYS, object_store

REPOSITORY = Path(__file__).parents[2]
SHARDS, PAIRS = 3, 20


@pytest.fixture(scope="module")
def query() -> Iterator[str]:
    with object_store("bucket") as query:
        yield query


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("pairs"), shards=SHARDS, pairs=PAIRS)


def store(query: str, name: str) -> ObjectPath:
    place = place_of(f"s3://bucket/{name}?{query}")
    assert isinstance(place, ObjectPath)
    return place


def contents(root: AnyPath, *names: str) -> dict[str, bytes]:
    """Everything below some folders or files of a run."""
    found: dict[str, bytes] = {}
    with read_here(root, list(names)) as here:
        for name in names:
            files = [here / name] if (here / name).is_file() else sorted((here / name).rglob("*"))
            found |= {str(file.relative_to(here)): file.read_bytes() for file in files if file.is_file()}
    return found


PRODUCTS = ("embeddings", "rejected", "scores", "verdicts", "clean", "flagged.npy", "allow.npy", "rejected.npy")


def settings(pairs: Path, model: Path) -> list[str]:
    return [
        "data=webdataset",
        f"data.path={pairs}",
        f"model.path={model}",
        "oracle=null",
        "decision=budget",
        "decision.share=0.1",
        "write=[clean]",
        "cluster.workers=1",
        "tracking.enabled=false",
    ]


def test_a_scan_leaves_the_bytes_of_a_local_one(
    pairs: Path, tiny_checkpoint: Path, query: str, tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = store(query, "scan")
    local = clipsan.scan(*settings(pairs, tiny_checkpoint), out=tmp_path / "scan")
    found = clipsan.scan(*settings(pairs, tiny_checkpoint), out=str(out))
    assert found.folder == out
    assert found.summary["counts"] == local.summary["counts"]
    expected = contents(tmp_path / "scan", *PRODUCTS)
    assert len(expected) == 5 * SHARDS + 3
    assert contents(out, *PRODUCTS) == expected
    assert (out / "report.html").is_file()
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]

    times = {str(path): path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")}
    clipsan.scan(*settings(pairs, tiny_checkpoint), out=str(out))  # a second time: nothing is left to do
    assert {str(path): path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")} == times
    with pytest.raises(ConfigError, match=r"other settings or other input \(differs in decision.share\)"):
        clipsan.scan(*settings(pairs, tiny_checkpoint), "decision.share=0.2", out=str(out))
    again = clipsan.scan(*settings(pairs, tiny_checkpoint), out=tmp_path / "again", embeddings=str(out))
    assert contents(again.folder, "scores", "verdicts", "clean") == contents(out, "scores", "verdicts", "clean")

    capsys.readouterr()
    assert main(["status", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"embed     {SHARDS}/{SHARDS} parts, {SHARDS * PAIRS} rows" in told
    assert "finished in" in told
    verdicts = clipsan.Finished.of(str(out)).table("verdicts")
    assert verdicts.num_rows == SHARDS * PAIRS
    kept = clipsan.select(str(out))
    shards = wds.SimpleShardList(sorted(str(path) for path in pairs.glob("*.tar")))
    seen = [sample["__key__"] for sample in wds.DataPipeline(shards, wds.tarfile_to_samples(), kept)]
    assert len(seen) == len(np.load(tmp_path / "scan" / "allow.npy"))
    for path in out.rglob("*"):
        assert not any(secret.encode() in path.read_bytes() for secret in KEYS.values()), path


def test_the_plan_says_what_cannot_lie_there(
    pairs: Path, tiny_checkpoint: Path, query: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = store(query, "planned")
    words = [*settings(pairs, tiny_checkpoint)[:-1], f"out={out}", "--dry-run"]
    assert main(["scan", *words]) == 0
    assert (
        "tracking   none: MLflow's SQLite file cannot lie on an object store; name a server" in capsys.readouterr().out
    )
    assert main(["scan", *words, "tracking.uri=http://mlflow:5000"]) == 0
    assert "MLflow's SQLite" not in capsys.readouterr().out
    assert not out.exists()
    poison = [
        f"data.path={pairs}",
        "attack=patch",
        "attack.target=kite",
        "attack.rate=null",
        "attack.count=2",
        f"out={out}",
        "--dry-run",
    ]
    assert main(["poison", "data=webdataset", *poison]) == 2
    assert "the run folder of `clipsan poison` lies on a local or shared file system" in capsys.readouterr().err


def test_a_run_is_logged_from_the_store(
    pairs: Path, tiny_checkpoint: Path, query: str, tmp_path: Path, in_process: None, capsys, mlflow_address
) -> None:
    out, uri = store(query, "logged"), f"sqlite:///{tmp_path}/mlflow.db"
    clipsan.scan(*settings(pairs, tiny_checkpoint)[:-1], out=str(out))
    assert "not logged: MLflow's SQLite file cannot lie on an object store" in capsys.readouterr().err
    assert main(["log", str(out), f"tracking.uri={uri}"]) == 0
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("clipsan")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["clipsan.root"] == str(out)
    assert run.info.run_name == "scan-logged"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"report.html", "run.yaml", "summary.json"}
    assert experiment.artifact_location == (tmp_path / "mlartifacts").as_uri()


def test_a_version_whose_files_lie_on_a_server_is_kept_in_the_store(
    pairs: Path, tiny_checkpoint: Path, query: str, tmp_path: Path, in_process: None, mlflow_address, monkeypatch
) -> None:
    out, uri = store(query, "registered"), f"sqlite:///{tmp_path}/mlflow.db"
    endpoint = dict(part.split("=") for part in query.split("&"))["endpoint_override"]
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://{endpoint}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = MlflowClient(tracking_uri=uri)
    client.create_experiment("clipsan", artifact_location="s3://bucket/artifacts")
    tracking = TrackingConfig(uri=uri)
    logged = log_run(tracking, verb="repair", root=tmp_path / "repair", tree={}, metrics={}, files=[])
    assert logged is not None
    version = register(logged, "outside", {"checkpoint": tiny_checkpoint}, tags={}, description="")
    words = [*settings(pairs, Path("models:/outside@candidate"))[:-1], f"tracking.uri={uri}"]
    found = clipsan.scan(*words, out=str(out))
    assert found.summary["models"] == {"model": version}
    read = read_run_yaml(out)["config"]["model"]["path"]
    assert read == str(out / "models" / "model" / "artifacts" / tiny_checkpoint.name)
    plain = load_clip(ModelConfig(path=str(tiny_checkpoint)))
    assert load_clip(ModelConfig(path=read)).fingerprint == plain.fingerprint
    local = clipsan.scan(*settings(pairs, tiny_checkpoint), out=tmp_path / "scan")
    assert contents(out, "scores", "verdicts") == contents(local.folder, "scores", "verdicts")

    times = {str(path): path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")}
    assert clipsan.scan(*words, out=str(out)).summary["models"] == {"model": version}
    assert {str(path): path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")} == times
    kept = {str(path): path.stat().st_mtime_ns for path in (out / "models").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="other settings or other input"):
        clipsan.scan(*words, "decision.share=0.2", out=str(out))
    assert {str(path): path.stat().st_mtime_ns for path in (out / "models").rglob("*") if path.is_file()} == kept


@pytest.mark.slow
def test_a_killed_scan_goes_on_from_the_store(
    tiny_checkpoint: Path, query: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, in_process: None
) -> None:
    many = write_shards(tmp_path_factory.mktemp("many"), shards=24, pairs=10)
    words = [*settings(many, tiny_checkpoint), "embed.batch_size=1"]
    local = clipsan.scan(*words, out=tmp_path / "scan")
    out = store(query, "killed")
    command = [sys.executable, "-m", "pipeline", "scan", *words, f"out={out}"]

    def embedded() -> dict[str, int]:
        return {part.name: part.stat().st_mtime_ns for part in (out / "embeddings").glob("part-*.parquet")}

    log = (tmp_path / "log").open("wb")
    job = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
    assert kill_once(job, lambda: len(embedded()) >= 3, wait_s=400), (tmp_path / "log").read_text()
    before = embedded()
    assert 3 <= len(before) < len(list((tmp_path / "scan" / "embeddings").glob("part-*.parquet")))
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500, check=False)
    assert again.returncode == 0, again.stderr
    after = embedded()
    assert {name: after[name] for name in before} == before
    expected = contents(local.folder, *PRODUCTS)
    assert len(expected) > 24 * 5
    assert contents(out, *PRODUCTS) == expected


PROVEN = (*PRODUCTS, "evidence", "triggers", "repair")


@pytest.mark.slow
def test_a_scan_that_is_killed_while_it_proves_goes_on_from_the_store(
    backdoored: Case, query: str, tmp_path: Path, in_process: None
) -> None:
    words = [
        "data=parquet",
        f"data.path={backdoored.data}/*.parquet",
        "data.key=key",
        "data.label=label",
        f"model.path={backdoored.checkpoint}",
        "oracle=superpixels",
        "decision=threshold",
        "write=[clean]",
        *(f"proof.{name}={getattr(PROOF, name)}" for name in ("budget", "held_out", "groups", "group_size")),
        "cluster.workers=1",
        "tracking.enabled=false",
    ]
    local = clipsan.scan(*words, out=tmp_path / "scan")
    out = store(query, "proven")
    command = [sys.executable, "-m", "pipeline", "scan", *words, f"out={out}"]

    def examined() -> dict[str, int]:
        return {
            str(part): part.stat().st_mtime_ns for part in (out / "work" / "proof" / "oracle-0").glob("part-*.parquet")
        }

    log = (tmp_path / "log").open("wb")
    job = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
    assert kill_once(job, lambda: bool(examined()), wait_s=400), (tmp_path / "log").read_text()
    before = examined()
    assert 0 < len(before) < len(list((tmp_path / "scan" / "work" / "proof" / "oracle-0").glob("part-*.parquet")))
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500, check=False)
    assert again.returncode == 0, again.stderr
    after = examined()
    assert {name: after[name] for name in before} == before
    expected = contents(local.folder, *PROVEN)
    assert [name for name in expected if name.endswith("dossier.json")] == ["triggers/t1/dossier.json"]
    assert {Path(name).parts[0] for name in expected} >= {"evidence", "triggers", "repair", "verdicts"}
    assert contents(out, *PROVEN) == expected


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_keeps_its_checkpoints_there(pairs: Path, tiny_checkpoint: Path, query: str) -> None:
    out = store(query, "train")
    words = [
        "data=webdataset",
        f"data.path={pairs}",
        "model.config=null",
        f"model.path={tiny_checkpoint}",
        f"out={out}",
    ]
    words += ["batch_size=10", "epochs=2", "lr=1e-3", "cluster.workers=1", "tracking.enabled=false"]

    def train() -> dict[str, Any]:
        # a process of its own: its Ray has the credentials of this environment
        command = [sys.executable, "-m", "pipeline", "train", *words]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
        return summary

    trained = train()
    assert trained["checkpoint"] == str(out / "checkpoint")
    assert len(trained["history"]) == 2
    assert list((out / "work").rglob("state.pt"))
    clip = load_clip(ModelConfig(path=trained["checkpoint"]))
    before = load_clip(ModelConfig(path=str(tiny_checkpoint)))
    assert clip.fingerprint != before.fingerprint
    put = (out / "checkpoint" / "open_clip_model.safetensors").stat().st_mtime_ns
    assert train() == trained
    assert (out / "checkpoint" / "open_clip_model.safetensors").stat().st_mtime_ns == put
