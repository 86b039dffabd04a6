"""`clipsan sweep-detectors` on a real local Ray: settings compared by the pairs that a scan has proven."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient
from sklearn.metrics import average_precision_score

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.config import ConfigError, load
from clipsan.pipeline.core.pass_ import in_this_process
from clipsan.pipeline.detector_sweep import verb
from clipsan.pipeline.detector_sweep.plan import DetectorSweepConfig, make_plan
from clipsan.pipeline.scan.plan import ScanConfig
from clipsan.pipeline.sweep.settings import GridSearch, RandomSearch
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.stages.search.space import Choice, Uniform
from tests.closed_form import TARGET, Case
from tests.integration.conftest import scan_case

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPACE = {
    "detectors.concept_spectral.directions": Choice(kind="grid", values=(1, 3)),
    "detectors.ensemble.silent_weight": Choice(kind="grid", values=(0.0, 0.9)),
}


def scan(case: Case, out: Path, **changes: Any) -> None:
    with in_this_process():
        scan_case(case, out, **changes)


@pytest.fixture(scope="module")
def settings(scanned: Path, tmp_path_factory: pytest.TempPathFactory) -> DetectorSweepConfig:
    out = tmp_path_factory.mktemp("swept")
    return DetectorSweepConfig(
        scan=str(scanned),
        space=SPACE,
        search=GridSearch(),
        out=str(out / "run"),
        cluster=ClusterConfig(workers=2),
        tracking=TrackingConfig(uri=f"sqlite:///{out}/mlflow.db"),
    )


@pytest.fixture(scope="module")
def swept(settings: DetectorSweepConfig) -> dict[str, Any]:
    return verb.VERB.start(settings)


def column(folder: Path, name: str) -> list[Any]:
    return [value for path in sorted(folder.glob("part-*.parquet")) for value in pq.read_table(path)[name].to_pylist()]


def test_a_trial_measures_what_a_scan_with_its_settings_gives(
    swept: dict[str, Any], scanned: Path, backdoored: Case, tmp_path: Path
) -> None:
    assert swept["counts"] == {"trials": 4, "finished": 4, "failed": 0, "proven": swept["counts"]["proven"]}
    row = swept["rows"][1]
    assert row["detectors.ensemble.silent_weight"] == 0.9
    written = load(ScanConfig, str(scanned / "run.yaml"), [], verb="scan").detectors
    chosen = dataclasses.replace(
        written,
        concept_spectral=dataclasses.replace(written.concept_spectral, directions=1),
        ensemble=dataclasses.replace(written.ensemble, silent_weight=0.9),
    )
    scan(backdoored, tmp_path / "again", detectors=chosen)
    proven = np.array(column(scanned / "verdicts", "verdict")) == "poisoned"
    assert swept["counts"]["proven"] == proven.sum()
    for name in ("ensemble", "concept_spectral"):
        scores = np.array(column(tmp_path / "again" / "scores", name))
        expected = average_precision_score(proven, scores)
        found = row["average_precision"] if name == "ensemble" else row["detectors"][name]
        assert found == pytest.approx(expected, abs=1e-12)


def test_the_best_trial_is_recommended_and_its_settings_can_be_scanned_with(
    swept: dict[str, Any], settings: DetectorSweepConfig
) -> None:
    best = swept["recommended"]
    assert best["average_precision"] == max(row["average_precision"] for row in swept["rows"])
    assert all(TARGET in row["named"] for row in swept["rows"])
    tree = yaml.safe_load((Path(settings.out) / "detectors.yaml").read_text())
    assert tree["ensemble"]["silent_weight"] == best["settings"]["detectors.ensemble.silent_weight"]
    again = load(
        ScanConfig,
        str(Path(settings.scan) / "run.yaml"),
        [f"detectors={Path(settings.out) / 'detectors.yaml'}"],
        verb="scan",
    )
    directions = best["settings"]["detectors.concept_spectral.directions"]
    assert again.detectors.concept_spectral.directions == directions


def test_every_trial_is_a_run_below_the_sweep(swept: dict[str, Any], settings: DetectorSweepConfig) -> None:
    client = MlflowClient(tracking_uri=settings.tracking.uri)
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(runs) == 5
    assert len(children) == 4
    weights = {run.data.params["settings.detectors.ensemble.silent_weight"] for run in children}
    assert weights == {"0.0", "0.9"}


def test_only_what_is_missing_runs_again_and_the_truth_decides_nothing(
    swept: dict[str, Any], settings: DetectorSweepConfig, backdoored: Case, tmp_path: Path
) -> None:
    home = Path(settings.out)
    kept = (home / "trials" / "0000" / "figures.json").stat().st_mtime_ns
    (home / "trials" / "0003" / "figures.json").unlink()
    again = verb.VERB.start(settings)
    assert (home / "trials" / "0000" / "figures.json").stat().st_mtime_ns == kept
    assert without_clock(again) == without_clock(swept)
    uids = [
        uid for uid in column(Path(settings.scan) / "verdicts", "uid") if uid.rpartition("/")[2] in backdoored.poisoned
    ]
    manifest = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"uid": uids}), manifest)
    told = dataclasses.replace(
        settings, manifest=str(manifest), out=str(tmp_path / "told"), tracking=TrackingConfig(enabled=False)
    )
    informed = verb.VERB.start(told)
    assert informed["recommended"]["settings"] == swept["recommended"]["settings"]
    assert all(0 < row["true_average_precision"] <= 1 for row in informed["rows"])


def without_clock(summary: dict[str, Any]) -> tuple[Any, ...]:
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in summary["rows"]]
    return json.dumps(rows, sort_keys=True), summary["recommended"]


def test_what_cannot_be_swept_is_refused(settings: DetectorSweepConfig, backdoored: Case, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished run"):
        make_plan(dataclasses.replace(settings, scan=str(tmp_path)))
    uniform = {"detectors.ensemble.silent_weight": Uniform(low=0.0, high=0.5)}
    with pytest.raises(ConfigError, match="grid search needs"):
        make_plan(dataclasses.replace(settings, space=uniform))
    wrong = {"detectors.densitty.k": Choice(values=(8,))}
    with pytest.raises(ConfigError, match="no section densitty"):
        make_plan(dataclasses.replace(settings, space=wrong, search=RandomSearch(trials=1)))
    with pytest.raises(ValueError, match="begin with detectors"):
        dataclasses.replace(settings, space={"proof.budget": Choice(values=(0.1,))})
    scan(backdoored, tmp_path / "blind")
    with pytest.raises(ConfigError, match="calls no pair poisoned"):
        make_plan(dataclasses.replace(settings, scan=str(tmp_path / "blind")))


def test_random_points_come_after_the_scans_own_settings(settings: DetectorSweepConfig) -> None:
    names = {"detectors.ensemble.silent_weight": Uniform(low=0.0, high=0.5), "detectors.density.k": Choice(values=(8,))}
    plan = make_plan(dataclasses.replace(settings, space=names, search=RandomSearch(trials=3)))
    assert len(plan.trials) == 4
    first, *drawn = plan.trials
    assert first.scan.detectors == plan.base.detectors
    assert first.point == {"detectors.ensemble.silent_weight": 0.5, "detectors.density.k": 32}
    assert all(trial.point["detectors.density.k"] == 8 for trial in drawn)
