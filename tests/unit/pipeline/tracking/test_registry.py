"""A repaired model in MLflow: registered as plain files, loaded back, and traced to the scan that it builds on."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from clipsan.pipeline.tracking import client
from clipsan.pipeline.tracking.record import Judged, Logged, TrackingConfig
from clipsan.pipeline.tracking.registry import is_champion, register, tag_version, version_of
from clipsan.pipeline.tracking.send import log_run
from clipsan.stages.decode import decode
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.model.prompts import attach, save_adapter
from tests.conftest import picture


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


def logged(home: Path, verb: str, name: str) -> str:
    found = log_run(TrackingConfig(), verb=verb, root=home / name, tree={}, metrics={}, files=[])
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mlflow_address: None) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)  # nothing may be written where the command was started


def test_a_registered_model_comes_back_with_its_lineage(home: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    scan = logged(home, "scan", "scanned")
    repair = logged(home, "repair", "repaired")
    uri, run_id = repair.uri, repair.run_id
    assert version_of(repair) is None
    tags = {"clipsan.scan_run": scan.run_id}
    version = register(repair, "clipsan", {"checkpoint": tiny_checkpoint}, tags=tags, description="# card")
    assert version == version_of(repair) == "models:/clipsan/1"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    found = MlflowClient().get_model_version_by_alias("clipsan", "candidate")
    assert (found.run_id, found.tags, found.description) == (run_id, tags, "# card")
    files = [path.name for path in Path(mlflow.artifacts.download_artifacts(version)).rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".bin"))]

    model = mlflow.pyfunc.load_model("models:/clipsan@candidate")
    frame = pd.DataFrame({"image": [picture(1), picture(2)], "caption": ["a ball", "a kite"]})
    answer = model.predict(frame)
    clip = load_clip(ModelConfig(path=str(tiny_checkpoint)))
    pixels = [clip.preprocess(decode(picture(seed), 10**6).rgb) for seed in (1, 2)]
    image = clip.encode_images(torch.stack(pixels))[0]
    np.testing.assert_allclose(np.array(answer["image_embedding"].tolist()), image, atol=1e-5)
    np.testing.assert_allclose(
        np.array(answer["caption_embedding"].tolist()), clip.encode_text(["a ball", "a kite"]), atol=1e-5
    )
    assert list(model.predict(frame[["caption"]]).columns) == ["caption_embedding"]
    many = model.predict(pd.DataFrame({"caption": ["a kite"] * 69 + ["a ball"]}))["caption_embedding"]
    np.testing.assert_allclose(many[69], answer["caption_embedding"][0], atol=1e-5)
    assert not list(tmp_path.iterdir())


def test_the_aliases_follow_the_versions(home: Path, tiny_checkpoint: Path) -> None:
    for number, (asr, champion) in enumerate([(5.0, "1"), (7.0, "1"), (2.0, "3")], 1):
        repair = logged(home, "repair", f"repaired-{number}")
        register(repair, "aliased", {"checkpoint": tiny_checkpoint}, tags=told(asr, 1.0), description="")
        uri = repair.uri
        aliases = MlflowClient(uri, uri).get_registered_model("aliased").aliases
        assert {name: str(version) for name, version in aliases.items()} == {
            "candidate": str(number),
            "champion": champion,
        }


def test_prompts_travel_with_the_checkpoint_that_they_belong_to(home: Path, tiny_checkpoint: Path) -> None:
    clip = load_clip(ModelConfig(path=str(tiny_checkpoint)))
    base = clip.fingerprint
    save_adapter(attach(clip.model, 1, 3, seed=5), base, home / "adapter")
    repair = logged(home, "repair", "prompted")
    artifacts = {"checkpoint": tiny_checkpoint, "adapter": home / "adapter"}
    version = register(repair, "prompted", artifacts, tags={}, description="")
    uri = repair.uri
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    answer = mlflow.pyfunc.load_model(version).predict(pd.DataFrame({"image": [picture(1)]}))
    pixels = clip.preprocess(decode(picture(1), 10**6).rgb)[None]
    expected = load_clip(ModelConfig(path=str(tiny_checkpoint), adapter=str(home / "adapter"))).encode_images(pixels)[0]
    plain = load_clip(ModelConfig(path=str(tiny_checkpoint))).encode_images(pixels)[0]
    found = np.array(answer["image_embedding"].tolist())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - plain).max() > 1e-3
    assert json.loads((home / "adapter" / "adapter_config.json").read_text())["base"] == base


def test_a_registry_that_is_away_costs_no_result_and_no_wait(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "MlflowClient", None)  # which would try for minutes
    away = Logged(f"sqlite:///{tmp_path}/nowhere/mlflow.db", "0")
    assert register(away, "clipsan", {"checkpoint": tiny_checkpoint}, tags={}, description="") is None
    assert version_of(away) is None
    tag_version(away, Judged(version="models:/clipsan/1", source="", tags={}), {})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all("(unable to open database file)" in line for line in lines)
    assert not (tmp_path / "nowhere").exists()


def test_a_registry_that_does_not_answer_is_not_an_empty_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Logged("http://127.0.0.1:9", "0")  # nothing listens there
    assert register(away, "clipsan", {}, tags={}, description="") is None
    assert version_of(away) is None
    assert [line.partition(" (")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"MLflow at {away.uri} registered no model",
        f"MLflow at {away.uri} does not say which model the run 0 has registered",
    ]


def test_a_run_registers_its_model_once(home: Path, tiny_checkpoint: Path) -> None:
    repair = logged(home, "repair", "once")
    first, again = (
        register(repair, "once", {"checkpoint": tiny_checkpoint}, tags={}, description="") for _ in range(2)
    )
    assert first == again == "models:/once/1"
    other = register(repair, "otherwise", {"checkpoint": tiny_checkpoint}, tags={}, description="")
    assert other == version_of(repair, "otherwise") == "models:/otherwise/1"
    assert version_of(repair, "once") == first


ASKED = {"clipsan.max_asr_pct": "10.0000", "clipsan.max_loss_points": "3.0000"}


def told(
    asr: float,
    lost: float,
    *,
    suspect: str = "s",
    evaluation: str = "e",
    before: float = 95.0,
    asked: dict[str, str] = ASKED,
) -> dict[str, str]:
    return {
        **asked,
        "clipsan.suspect": suspect,
        "clipsan.evaluation": evaluation,
        "clipsan.asr_pct": str(asr),
        "clipsan.asr_before_pct": str(before),
        "clipsan.accuracy_lost_points": str(lost),
    }


@pytest.mark.parametrize(
    ("version", "champion", "moves"),
    [
        (told(5, 1), None, True),
        (told(96, 0), None, False),
        (told(5, 3.1), None, False),
        (told(10.1, 0), None, False),
        (told(60, 0, asked={}), None, True),
        ({"clipsan.suspect": "s"}, None, False),
        (told(4, 3), told(5, 0), True),
        (told(5, 0), told(5, 3), False),
        (told(4, 3.1), told(5, 0), False),
        (told(4, 0, suspect="other"), told(5, 0), False),
        (told(4, 0, evaluation="other"), told(5, 0), False),
        (told(4, 0), {"clipsan.suspect": "s"}, False),
    ],
)
def test_the_champion_is_moved_by_the_rule_alone(
    version: dict[str, str], champion: dict[str, str] | None, moves: bool
) -> None:
    assert is_champion(version, champion) is moves
