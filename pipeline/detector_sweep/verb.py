"""`clipsan sweep-detectors`: Ray Tune over the detectors' settings, on the embeddings that a scan has left.

A scan that has proven a trigger knows poisoned pairs without being told: the scan has looked for the trigger in the whole
cache, whatever the detectors thought of a pair. Settings are good when the ensemble ranks those pairs above all others.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from clipsan.stages.sources import list_units

from ..core.cluster import start_ray
from ..core.commit import write_json, write_text
from ..core.config import as_tree
from ..core.masking import what_stopped
from ..core.run_folder import RunFolder
from ..core.verb import Child, Job, Result, Summary, Verb
from ..tracking.record import data_input, metrics_of
from .plan import DetectorSweepConfig, Plan, make_plan
from .rescan import ERROR, FIGURES, Rescan, Row, measure

TABLE = "table.json"
BEST = "detectors.yaml"


def run(plan: Plan, job: Job) -> Result:
    """Run what is left of the trials and weigh all of them."""
    left = [trial for trial in plan.trials if trial.figures is None]
    if left:
        _tune(plan, left, job.folder)
    summary = _summary(plan)
    _publish(plan, job.folder, summary)
    shown = {name: summary[name] for name in ("counts", "recommended") if summary[name] is not None}
    return Result(
        summary=summary,
        metrics=shown,
        files=[job.folder.local / TABLE, job.folder.local / BEST],
        tags={"clipsan.scan_root": str(Path(plan.config.scan).expanduser().resolve())},
        inputs=[data_input(plan.base.data, list_units(plan.base.data), "scan")],
        children=[_child(trial, row) for trial, row in zip(plan.trials, summary["rows"], strict=True)],
    )


def _tune(plan: Plan, left: list[Rescan], folder: RunFolder) -> None:
    start_ray()
    from ray import tune

    from ..sweep.search import quiet_tune

    settings, cluster = plan.config, plan.config.cluster
    quiet_tune()
    scratch = folder.local / "work" / "tune"
    shutil.rmtree(scratch, ignore_errors=True)
    shared = {"trials": {trial.number: trial for trial in left}, "proven": plan.proven, "manifest": settings.manifest}
    sys.stderr.write(f"sweep-detectors: {len(left)} of {len(plan.trials)} trials to run\n")
    tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_run_trial, shared=shared), {"cpu": float(cluster.threads_per_worker)}
        ),
        param_space={"number": tune.grid_search([trial.number for trial in left])},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=settings.concurrent or cluster.worker_count(), reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder.work),
            failure_config=tune.FailureConfig(max_failures=settings.retries),
            verbose=0,
        ),
    ).fit()
    shutil.rmtree(scratch, ignore_errors=True)


def _run_trial(settings: dict[str, Any], shared: dict[str, Any]) -> None:
    """Scan the cache and measure the scores, inside Ray Tune; the entry point of its workers."""
    from ray import tune

    trial: Rescan = shared["trials"][settings["number"]]
    torch.set_num_threads(trial.scan.cluster.threads_per_worker)
    trial.folder.mkdir(parents=True, exist_ok=True)
    try:
        figures = measure(trial, shared["proven"], shared["manifest"])
    except Exception as error:
        write_text(trial.folder / ERROR, what_stopped(error))
        raise
    write_json(trial.folder / FIGURES, figures)
    (trial.folder / ERROR).unlink(missing_ok=True)
    tune.report({"average_precision": figures["average_precision"]})


def _summary(plan: Plan) -> Summary:
    rows = [_row(plan, trial) for trial in plan.trials]
    finished = [row for row in rows if row["state"] == "finished"]
    # of equals the one that names fewer other concepts, then the first
    best = min(finished, key=lambda row: (-row["average_precision"], row["wrong_names"], row["trial"]), default=None)
    return {
        "counts": {
            "trials": len(rows),
            "finished": len(finished),
            "failed": len(rows) - len(finished),
            "proven": len(plan.proven),
        },
        "rule": "the highest average precision of the ensemble for the pairs that the scan has proven; of equals the one that "
        "names fewer concepts at which no proven trigger aims, then the first",
        "recommended": None
        if best is None
        else {"trial": best["trial"], "settings": plan.trials[best["trial"]].point}
        | {name: best[name] for name in best if name in ("average_precision", "true_average_precision")},
        "rows": rows,
    }


def _row(plan: Plan, trial: Rescan) -> Row:
    figures = trial.figures
    row: Row = {"trial": trial.number, "state": "failed" if figures is None else "finished", **trial.point}
    if figures is None:
        return {**row, "error": trial.error or "its process was lost"}
    wrong = [name for name in figures["named"] if name not in plan.targets]
    return {**row, **{k: v for k, v in figures.items() if k != "fingerprint"}, "wrong_names": len(wrong)}


def _publish(plan: Plan, folder: RunFolder, summary: Summary) -> None:
    """Write the table, and the best settings as a file for `clipsan scan`."""
    write_json(folder.local / TABLE, summary["rows"])
    best = summary["recommended"]
    if best is not None:
        tree = as_tree(plan.trials[best["trial"]].scan.detectors)
        write_text(folder.local / BEST, yaml.safe_dump(tree, sort_keys=False))


def _child(trial: Rescan, row: Row) -> Child:
    return Child(
        verb="trial",
        root=trial.folder,
        tree={"settings": trial.point, "state": row["state"]},
        metrics=metrics_of({name: value for name, value in row.items() if name not in trial.point}),
        files=[trial.folder / FIGURES],
    )


def closing(summary: Summary) -> str:
    """Return the last lines on the screen."""
    counts, best = summary["counts"], summary["recommended"]
    lines = [
        f"sweep-detectors: {counts['finished']} of {counts['trials']} trials finished in {summary['seconds']:.0f} s, measured by "
        f"{counts['proven']:,} proven pairs"
    ]
    lines += [
        f"  trial {row['trial']} failed: {row['error']}; the same command tries again"
        for row in summary["rows"]
        if row["state"] == "failed"
    ]
    if best is not None:
        point = ", ".join(f"{name}={value}" for name, value in best["settings"].items())
        lines.append(
            f"sweep-detectors: trial {best['trial']} is recommended ({point}): average precision {best['average_precision']:.3f}; "
            f"its settings are in {BEST}, for `clipsan scan detectors=...`"
        )
    return "\n".join(lines)


VERB = Verb(
    name="sweep-detectors",
    config=DetectorSweepConfig,
    plan=make_plan,
    run=run,
    closing=closing,
    status=lambda summary: 1 if summary["counts"]["failed"] else 0,
    is_whole=lambda plan, folder: all(trial.figures is not None for trial in plan.trials),
)
