"""The demo on a few pairs: every step runs, a rerun skips them all, and CIFAR-10 is read in its own layout."""

import hashlib
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from torchvision.datasets import CIFAR10

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.config import ConfigError, load
from clipsan.pipeline.core.run_folder import RunFolder
from clipsan.pipeline.story.demo import VERB, closing
from clipsan.pipeline.story.demo_data import CifarData, SceneData
from clipsan.pipeline.story.demo_plan import DemoConfig
from clipsan.stages.decode import decode
from clipsan.stages.scenes.scene import SceneConfig, render
from clipsan.stages.sources import list_units, read_unit
from tests.conftest import TINY, add_member

pytestmark = pytest.mark.ray


def test_scenes_are_written_once_with_exact_masks(ray_cluster, tmp_path):
    settings = SceneData(pairs=30, test_pairs=10, side_px=32)
    made = settings.make(RunFolder(tmp_path), ClusterConfig(workers=1))
    pairs = [pair for unit in list_units(made.train) for pair in read_unit(made.train, unit)]
    table = pq.read_table(tmp_path / "data" / "train" / "part-00000.parquet")
    scene = render(7, SceneConfig(count=30, side_px=32))
    assert len(pairs) == 30
    assert (pairs[7].caption, pairs[7].label) == (scene.caption, scene.label)
    np.testing.assert_array_equal(decode(pairs[7].image, 10**6).rgb, scene.rgb)
    np.testing.assert_array_equal(decode(table.column("mask")[7].as_py(), 10**6).rgb[..., 0], scene.masks)
    written = (tmp_path / "data" / "train" / "part-00000.parquet").stat().st_mtime_ns
    settings.make(RunFolder(tmp_path), ClusterConfig(workers=1))
    assert (tmp_path / "data" / "train" / "part-00000.parquet").stat().st_mtime_ns == written


@pytest.mark.slow
def test_the_whole_story_runs_and_a_rerun_repeats_it(ray_cluster, tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    changes = [
        "data.pairs=192",
        "data.test_pairs=48",
        "data.side_px=32",
        "attack.trigger.size_px=8",
        "attack.rate=0.05",
        f"training.model={{config: {tmp_path / 'tiny.json'}}}",
        "training.epochs=1",
        "training.batch_size=32",
        "repair.method.batch_size=32",
        "cluster.workers=1",
        f"out={tmp_path / 'demo'}",
    ]
    settings = load(DemoConfig, None, changes, verb="demo")
    first = VERB.start(settings)
    assert first["poisoned"] == 10
    assert first["counts"]["pairs_in"] == 192
    assert set(first["detection"]) >= {"ensemble", "concept_spectral", "dao", "slof", "clip_score"}
    assert Path(first["report"]).is_file()
    assert "poisoned towards 'star'" in closing(first)
    # one epoch on a handful of pairs plants nothing: the story ends with the scan, and says so
    assert first["outcome"] == "clean"
    assert "repair       none: the scan names no concept" in closing(first)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("clipsan").experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    above = {run.info.run_name: names.get(run.data.tags.get("mlflow.parentRunId", "")) for run in runs}
    steps = ("poison", "train-suspect", "train-twin", "evaluate", "evaluate-twin", "scan-twin", "run-story")
    assert above == {"demo": None, **dict.fromkeys(steps, "demo"), "scan": "run-story"}
    again = VERB.start(settings)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in first.items() if k != "seconds"}


def cifar_archive(root: Path, monkeypatch) -> np.ndarray:
    """Write a CIFAR-10 archive of 100 photos in the original layout, and make torchvision expect its checksums."""
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (120, 3 * 32 * 32), dtype=np.uint8)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    files = {
        name: pickle.dumps({"data": photos[20 * i : 20 * i + 20], "labels": [(20 * i + j) % 10 for j in range(20)]})
        for i, name in enumerate(names)
    }
    words = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    files["batches.meta"] = pickle.dumps({"label_names": words})
    with tarfile.open(root / CIFAR10.filename, "w:gz") as tar:
        for name, content in files.items():
            add_member(tar, f"{CIFAR10.base_folder}/{name}", content)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5((root / CIFAR10.filename).read_bytes()).hexdigest())
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    return photos


def cifar(root: Path) -> CifarData:
    return CifarData(root=str(root), pairs=50, test_pairs=20, templates=["a photo of a {}.", "my {}"])


def test_cifar_is_read_from_its_archive(tmp_path, monkeypatch):
    root = tmp_path / "download"
    root.mkdir()
    photos = cifar_archive(root, monkeypatch)
    made = cifar(root).make(RunFolder(tmp_path), ClusterConfig(workers=1))
    pairs = [pair for unit in list_units(made.train) for pair in read_unit(made.train, unit)]
    assert len(pairs) == 50
    assert [pair.label for pair in pairs] == [i % 10 for i in range(50)]
    np.testing.assert_array_equal(decode(pairs[33].image, 10**6).rgb, photos[33].reshape(3, 32, 32).transpose(1, 2, 0))
    assert all(made.classes[pair.label] in pair.caption for pair in pairs)


def test_no_network_is_said_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(ConfigError, match=r"put cifar-10-python\.tar\.gz into"):
        cifar(tmp_path).make(RunFolder(tmp_path), ClusterConfig(workers=1))
