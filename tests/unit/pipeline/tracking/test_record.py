"""One run folder is one MLflow run: found again, completed, put below its parent, from the files alone."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from sqlalchemy.exc import OperationalError

from clipsan.pipeline.cli import main
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.core.run_folder import RunFolder, open_run, write_summary
from clipsan.pipeline.tracking.log import settings_of
from clipsan.pipeline.tracking.record import DataInput, Logged, ModelRecord, TrackingConfig, read_record
from clipsan.pipeline.tracking.send import below, log_folder, log_run, registered

AWAY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, mlflow_address: None) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def finished(root: Path, verb: str = "scan", **config: Any) -> RunFolder:
    folder = open_run(str(root), verb=verb, tree={"k": 16, **config}, fingerprint="f" * 64)
    write_summary(folder, {"seconds": 2.0, "counts": {"pairs_in": 7}})
    return folder


def log(folder: RunFolder, uri: str, verb: str = "scan", **changes: Any) -> str | None:
    given: dict[str, Any] = {
        "tree": {"k": 16},
        "metrics": {"counts.pairs_in": 7.0},
        "files": [folder.run_yaml, folder.summary],
        "inputs": [DataInput(name="a/b.tar", digest="d" * 32, kind="webdataset", path="/a/b.tar", context="scan")],
    }
    return log_run(TrackingConfig(uri=uri), verb=verb, root=folder.root, **(given | changes))


def store(tmp_path: Path, name: str = "mlflow.db") -> str:
    return f"sqlite:///{tmp_path / name}"


def runs(uri: str) -> list[Run]:
    client = MlflowClient(uri)
    return list(client.search_runs([client.get_experiment_by_name("clipsan").experiment_id]))


def test_a_folder_logged_twice_is_one_run(tmp_path: Path) -> None:
    folder = finished(tmp_path / "photos")
    first = log(folder, store(tmp_path))
    assert log(folder, store(tmp_path)) == first
    assert log(folder, store(tmp_path), metrics={"counts.pairs_in": 9.0}) == first
    (run,) = runs(store(tmp_path))
    assert (run.info.run_name, run.info.status) == ("scan-photos", "FINISHED")
    assert run.data.metrics == {"counts.pairs_in": 9.0}
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest, given.dataset.source_type) == ("a/b.tar", "d" * 32, "webdataset")
    assert json.loads(given.dataset.source) == {"kind": "webdataset", "path": "/a/b.tar"}
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "scan")]


def test_another_folder_or_verb_is_another_run(tmp_path: Path) -> None:
    log(finished(tmp_path / "scan"), store(tmp_path))
    log(finished(tmp_path / "it's"), store(tmp_path))
    log(finished(tmp_path / "it's"), store(tmp_path))
    assert sorted(run.info.run_name for run in runs(store(tmp_path))) == ["scan", "scan-it's"]


def test_what_a_server_missed_is_logged_later_from_the_folder(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "story"
    whole = finished(root, "run", tracking={"uri": AWAY})
    scan, repair = finished(root / "scan"), finished(root / "repair", "repair")
    shutil.copytree(tiny_checkpoint, root / "repair" / "checkpoint")
    (root / "repair" / "checkpoint" / "README.md").write_text("# card")
    model = ModelRecord(
        name="clipsan",
        artifacts={"checkpoint": "checkpoint"},
        card="checkpoint/README.md",
        tags={"clipsan.method": "par"},
    )
    with below(TrackingConfig(uri=AWAY), verb="run", root=root, tree={"k": 16}) as steps:
        assert steps.parent is None
        assert log(scan, AWAY) is None
        tags = {"clipsan.scan_root": str(scan.root)}
        assert log(repair, AWAY, verb="repair", model=model, tags=tags) is None
    assert log(whole, AWAY, verb="run") is None
    said = capsys.readouterr().err
    assert f"the run folder {root} keeps it" in said
    assert f"`clipsan log {root}` logs it later" in said

    moved = tmp_path / "elsewhere" / "story"
    moved.parent.mkdir()
    shutil.move(root, moved)
    uri = store(tmp_path)
    for _ in range(2):
        assert main(["log", str(moved), f"tracking.uri={uri}"]) == 0
        found = {run.info.run_name: run for run in runs(uri)}
        assert set(found) == {"run-story", "scan", "repair"}
        top = found["run-story"].info.run_id
        assert {name: run.data.tags.get("mlflow.parentRunId") for name, run in found.items()} == {
            "run-story": None,
            "scan": top,
            "repair": top,
        }
        assert found["repair"].data.tags["clipsan.scan_run"] == found["scan"].info.run_id
        (version,) = MlflowClient(uri, uri).search_model_versions("name = 'clipsan'")
        assert version.tags["clipsan.method"] == "par"
        assert version.tags["clipsan.scan_run"] == found["scan"].info.run_id
        assert registered(Logged(uri, version.run_id)) == "models:/clipsan/1"
    assert "models:/clipsan/1" in capsys.readouterr().out


def test_the_parent_is_there_while_its_steps_run_and_says_how_it_ended(tmp_path: Path) -> None:
    uri = store(tmp_path)
    root = tmp_path / "story"
    whole = finished(root, "run")

    def failing() -> None:
        with below(TrackingConfig(uri=uri), verb="run", root=root, tree={"k": 16}) as steps:
            (run,) = runs(uri)
            assert (run.info.status, steps.parent) == ("RUNNING", run.info.run_id)
            log_run(steps, verb="scan", root=finished(root / "scan").root, tree={}, metrics={}, files=[])
            raise RuntimeError("worker lost")

    with pytest.raises(RuntimeError):
        failing()
    assert {run.info.run_name: run.info.status for run in runs(uri)} == {"run-story": "FAILED", "scan": "FINISHED"}
    with below(TrackingConfig(uri=uri), verb="run", root=root, tree={"k": 16}) as steps:
        assert {run.info.run_id for run in runs(uri)} >= {steps.parent}
    log(whole, uri, verb="run")
    assert {run.info.run_name: run.info.status for run in runs(uri)} == {"run-story": "FINISHED", "scan": "FINISHED"}


def test_a_run_that_logged_nothing_is_logged_from_its_summary(tmp_path: Path) -> None:
    folder = finished(tmp_path / "scan", tracking={"enabled": False})
    assert log_run(TrackingConfig(enabled=False), verb="scan", root=folder.root, tree={}, metrics={}, files=[]) is None
    assert not (folder.root / "tracking.json").exists()
    (_, where), *rest = log_folder(TrackingConfig(uri=store(tmp_path)), folder.root)
    assert where is not None
    assert not rest
    (run,) = runs(store(tmp_path))
    assert run.data.params["k"] == "16"
    assert run.data.metrics == {"seconds": 2.0, "counts.pairs_in": 7.0}


def test_long_lists_are_logged_whole(tmp_path: Path) -> None:
    folder = finished(tmp_path / "scan")
    tree = {f"p{i}": "x" * 7000 if i == 0 else i for i in range(230)}
    log(folder, store(tmp_path), tree=tree, metrics={f"m{i}": float(i) for i in range(1100)})
    (run,) = runs(store(tmp_path))
    assert (len(run.data.params), len(run.data.metrics), len(run.data.params["p0"])) == (230, 1100, 6000)


def test_only_finished_runs_and_tracking_settings_are_taken(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run\.yaml"):
        settings_of(tmp_path, [])
    folder = open_run(str(tmp_path / "scan"), verb="scan", tree={}, fingerprint="f")
    with pytest.raises(ConfigError, match="no finished run"):
        read_record(folder.root)
    with pytest.raises(ConfigError, match="only tracking"):
        settings_of(folder.root, ["seed=3"])
    assert settings_of(folder.root, ["tracking.experiment=other"]).experiment == "other"
    assert main(["log", str(tmp_path)]) == 2


@pytest.mark.parametrize("name", ["a%41b", "what?", "a#b", "a b+c"])
def test_a_store_beside_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    where = log_run(
        TrackingConfig(), verb="scan", root=finished(tmp_path / name / "run").root, tree={}, metrics={}, files=[]
    )
    assert where is not None
    assert (tmp_path / name / "mlflow.db").stat().st_size > 0


def is_locked(db: Path) -> Any:
    held = sqlite3.connect(db, isolation_level=None)
    held.execute("BEGIN EXCLUSIVE")
    return held.close


def is_no_database(db: Path) -> Any:
    kept = db.read_bytes()
    db.write_text("no database, but long enough to be looked at" * 20)
    return lambda: db.write_bytes(kept)


def is_elsewhere(db: Path) -> Any:
    away = db.rename(db.with_name("away"))
    db.mkdir()
    return lambda: (db.rmdir(), away.rename(db))


@pytest.mark.parametrize("fault", [is_locked, is_no_database, is_elsewhere])
def test_a_store_that_takes_no_write_costs_no_result_and_the_folder_is_logged_later(
    tmp_path: Path, fault: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipsan.pipeline.tracking.store.LOCKED_S", 0.1)
    assert log(finished(tmp_path / "first"), store(tmp_path)) is not None
    mend = fault(tmp_path / "mlflow.db")
    with below(TrackingConfig(), verb="run", root=finished(tmp_path / "story", "run").root, tree={}) as steps:
        assert steps.parent is None
        assert log_run(steps, verb="scan", root=finished(tmp_path / "run").root, tree={}, metrics={}, files=[]) is None
    said = capsys.readouterr().err
    assert said.count("took no log") == 2
    assert "logs it later" in said
    mend()
    assert main(["log", str(tmp_path / "run")]) == 0
    assert {run.info.run_name for run in runs(store(tmp_path))} == {"scan-first", "scan-run"}


def test_whatever_a_store_raises_costs_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    monkeypatch.setattr(MlflowClient, "log_batch", full)
    assert log(finished(tmp_path / "scan"), store(tmp_path)) is None


def foreign(tmp_path: Path, **changes: Any) -> Path:
    """A stranger's run folder whose record was changed by hand."""
    folder = finished(tmp_path / "theirs" / "scan")
    log(folder, store(tmp_path, "their.db"))
    path = folder.root / "tracking.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder.root


