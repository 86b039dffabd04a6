"""A version of MLflow's registry is a model of every verb: the same input as its folder, named by the run, refused in one line."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient

import clipsan
from clipsan.pipeline.cli import main
from clipsan.pipeline.repair import verb as repair
from clipsan.pipeline.story import verb as story
from clipsan.pipeline.tracking import versions
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.pipeline.tracking.registry import register
from clipsan.pipeline.tracking.send import log_run
from clipsan.stages.audit.forms import as_dossier
from clipsan.stages.dossier.files import write_dossiers
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.repair.finetune import FineTune
from clipsan.stages.sources import WebDataset
from tests.conftest import NOUNS, picture, write_shards

NAMED = "models:/outside@candidate"
VERSION = "models:/outside/1"
LABELLED = "labelled-parquet"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A folder with pairs, labelled images, and a registry that has the tiny model."""
    home = tmp_path_factory.mktemp("registered")
    write_shards(home / "pairs", shards=1, pairs=30)
    rows = {"image": [picture(i) for i in range(20)], "label": [i % len(NOUNS) for i in range(20)]}
    pq.write_table(pa.table(rows), home / "val.parquet")
    logged = log_run(TrackingConfig(), verb="repair", root=home / "repair-0", tree={}, metrics={}, files=[])
    assert logged is not None
    assert register(logged, "outside", {"checkpoint": tiny_checkpoint}, tags={}, description="") == VERSION
    return home


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch, mlflow_address: None, in_process: None) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(home)


def run_of(home: Path, verb: str) -> Any:
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("clipsan")
    (found,) = client.search_runs([experiment.experiment_id], f"tags.`clipsan.verb` = '{verb}'")
    return found


def test_a_scan_of_a_version_is_a_scan_of_its_folder(home: Path, tiny_checkpoint: Path) -> None:
    words = ("decision=budget", "oracle=null", "data=webdataset", "data.path=pairs", "cluster.workers=1", "out=scan")
    found = clipsan.scan(*words, f"model.path={NAMED}")
    assert found.summary["models"] == {"model": VERSION}
    assert run_of(home, "scan").data.tags["clipsan.version"] == VERSION
    read = yaml.safe_load((home / "scan" / "run.yaml").read_text())["config"]["model"]["path"]
    assert Path(read).is_relative_to(home / "mlartifacts")
    again = clipsan.scan(*words, f"model.path={tiny_checkpoint}")  # the same run, not another input
    assert again.summary["fingerprint"] == found.summary["fingerprint"]
    assert "models" not in again.summary


def test_an_evaluation_keeps_what_had_to_be_fetched(
    home: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "evaluate",
        "data={kind: parquet, path: val.parquet, caption: null, label: label}",
        f"classes=[{', '.join(NOUNS)}]",
        "out=evaluate",
    ]
    words += ["cluster.workers=1", f"model.path={NAMED}"]
    assert main([*words, "--dry-run"]) == 0
    assert f"registry   {VERSION} is model\n" in capsys.readouterr().out
    assert not (home / "evaluate").exists()
    lies = versions._files

    def fetch(*given: Any) -> tuple[Path, bool]:
        return Path(shutil.copytree(lies(*given)[0], tmp_path / "fetched", dirs_exist_ok=True)), True

    monkeypatch.setattr(versions, "_files", fetch)
    assert main(words) == 0
    read = yaml.safe_load((home / "evaluate" / "run.yaml").read_text())["config"]["model"]["path"]
    assert Path(read).is_relative_to(home / "evaluate" / "models" / "model")
    plain = load_clip(ModelConfig(path=str(tiny_checkpoint)))
    assert load_clip(ModelConfig(path=read)).fingerprint == plain.fingerprint
    assert run_of(home, "evaluate").data.tags["clipsan.version"] == VERSION
    assert main([*words[:-1], f"model.path={read}"]) == 0


def test_a_repair_of_a_version_is_a_repair_of_its_folder(home: Path, tiny_checkpoint: Path) -> None:
    settings = repair.RepairConfig(
        data=WebDataset(path="pairs"),
        model=ModelConfig(path=VERSION),
        method=FineTune(batch_size=8),
        out="repair",
        cluster=clipsan.ClusterConfig(workers=2),
    )
    named = repair.VERB.check(settings)
    plain = repair.VERB.check(replace(settings, model=ModelConfig(path=str(tiny_checkpoint))))
    assert named.versions["model"].name == VERSION
    assert plain.versions == {}
    assert named.plan.fingerprint == plain.plan.fingerprint
    # one that was fetched into the run folder is no checkpoint that the repair could write over
    kept = shutil.copytree(tiny_checkpoint, home / "repair" / "models" / "model")
    assert repair.VERB.check(replace(settings, model=ModelConfig(path=str(kept)))).plan.fingerprint


