"""A version of a registered model as a path: found, read where it lies, and refused in one line."""

from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.tracking.record import Judged, Logged, TrackingConfig
from clipsan.pipeline.tracking.registry import register, tag_version
from clipsan.pipeline.tracking.send import log_run
from clipsan.pipeline.tracking.versions import find_version
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.model.prompts import attach, save_adapter

SETTINGS = TrackingConfig()


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mlflow_address: None) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def registered(home: Path, name: str, artifacts: dict[str, Path]) -> Logged:
    logged = log_run(SETTINGS, verb="repair", root=home / f"repair-{name}", tree={}, metrics={}, files=[])
    assert logged is not None
    assert register(logged, name, artifacts, tags={}, description="") is not None
    return logged


def client_of(logged: Logged) -> MlflowClient:
    return MlflowClient(logged.uri, logged.uri)


def test_by_number_and_by_alias_it_is_the_checkpoint_where_it_lies(tiny_checkpoint: Path, tmp_path: Path) -> None:
    registered(tmp_path, "plain", {"checkpoint": tiny_checkpoint})
    version = find_version(SETTINGS, tmp_path / "audit", "models:/plain/1")
    assert find_version(SETTINGS, tmp_path / "audit", "models:/plain@candidate") == version
    assert (version.name, version.fetched) == ("models:/plain/1", False)
    assert version.home.is_relative_to(tmp_path / "mlartifacts")
    model = version.model(ModelConfig(path="models:/plain/1"))
    assert model.adapter is None
    assert load_clip(model).fingerprint == load_clip(ModelConfig(path=str(tiny_checkpoint))).fingerprint


def test_prompts_come_with_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    clip = load_clip(ModelConfig(path=str(tiny_checkpoint)))
    save_adapter(attach(clip.model, 1, 3, seed=5), clip.fingerprint, tmp_path / "adapter")
    registered(tmp_path, "prompted", {"checkpoint": tiny_checkpoint, "adapter": tmp_path / "adapter"})
    model = find_version(SETTINGS, tmp_path / "audit", "models:/prompted/1").model(
        ModelConfig(path="models:/prompted/1")
    )
    expected = load_clip(ModelConfig(path=str(tiny_checkpoint), adapter=str(tmp_path / "adapter")))
    assert load_clip(model).fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("models:/plain", "a registered model is models:/NAME/VERSION or models:/NAME@ALIAS"),
        ("models:/plain/Production", "a registered model is models:/NAME/VERSION or models:/NAME@ALIAS"),
        ("models:/plain/7", "MLflow at sqlite:///.* does not give it"),
        ("models:/nobody/1", "MLflow at sqlite:///.* does not give it"),
        ("models:/plain@nobody", "MLflow at sqlite:///.* does not give it"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(tiny_checkpoint: Path, tmp_path: Path, named: str, said: str) -> None:
    registered(tmp_path, "plain", {"checkpoint": tiny_checkpoint})
    with pytest.raises(ConfigError, match=said) as caught:
        find_version(SETTINGS, tmp_path / "audit", named)
    assert "\n" not in str(caught.value)


def test_a_version_of_others_is_no_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    registered(tmp_path, "plain", {"checkpoint": tiny_checkpoint})
    described = find_version(SETTINGS, tmp_path / "audit", "models:/plain/1").home / "MLmodel"
    tree = yaml.safe_load(described.read_text())
    tree["flavors"]["python_function"]["artifacts"]["checkpoint"]["path"] = "../../../../elsewhere"
    described.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match="names a folder that is not its own"):
        find_version(SETTINGS, tmp_path / "audit", "models:/plain/1")
    del tree["flavors"]["python_function"]["artifacts"]
    described.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match="holds no checkpoint that clipsan registered"):
        find_version(SETTINGS, tmp_path / "audit", "models:/plain/1")


def test_a_version_is_told_what_was_found_and_one_of_another_registry_is_not(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = registered(tmp_path, "plain", {"checkpoint": tiny_checkpoint})
    version = find_version(SETTINGS, tmp_path / "audit", "models:/plain/1")
    for verdict in ("suspicious", "clean"):
        judged = Judged(version=version.name, source=version.source, tags={"clipsan.audit_verdict": verdict})
        tag_version(logged, judged, {"clipsan.audit_run": "r1"})
        assert client_of(logged).get_model_version("plain", "1").tags == {
            "clipsan.audit_verdict": verdict,
            "clipsan.audit_run": "r1",
        }
    (tmp_path / "other").mkdir()
    other = registered(tmp_path / "other", "plain", {"checkpoint": tiny_checkpoint})
    tag_version(other, judged, {})
    assert client_of(other).get_model_version("plain", "1").tags == {}
    assert "models:/plain/1 is another model there, and is not tagged" in capsys.readouterr().err
    tag_version(Logged("http://127.0.0.1:9", "0"), judged, {})
    assert "tagged no model" in capsys.readouterr().err
