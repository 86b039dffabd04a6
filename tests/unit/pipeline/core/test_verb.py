"""What every verb checks of its settings."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from clipsan.pipeline.core import verb as verb_module
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.core.run_folder import read_summary
from clipsan.pipeline.core.verb import Job, Result, Summary, Verb, check_apart
from clipsan.pipeline.scan.plan import ScanConfig
from clipsan.pipeline.tracking.record import Logged, ModelRecord, TrackingConfig
from clipsan.stages.model.checkpoints import ModelConfig
from clipsan.stages.sources import ParquetSource, SourceConfig
from clipsan.stages.stage import config
from clipsan.stages.verdicts import ThresholdDecision


@config
class Settings:
    """Of a verb that does nothing."""

    out: str
    register: str | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass(frozen=True)
class Plan:
    """Of any settings."""

    config: Settings
    fingerprint: str = "f" * 64

    def describe(self) -> str:
        return ""


@pytest.mark.parametrize("name", ["data", "trusted"])
def test_a_run_folder_in_the_middle_of_its_data_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()

    def settings(path: str, out: str) -> ScanConfig:
        sources: dict[str, SourceConfig] = {"data": ParquetSource(path="/elsewhere/*.parquet")}
        sources[name] = ParquetSource(path=path)
        decision = ThresholdDecision()
        return ScanConfig(**sources, model=ModelConfig(path="m"), out=out, decision=decision)

    check_apart(settings(f"{tmp_path}/pairs", f"{tmp_path}/run"))
    check_apart(settings(f"{tmp_path}/pairs/*.parquet", f"{tmp_path}/pairs/run"))
    with pytest.raises(ConfigError, match=rf"pairs/run: it lies in {tmp_path}/pairs, .*\({name}\.path\)"):
        check_apart(settings(f"{tmp_path}/pairs", f"{tmp_path}/pairs/run"))


def test_a_finished_run_registers_its_model_where_that_is_asked_for_only_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verb_module, "log_run", lambda tracking, *, model, **_: model and Logged("uri", model.name))
    monkeypatch.setattr(verb_module, "registered", lambda logged, name: f"models:/{logged.run_id}/1")
    work: list[str] = []

    def made(plan: Plan, summary: Summary) -> Result:
        name = plan.config.register
        model = None if name is None else ModelRecord(name=name, artifacts={}, card="", tags={})
        return Result(summary=summary, model=model)

    def run(plan: Plan, job: Job) -> Result:
        work.append("worked")
        return made(plan, {"checkpoint": "model"})

    verb = Verb(
        name="repair",
        config=Settings,
        plan=Plan,
        run=run,
        closing=str,
        cluster=lambda _: None,
        is_whole=lambda *_: True,
        again=lambda plan, _, summary: made(plan, summary),
    )
    out = str(tmp_path / "run")
    assert "registered" not in verb.start(Settings(out=out))
    assert verb.start(Settings(out=out, register="kite"))["registered"] == "models:/kite/1"
    assert read_summary(tmp_path / "run")["registered"] == "models:/kite/1"
    assert verb.start(Settings(out=out, register="ball"))["registered"] == "models:/ball/1"
    assert work == ["worked"]
    assert not capsys.readouterr().err
    kept = replace(verb, again=None).start(Settings(out=out, register="lamp"))
    assert kept["registered"] == "models:/ball/1"
    assert "is finished and taken as it is; no model is registered now as lamp" in capsys.readouterr().err
