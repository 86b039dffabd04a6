"""`clipsan run` on a small backdoored model: found, repaired, told; and on its clean twin, where nothing is done."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.run_folder import read_summary
from clipsan.pipeline.story.settings import RunConfig
from clipsan.pipeline.story.verb import VERB
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.scenes.scene import CONCEPTS
from clipsan.stages.sources import ParquetSource
from tests.closed_form import TARGET, Case, make_case

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def story(case: Case, out: Path, **changes: Any) -> RunConfig:
    images = {"kind": "parquet", "path": str(case.data / "0.parquet"), "label": "label", "key": "key"}
    settings = RunConfig(
        data=ParquetSource(path=str(case.data / "*.parquet"), label="label", key="key"),
        model=ModelConfig(path=str(case.checkpoint)),
        scan={
            "decision": {"kind": "threshold"},
            "oracle": {"kind": "superpixels"},
            "proof": {"budget": 0.1, "held_out": 192, "groups": 2, "group_size": 100},
            "write": ["clean", "quarantine"],
        },
        repair={
            "method": {"kind": "unlearn", "batch_size": 64},
            "steps": 24,
            "templates": ["a {}."],
            "gentle": {"data": images, "max_loss_points": 0, "steps": 4},
        },
        evaluate={"data": images, "classes": list(CONCEPTS), "templates": ["a {}."]},
        max_loss_points=None,
        out=str(out),
        cluster=ClusterConfig(workers=2),
        tracking=TrackingConfig(enabled=False),
    )
    return dataclasses.replace(settings, **changes)


def test_a_backdoor_is_found_repaired_and_told(backdoored: Case, tmp_path: Path, in_process: None) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    settings = story(backdoored, tmp_path / "run", tracking=TrackingConfig(uri=uri))
    assert "which is still to do" in VERB.plan(settings).describe()
    summary = VERB.start(settings)
    assert (summary["outcome"], summary["exit_status"], summary["targets"]) == ("repaired", 0, [TARGET])
    # measured with the trigger that the scan cut out, as the truth is not known to it
    assert summary["after"]["asr_pct"] <= 10 < 50 <= summary["before"]["asr_pct"]
    assert set(summary["copies"]) == {"clean", "quarantine"}
    page = Path(summary["report"]).read_text(encoding="utf-8")
    assert "Backdoor found and repaired" in page
    assert "Before and after" in page
    assert "t1: a patch" in page

    # taken back no further than the triggers stay gone that the scan has proven
    held = read_summary(tmp_path / "run" / "repair")["gentle"]
    figures = {found["share"]: found for found in held["steps"]}
    triggers = [name for name in figures[1.0] if name.endswith("_asr_pct")]
    assert any(name.startswith("proven_pairs_") for name in triggers)
    assert any(name.endswith("_here_asr_pct") for name in triggers)
    assert all(figures[held["share"]][name] <= max(1.0, figures[1.0][name]) for name in triggers)
    assert figures[held["share"]]["accuracy_pct"] >= figures[1.0]["accuracy_pct"]
    # the held-out images are those of the evaluation, so the written model has the accuracy of that share
    assert figures[held["share"]]["accuracy_pct"] == pytest.approx(summary["after"]["clean_accuracy_pct"])

    made = (tmp_path / "run" / "scan" / "report.html").stat().st_mtime_ns
    again = VERB.start(settings)
    assert (tmp_path / "run" / "scan" / "report.html").stat().st_mtime_ns == made
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in summary.items() if k != "seconds"}
    assert "suspect" in VERB.plan(settings).describe()
    # the same run judged by another demand
    stricter = VERB.start(dataclasses.replace(settings, max_loss_points=0.0))
    assert (stricter["outcome"], stricter["exit_status"]) == ("not repaired", 3)

    client = MlflowClient(uri, uri)
    runs = client.search_runs([client.get_experiment_by_name("clipsan").experiment_id])
    found = {run.info.run_name: run for run in runs}
    assert len(runs) == len(found) == 3
    assert {run.info.status for run in runs} == {"FINISHED"}
    for name in ("scan", "repair"):
        assert found[name].data.tags["mlflow.parentRunId"] == found["run"].info.run_id
    contexts = {tag.value for given in found["repair"].inputs.dataset_inputs for tag in given.tags}
    assert contexts == {"training", "evaluation"}
    version = client.get_model_version_by_alias("clipsan", "candidate")
    assert summary["registered"] == f"models:/clipsan/{version.version}"
    assert version.tags["clipsan.scan_run"] == found["scan"].info.run_id
    assert version.tags["clipsan.suspect"] == summary["suspect"]
    # judged by what the repair did not train on: pairs that were kept from it, and the patch at other places
    counted = [judge for judge in summary["unseen"] if judge["counts"]]
    assert "withheld poisoned pairs" in [judge["name"] for judge in counted]
    worst = max(judge["after_pct"] for judge in counted)
    assert worst <= 10
    assert float(version.tags["clipsan.asr_pct"]) == pytest.approx(worst, abs=1e-3)
    assert "by triggers that it did not train on" in summary["why"]


def test_where_nothing_is_found_nothing_is_repaired(tmp_path: Path, in_process: None) -> None:
    clean = make_case(tmp_path / "clean", scenes=400, poisoned=0)
    settings = story(clean, tmp_path / "run")
    summary = VERB.start(dataclasses.replace(settings, scan={"decision": {"kind": "threshold"}}))
    assert (summary["outcome"], summary["exit_status"]) == ("clean", 0)
    assert summary["skipped"] == {"repair": "the scan names no concept and proves no trigger"}
    assert summary["why"] == "the scan names no concept and proves no trigger; nothing was repaired"
    assert not (tmp_path / "run" / "repair").exists()
    page = Path(summary["report"]).read_text(encoding="utf-8")
    assert "No backdoor found" in page
    assert "skipped: the scan names no concept" in page


def test_where_a_concept_is_named_and_nothing_proven_nothing_is_repaired(
    backdoored: Case, tmp_path: Path, in_process: None
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    settings = story(backdoored, tmp_path / "run", tracking=TrackingConfig(uri=uri))
    # without an oracle nothing can be proven
    summary = VERB.start(dataclasses.replace(settings, scan={"decision": {"kind": "threshold"}}))
    assert summary["targets"] == [TARGET]
    assert (summary["outcome"], summary["exit_status"]) == ("unproven", 3)
    assert summary["why"] == f"the scan names {TARGET} but proves no trigger; nothing was repaired"
    assert summary["checkpoint"] is None
    assert not (tmp_path / "run" / "repair").exists()
    assert "A concept is named, and nothing proven" in Path(summary["report"]).read_text(encoding="utf-8")
    assert not MlflowClient(uri, uri).search_registered_models()
