"""A real MLflow server on loopback: it goes away in the middle of a story, comes back, and has everything in the end."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient

from clipsan.pipeline.cli import main
from clipsan.pipeline.core.run_folder import RunFolder, open_run, write_summary
from clipsan.pipeline.tracking.record import ModelRecord, TrackingConfig
from clipsan.pipeline.tracking.send import below, log_run
from clipsan.pipeline.tracking.versions import find_version
from clipsan.stages.decode import decode
from clipsan.stages.model.clip import ModelConfig, load_clip
from tests.conftest import picture

pytestmark = pytest.mark.ray
START_S = 120


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return int(some.getsockname()[1])


@contextmanager
def server(home: Path, port: int) -> Iterator[str]:
    """An MLflow server with a store of its own, artifacts through the server."""
    places = ["--backend-store-uri", f"sqlite:///{home}/server.db", "--artifacts-destination", str(home / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", *places, "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("ab") as log:
        job = subprocess.Popen([*command, "--workers", "1"], stdout=log, stderr=log)
        try:
            wait_for(job, f"http://127.0.0.1:{port}/health", home / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            job.terminate()
            job.wait(timeout=30)


def wait_for(job: subprocess.Popen[bytes], address: str, log: Path) -> None:
    stop = time.monotonic() + START_S
    while time.monotonic() < stop and job.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the MLflow server did not start: {log.read_text()[-2000:]}")


def finished(root: Path, verb: str, uri: str) -> RunFolder:
    tree = {"tracking": {"uri": uri}}
    folder = open_run(str(root), verb=verb, tree=tree, fingerprint=verb.ljust(64, "0"))
    write_summary(folder, {"seconds": 1.0, "counts": {"pairs_in": 3}})
    return folder


def test_a_server_that_goes_away_in_the_middle_has_all_of_it_in_the_end(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, mlflow_address: None, in_process: None
) -> None:
    monkeypatch.chdir(tmp_path)
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    settings = TrackingConfig(uri=uri)
    story = finished(tmp_path / "story", "run", uri)
    scan, repair = (finished(story.root / verb, verb, uri) for verb in ("scan", "repair"))
    (repair.root / "card.md").write_text("# card")
    shutil.copytree(tiny_checkpoint, repair.root / "checkpoint")
    model = ModelRecord(name="clipsan", artifacts={"checkpoint": "checkpoint"}, card="card.md", tags={})
    with server(tmp_path, port):
        opened = below(settings, verb="run", root=story.root, tree={})
        steps = opened.__enter__()
        assert log_run(steps, verb="scan", root=scan.root, tree={}, metrics={"x": 1.0}, files=[scan.summary])
    tags = {"clipsan.scan_root": str(scan.root)}
    assert not log_run(steps, verb="repair", root=repair.root, tree={}, metrics={}, files=[], model=model, tags=tags)
    opened.__exit__(None, None, None)
    assert not log_run(settings, verb="run", root=story.root, tree={}, metrics={"y": 2.0}, files=[story.summary])
    assert main(["log", str(story.root), f"tracking.uri={uri}"]) == 1

    with server(tmp_path, port):
        assert main(["log", str(story.root), f"tracking.uri={uri}"]) == 0
        assert main(["log", str(story.root), f"tracking.uri={uri}"]) == 0
        client = MlflowClient(uri, uri)
        experiment = client.get_experiment_by_name("clipsan").experiment_id
        found = {run.info.run_name: run for run in client.search_runs([experiment])}
        assert len(found) == len(client.search_runs([experiment])) == 3
        assert {run.info.status for run in found.values()} == {"FINISHED"}
        for name in ("scan", "repair"):
            assert found[name].data.tags["mlflow.parentRunId"] == found["run-story"].info.run_id
        listed = client.list_artifacts(found["scan"].info.run_id)
        assert [file.path for file in listed] == ["summary.json"]
        version = client.get_model_version_by_alias("clipsan", "candidate")
        assert version.tags["clipsan.scan_run"] == found["scan"].info.run_id
        assert len(client.search_model_versions("name = 'clipsan'")) == 1
        scores_a_batch(uri, tiny_checkpoint)
        fetched = find_version(settings, tmp_path / "audit", "models:/clipsan@candidate")
        assert (fetched.name, fetched.fetched) == ("models:/clipsan/1", True)
        plain = load_clip(ModelConfig(path=str(tiny_checkpoint)))
        assert load_clip(fetched.model(ModelConfig(path=fetched.name))).fingerprint == plain.fingerprint
        measures_a_version(uri, tmp_path / "evaluation", plain.fingerprint)


def measures_a_version(uri: str, home: Path, expected: str) -> None:
    """An evaluation fetches the version into its folder, and says which it was."""
    home.mkdir()
    pd.DataFrame({"image": [picture(i) for i in range(4)], "label": [0, 1, 0, 1]}).to_parquet(home / "val.parquet")
    data = f"data={{kind: parquet, path: {home / 'val.parquet'}, caption: null, label: label}}"
    words = [
        "evaluate",
        data,
        "classes=[ball, kite]",
        "cluster.workers=1",
        f"tracking.uri={uri}",
        f"out={home / 'run'}",
    ]
    assert main([*words, "model.path=models:/clipsan@candidate"]) == 0
    read = yaml.safe_load((home / "run" / "run.yaml").read_text())["config"]["model"]["path"]
    assert Path(read).is_relative_to(home / "run" / "models")
    assert load_clip(ModelConfig(path=read)).fingerprint == expected
    (run,) = MlflowClient(uri, uri).search_runs(["1"], "tags.`clipsan.verb` = 'evaluate'")
    assert run.data.tags["clipsan.version"] == "models:/clipsan/1"


def scores_a_batch(uri: str, checkpoint: Path) -> None:
    """The registered model embeds pictures and captions as the checkpoint does, and no pickle came over the wire."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    local = Path(mlflow.artifacts.download_artifacts("models:/clipsan@candidate"))
    suffixes = {path.suffix for path in local.rglob("*") if path.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".bin", ".pth"}
    frame = pd.DataFrame({"image": [picture(seed) for seed in range(5)], "caption": [f"a {i}" for i in range(5)]})
    answer = mlflow.pyfunc.load_model(str(local)).predict(frame)
    clip = load_clip(ModelConfig(path=str(checkpoint)))
    pixels = torch.stack([clip.preprocess(decode(picture(seed), 10**6).rgb) for seed in range(5)])
    image = clip.encode_images(pixels)[0]
    np.testing.assert_allclose(np.array(answer["image_embedding"].tolist()), image, atol=1e-5)
    text = clip.encode_text(frame["caption"].tolist())
    np.testing.assert_allclose(np.array(answer["caption_embedding"].tolist()), text, atol=1e-5)
