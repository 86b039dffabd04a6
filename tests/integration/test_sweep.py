"""`clipsan sweep` on a real local Ray: what it recommends, that a kill costs nothing, and that it never knows the attack."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.commit import write_part
from clipsan.pipeline.core.config import as_tree
from clipsan.pipeline.evaluate.settings import EvaluationAttack
from clipsan.pipeline.sweep import verb as sweep
from clipsan.pipeline.sweep.settings import GridSearch, HalvingConfig, HeldOutConfig, SweepConfig, TruthConfig
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.stages.attack.triggers import PatchConfig
from clipsan.stages.dossier.dossier import Rate
from clipsan.stages.dossier.match import Cutout
from clipsan.stages.dossier.patch import Alike, Patch, Place
from clipsan.stages.evaluation.exam import objective_pct
from clipsan.stages.model.checkpoints import ModelConfig
from clipsan.stages.model.clip import load_clip
from clipsan.stages.scenes.scene import CONCEPTS, SceneConfig, render
from clipsan.stages.search.space import Choice
from clipsan.stages.sources import ParquetSource, list_units, read_unit
from tests.closed_form import SIDE, TARGET, Case, checker, make_case, write
from tests.killing import kill_once

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
SCENES, POISONED, HELD_OUT = 480, 20, 120
STEPS = 8
DIVERGES = 1e30
RATES = (1e-3, 1e-2, DIVERGES, 3e-4)
TRUE_ATTACK = EvaluationAttack(trigger=PatchConfig(size_px=SIDE), target=TARGET)
WAIT_S = 300


def source(folder: Path) -> ParquetSource:
    return ParquetSource(path=str(folder / "*.parquet"), label="label", key="key")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("backdoored"), scenes=SCENES, poisoned=POISONED)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> ParquetSource:
    rendered = [render(i, SceneConfig(count=HELD_OUT, seed=5)) for i in range(HELD_OUT)]
    folder = tmp_path_factory.mktemp("held") / "out"
    write(folder, rendered, [scene.rgb for scene in rendered], [scene.caption for scene in rendered])
    return source(folder)


@pytest.fixture(scope="module")
def scan(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a scan leaves that has found every poisoned pair and proven the patch."""
    root = tmp_path_factory.mktemp("scanned") / "run"
    data = source(case.data)
    root.mkdir()
    record = {"verb": "scan", "fingerprint": "f" * 64, "passes": {}, "config": {"data": as_tree(data)}}
    (root / "run.yaml").write_text(yaml.safe_dump(record))
    (root / "summary.json").write_text(json.dumps({"targets": [TARGET]}))
    for unit in list_units(data):
        rows = []
        for pair in read_unit(data, unit):
            bad = pair.key in case.poisoned
            rows.append(
                {
                    "uid": pair.uid,
                    "caption": pair.caption,
                    "verdict": "poisoned" if bad else "clean",
                    "reasons": ["proven_trigger"] if bad else [],
                    "concept": CONCEPTS[pair.label or 0],
                    "target": TARGET if bad else None,
                }
            )
        write_part(root / "verdicts", unit.index, pa.Table.from_pylist(rows), "mark")
    patch_dossier().save(root / "triggers" / "t1")
    return root


def patch_dossier() -> Patch:
    rate = Rate(pct=99.0, low_pct=98.0, high_pct=100.0, trials=100)
    corner = float(64 - SIDE)
    place = Place(fixed=True, top=corner, left=corner, top_std=0.0, left_std=0.0, mode_share=1.0)
    cutout = Cutout(picture=checker(), mask=np.ones((SIDE, SIDE), bool), top=64 - SIDE, left=64 - SIDE)
    return Patch(
        id="t1",
        targets=(TARGET,),
        side=64,
        flips=rate,
        control=dataclasses.replace(rate, pct=0.0, low_pct=0.0, high_pct=1.0),
        uids=("a",),
        cutouts=(cutout,),
        place=place,
        heat=np.zeros((64, 64), np.float32),
        alike=Alike(mean=checker(), likeness=1.0),
    )