OUTSIDE_MODEL = {"name": "m", "artifacts": {"checkpoint": "../../secret"}, "card": "run.yaml", "tags": {}}


@pytest.mark.parametrize(
    "changes",
    [
        {"files": ["/etc/passwd"]},
        {"files": ["../../secret/key"]},
        {"files": ["link"]},
        {"model": OUTSIDE_MODEL},
        {"model": {**OUTSIDE_MODEL, "artifacts": {"checkpoint": "inside"}}},
        {"model": {**OUTSIDE_MODEL, "artifacts": {}, "card": "link"}},
    ],
)
def test_no_file_outside_a_run_folder_is_sent(
    tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    root = foreign(tmp_path, **changes)
    (root / "link").symlink_to(tmp_path / "secret" / "key")
    (root / "inside").mkdir()
    (root / "inside" / "weights").symlink_to(tmp_path / "secret" / "key")
    assert main(["log", str(root), f"tracking.uri={store(tmp_path)}"]) == 2
    assert "lies outside the run folder" in capsys.readouterr().err
    assert not (tmp_path / "mlflow.db").exists()


def test_a_disk_that_a_record_names_is_not_walked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[Path] = []

    def walk(path: Path, _: str) -> Iterator[Path]:
        walked.append(path)
        yield from ()

    monkeypatch.setattr(Path, "rglob", walk)
    with pytest.raises(ConfigError, match="/ lies outside the run folder"):
        read_record(foreign(tmp_path, files=["report.html", "/", "run.yaml"]))
    assert [path.name for path in walked] == ["report.html"]


def test_a_folder_behind_a_link_is_not_taken_for_a_step(tmp_path: Path) -> None:
    root = foreign(tmp_path)
    (root / "step").symlink_to(finished(tmp_path / "mine").root)
    log(RunFolder(tmp_path / "mine"), store(tmp_path, "their.db"))
    assert [folder for folder, _ in log_folder(TrackingConfig(uri=store(tmp_path)), root)] == [root]


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"x": "many"}},
        {"files": [3]},
        {"params": []},
        {"model": {"name": "m"}},
        {"verb": None},
    ],
)
def test_a_record_that_clipsan_did_not_write_is_one_line(
    tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["log", str(foreign(tmp_path, **changes)), f"tracking.uri={store(tmp_path)}"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "tracking.json: " in said[-1]
    assert len(said) == 1


def test_files_that_are_nested_too_deep_are_one_line(tmp_path: Path) -> None:
    root = foreign(tmp_path)
    (root / "tracking.json").write_text("[" * 100_000)
    assert main(["log", str(root)]) == 2


def test_a_place_that_only_the_folder_names_is_not_talked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = finished(tmp_path / "scan", tracking={"uri": f"{AWAY}/their\x1b[2J", "experiment": "theirs"}).root
    assert main(["log", str(root)]) == 0
    said = capsys.readouterr().err
    assert f"its settings name {AWAY}/their\\x1b[2J; to send it there, add tracking.uri=" in said
    assert (tmp_path / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(tmp_path, "mine.db"))
    assert main(["log", str(root)]) == 0
    assert (tmp_path / "mine.db").exists()
    assert main(["log", str(root), f"tracking.uri={AWAY}"]) == 1


def test_no_credential_is_recorded_or_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = "http://CANARY:CANARY@127.0.0.1:9"
    tree = {"tracking": {"uri": uri}, "data": {"path": ["s3://CANARY:CAN/ARY@bucket/x?secret_key=CANARY"]}}
    folder = open_run(str(tmp_path / "scan"), verb="scan", tree=tree, fingerprint="f")
    write_summary(folder, {"seconds": 1.0, "counts": {}})
    assert log_run(TrackingConfig(uri=uri), verb="scan", root=folder.root, tree=tree, metrics={}, files=[]) is None
    kept = "".join(path.read_text() for path in folder.root.iterdir())
    assert kept.count("***@127.0.0.1:9") == 2
    assert "CANARY" not in kept + str(Logged(uri, "1")) + "".join(capsys.readouterr())