def test_the_steps_of_a_run_say_the_version_as_it_does(home: Path) -> None:
    settings = story.RunConfig(
        data=WebDataset(path="pairs"),
        model=ModelConfig(path=NAMED),
        scan={"decision": {"kind": "budget"}},
        repair={"method": {"kind": "finetune"}},
        max_asr_pct=None,
        out="run",
        cluster=clipsan.ClusterConfig(workers=1),
        tracking=TrackingConfig(experiment="story"),
    )
    summary = story.VERB.start(settings)
    assert summary["models"] == {"model": VERSION}
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("story")
    runs = client.search_runs([experiment.experiment_id])
    said = {run.data.tags["clipsan.verb"]: run.data.tags.get("clipsan.version") for run in runs}
    assert said == {"run": VERSION, "scan": VERSION}


def test_a_guard_watches_over_a_version(home: Path, tiny_checkpoint: Path) -> None:
    corner = np.zeros((32, 32, 4), np.float32)
    corner[:8, :8] = 1.0
    write_dossiers(home / "audit" / "triggers", [replace(as_dossier("patch", corner, "kite"), id="t1")])
    rng = np.random.default_rng(0)
    clean = list(rng.integers(0, 230, (60, 32, 32, 3), dtype=np.uint8))
    plain = clipsan.guard(tiny_checkpoint, home / "audit", clean, false_alarms=0.1)
    for dossier in ("audit", "audit/triggers/t1"):
        watching = clipsan.guard(VERSION, dossier, clean, false_alarms=0.1)
        np.testing.assert_array_equal(watching.thresholds, plain.thresholds)
    with pytest.raises(
        clipsan.ConfigError, match=r"guard: .*path=models:/outside/7: MLflow at sqlite:.* does not give it"
    ):
        clipsan.guard("models:/outside/7", "audit", clean)


SCAN = ["scan", "data=webdataset", "data.path=pairs"]
REFUSED = [
    ([*SCAN, "model.path=models:/nobody/1"], "model.path=models:/nobody/1: MLflow at sqlite:.* does not give it"),
    ([*SCAN, "model.path=models:/outside/7"], "model.path=models:/outside/7: MLflow at sqlite:.* does not give it"),
    ([*SCAN, "model.path=models:/outside"], "model.path=models:/outside: a registered model is models:/NAME/VERSION or"),
    (
        [*SCAN, f"model.path={VERSION}", "tracking.uri=sqlite:///elsewhere.db"],
        f"model.path={VERSION}: there is no registry at sqlite:///elsewhere.db; set tracking.uri or MLFLOW_TRACKING_URI",
    ),
    (
        [*SCAN, f"model.path={VERSION}", "tracking.uri=http://127.0.0.1:9"],
        f"model.path={VERSION}: MLflow at http://127.0.0.1:9 does not give it",
    ),
    (
        [*SCAN, f"model.path={VERSION}", "proof.labeller.path=models:/nobody/1"],
        "proof.labeller.path=models:/nobody/1: MLflow",
    ),
    (["train", *SCAN[1:], "model.config=null", "model.path=models:/nobody/1"], "model.path=models:/nobody/1: MLflow"),
    (
        ["trigger", *SCAN[1:], "target=kite", "model.path=models:/nobody/1"],
        "model.path=models:/nobody/1: MLflow",
    ),
    (
        ["run", *SCAN[1:], "model.path=models:/nobody/1", f"evaluate.data={LABELLED}", "evaluate.data.path=val.parquet",
         "evaluate.classes=[kite, ball]"],
        "model.path=models:/nobody/1: MLflow",
    ),
    (
        ["sweep", "repair.model.path=models:/nobody/1", "repair.scan=scan", f"held_out.data={LABELLED}",
         "held_out.data.path=val.parquet"],
        "repair.model.path=models:/nobody/1: MLflow",
    ),
    (
        ["bench", *SCAN[1:], "target=kite", f"evaluate.data={LABELLED}", "evaluate.data.path=val.parquet",
         "evaluate.classes=[kite, ball]", "train.model={path: models:/nobody/1}"],
        "train.model.path=models:/nobody/1: MLflow",
    ),
    (
        ["audit", f"model.path={VERSION}", "reference={path: models:/nobody/1}"],
        "reference.path=models:/nobody/1: MLflow",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[f"{words[0]}-{i}" for i, (words, _) in enumerate(REFUSED)])
def test_what_is_not_there_is_refused_before_anything_starts(
    words: list[str], said: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "out=refused"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"clipsan {words[0]}: ")
    assert re.search(said, line), line
    assert not (home / "refused").exists()
    assert not (home / "elsewhere.db").exists()