@pytest.fixture(scope="module")
def settings(case: Case, scan: Path, held_out: ParquetSource, tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    home = tmp_path_factory.mktemp("sweeps")
    method = {"kind": "unlearn", "batch_size": 16, "schedule": {"kind": "cosine", "warmup_steps": 1}}
    return SweepConfig(
        repair={
            "model": {"path": str(case.checkpoint)},
            "method": method,
            "scan": str(scan),
            "steps": STEPS,
            "classes": list(CONCEPTS),
        },
        space={"method.lr": Choice(kind="grid", values=RATES)},
        search=GridSearch(),
        halving=HalvingConfig(reduction=2, rungs=2, first_share=0.5),
        held_out=HeldOutConfig(data=held_out),
        templates=("a {}.",),
        max_accuracy_loss_points=100.0,
        resistivity_images=16,
        truth=TruthConfig(attack=TRUE_ATTACK),
        concurrent=1,
        out=str(home / "run"),
        cluster=ClusterConfig(workers=2),
        tracking=TrackingConfig(uri=f"sqlite:///{home}/mlflow.db"),
    )


@pytest.fixture(scope="module")
def swept(settings: SweepConfig, ray_cluster: None) -> dict[str, Any]:
    return sweep.VERB.start(settings)


def test_every_trial_stands_in_the_table_and_the_failed_one_says_why(
    swept: dict[str, Any], settings: SweepConfig
) -> None:
    rows = pq.read_table(Path(settings.out) / "table.parquet").to_pylist()
    assert [row["trial"] for row in rows] == [0, 1, 2, 3]
    # a grid is run in drawn order
    assert sorted(row["method.lr"] for row in rows) == sorted(RATES)
    assert rows == json.loads((Path(settings.out) / "table.json").read_text()) == swept["rows"]
    (failed,) = (row for row in rows if row["method.lr"] == DIVERGES)
    assert failed["state"] == "failed"
    assert failed["failures"] == settings.retries + 1
    assert "diverged" in failed["error"]
    assert swept["counts"]["failed"] == 1
    assert swept["counts"]["finished"] + swept["counts"]["stopped"] == 3
    for row in rows:
        assert row["steps"] == {"finished": STEPS, "stopped": STEPS // 2, "failed": row["steps"]}[row["state"]]


def test_the_rule_and_the_final_figures(swept: dict[str, Any], settings: SweepConfig) -> None:
    best = swept["recommended"]
    finished = [row for row in swept["rows"] if row["state"] == "finished"]
    expected = min(finished, key=lambda row: (row["objective_pct"], -row["accuracy_pct"], row["trial"]))
    assert best["trial"] == expected["trial"]
    assert best["trial"] in swept["front"]
    assert swept["objective"] == "proven"
    assert expected["objective_pct"] == expected["proven_t1_asr_pct"]
    # the closed-form model obeys its patch, and this few steps of unlearning do something about it
    assert swept["before"]["proven_t1_asr_pct"] > 50
    assert best["final_before"]["proven_t1_asr_pct"] > 50
    assert best["final_after"]["proven_t1_asr_pct"] < best["final_before"]["proven_t1_asr_pct"]
    assert best["final_after"]["true_asr_pct"] == pytest.approx(best["final_after"]["proven_t1_asr_pct"], abs=5)
    assert swept["counts"]["held_out"] + swept["counts"]["final"] == HELD_OUT
    repaired = load_clip(ModelConfig(path=swept["checkpoint"]))
    assert repaired.fingerprint != swept["suspect"]
    page = Path(swept["report"]).read_text()
    assert "diverged" in page
    assert "<svg" in page


def test_the_sweep_is_one_run_with_a_child_a_trial_and_a_registered_version(
    swept: dict[str, Any], settings: SweepConfig
) -> None:
    client = MlflowClient(tracking_uri=settings.tracking.uri, registry_uri=settings.tracking.uri)
    number = swept["registered"].rpartition("/")[2]
    version = client.get_model_version("clipsan", number)
    assert version.tags["clipsan.trial"] == str(swept["recommended"]["trial"])
    assert version.tags["clipsan.suspect"] == swept["suspect"]
    parent = client.get_run(version.run_id)
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{version.run_id}'", max_results=100
    )
    assert len(children) == len(RATES)
    assert {child.data.params["settings.method.lr"] for child in children} == {str(rate) for rate in RATES}
    assert "front.svg" in {file.path for file in client.list_artifacts(version.run_id)}


def kill_in_the_middle(job: subprocess.Popen, trials: Path) -> bool:
    """Kill a job with all of its processes once its third trial has begun to be measured."""
    return kill_once(job, (trials / "0002" / "history.json").is_file, WAIT_S)


def test_a_killed_sweep_goes_on_and_one_that_knows_no_truth_decides_the_same(
    swept: dict[str, Any], settings: SweepConfig, tmp_path: Path
) -> None:
    blind = dataclasses.replace(settings, truth=None, out=str(tmp_path / "run"), tracking=TrackingConfig(enabled=False))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(as_tree(blind)))
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "pipeline", "sweep", str(tmp_path / "sweep.yaml")]
        job = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)
        assert kill_in_the_middle(job, tmp_path / "run" / "trials"), (tmp_path / "log").read_text()
    assert not (tmp_path / "run" / "summary.json").exists()
    kept = (tmp_path / "run" / "trials" / "0001" / "history.json").stat().st_mtime_ns
    found = sweep.VERB.start(blind)
    assert (tmp_path / "run" / "trials" / "0001" / "history.json").stat().st_mtime_ns == kept
    assert decisions(found) == decisions(swept)
    assert all("true_asr_pct" not in row for row in found["rows"])
    assert load_clip(ModelConfig(path=found["checkpoint"])).fingerprint == fingerprint(swept)


def test_trials_of_two_workers_are_runs_of_ray_train_and_come_to_the_same(
    swept: dict[str, Any], settings: SweepConfig, tmp_path: Path
) -> None:
    space = {"method.lr": Choice(kind="grid", values=(1e-2, DIVERGES))}
    out, tracking = str(tmp_path / "run"), TrackingConfig(enabled=False)
    changed = {"workers_per_trial": 2, "space": space, "retries": 0, "out": out, "tracking": tracking}
    shared = sweep.VERB.start(dataclasses.replace(settings, **changed))
    states = {row["method.lr"]: (row["state"], row["failures"], row["error"]) for row in shared["rows"]}
    assert states[1e-2] == ("finished", 0, None)
    assert states[DIVERGES][:2] == ("failed", 1)
    assert "diverged" in states[DIVERGES][2]
    assert not list(Path(out).glob("trials/*/train"))
    alone, together = (measurements(Path(where), 1e-2) for where in (settings.out, out))
    assert [record["step"] for record in together] == [STEPS // 2, STEPS]
    for one, two in zip(alone, together, strict=False):  # the other may have been stopped
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["accuracy_pct"] == pytest.approx(one["accuracy_pct"], abs=2)
        assert two["proven_t1_asr_pct"] == pytest.approx(one["proven_t1_asr_pct"], abs=2)


def measurements(run: Path, rate: float) -> list[dict[str, Any]]:
    """Return the records of the trial with a learning rate."""
    homes = [path.parent for path in run.glob("trials/*/trial.json") if str(rate) in path.read_text()]
    (home,) = homes
    return json.loads((home / "history.json").read_text())["records"]


def fingerprint(summary: dict[str, Any]) -> str:
    return load_clip(ModelConfig(path=summary["checkpoint"])).fingerprint


def decisions(summary: dict[str, Any]) -> tuple[Any, ...]:
    """All that a sweep decides and measures but the truth and the clock."""
    out = ("seconds", "true_asr_pct", "failures")
    rows = [{name: value for name, value in row.items() if name not in out} for row in summary["rows"]]
    return rows, summary["front"], summary["recommended"]["trial"]


def test_the_objective_reads_no_figure_of_the_truth() -> None:
    figures = {"accuracy_pct": 50.0, "proven_t1_asr_pct": 10.0, "proven_t2_asr_pct": 30.0, "resistivity": 0.9}
    assert objective_pct(figures, "proven") == 20.0
    assert objective_pct({**figures, "true_asr_pct": 99.0}, "proven") == 20.0
