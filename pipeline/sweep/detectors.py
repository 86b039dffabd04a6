"""`clipsan sweep-detectors`: Ray Tune over the detectors' settings, on the embeddings that a scan has left.

A scan that has proven a trigger knows poisoned pairs without being told: the sweep back looked for the trigger in the whole
cache, whatever the detectors thought of a pair. Settings are good when the ensemble ranks those pairs above all others.
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pydantic
import torch
import yaml

from clipsan.stages.search.space import Dimension, Point, grid_points, random_points
from clipsan.stages.sources import list_units
from clipsan.stages.stage import config
from clipsan.stages.verdicts import Verdict

from ..core.cluster import ClusterConfig, ray_session
from ..core.commit import fingerprint, read_parts, write_text
from ..core.config import ConfigError, as_tree, load, validate
from ..core.pass_old import in_this_process
from ..core.run_folder import RunFolder, finished_scan, open_run, read_summary, write_summary
from ..scan import verb as scan
from ..scan.output import detection_summary, manifest_uids, truth_mask
from ..scan.plan import ScanConfig
from ..tracking.record import TrackingConfig, data_input, metrics_of
from ..tracking.send import log_run
from .settings import GridSearch, RandomSearch

SPACE = "detectors."
FIGURES = "figures.json"
ERROR = "error.txt"
TABLE = "table.json"
BEST = "detectors.yaml"
FREE = ("out", "cluster", "tracking", "retries", "concurrent")
"""Settings that change no trial."""

Row = dict[str, Any]


@config
class DetectorSweepConfig:
    """Everything that decides a sweep of detectors."""

    scan: str
    """Run folder of a scan that has proven a trigger; its embeddings are scored anew."""
    space: dict[str, Dimension]
    """Setting of the scan, as a dotted path (detectors.density.k) -> what it may be."""
    search: Annotated[RandomSearch | GridSearch, pydantic.Discriminator("kind")] = field(default_factory=RandomSearch)
    """How points are chosen; random ones after the scan's own, so that what is recommended is never worse than what is there.
    A trial takes seconds, so none is stopped early."""
    manifest: str | None = None
    """For benchmarks alone: the truth, written down for every trial; it enters no decision."""
    concurrent: int | None = None
    """Trials at a time; null: as many as the cluster has CPUs for."""
    retries: int = 1
    """Times that a trial is tried again after an error."""
    seed: int = 0
    """Of the points."""
    out: str
    """Run folder."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """A trial takes threads_per_worker CPUs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        wrong = sorted(name for name in self.space if not name.startswith(SPACE))
        if wrong or not self.space:
            raise ValueError(f"space: must name settings that begin with {SPACE} ({', '.join(wrong) or 'it is empty'})")
        if self.retries < 0:
            raise ValueError("retries must not be negative")
        if self.concurrent is not None and self.concurrent < 1:
            raise ValueError("concurrent must be at least 1")


@dataclass(frozen=True, slots=True)
class Trial:
    """One scan of the cache with settings of its own; picklable."""

    number: int
    point: Point
    scan: ScanConfig
    folder: Path
    mark: str

    @property
    def figures(self) -> Row | None:
        """What it found; None until it has finished."""
        path = self.folder / FIGURES
        found: Row | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return found if found is not None and found["mark"] == self.mark else None

    @property
    def error(self) -> str | None:
        path = self.folder / ERROR
        return path.read_text(encoding="utf-8") if path.is_file() else None


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked sweep."""

    config: DetectorSweepConfig
    base: ScanConfig
    trials: tuple[Trial, ...]
    proven: tuple[str, ...]
    """Uids of the pairs that the scan calls poisoned."""
    targets: tuple[str, ...]
    """What its triggers aim at."""
    mark: str


def command(file: str | None, overrides: list[str], dry_run: bool) -> int:
    """Run the verb from the command line; 1 when a trial failed."""
    plan = make_plan(load(DetectorSweepConfig, file, overrides, verb="sweep-detectors"))
    if dry_run:
        settings = plan.config
        sys.stdout.write(
            f"scan       {settings.scan}: {len(plan.proven)} proven pairs, triggers aim at {', '.join(plan.targets)}\n"
            f"search     {settings.search.kind}, {len(plan.trials)} trials, seed {settings.seed}\n"
            + "".join(f"space      {name}\n" for name in settings.space)
            + f"truth      {'recorded, enters no decision' if settings.manifest else 'not known'}\n"
            f"out        {settings.out}  ({plan.mark[:12]})\n"
        )
        return 0
    summary = run_plan(plan)
    sys.stdout.write(_screen(summary))
    return 1 if summary["counts"]["failed"] else 0


def make_plan(settings: DetectorSweepConfig) -> Plan:
    """Check everything that can be checked before a worker starts.

    Raises:
        ConfigError, OSError: no finished scan, one that has proven nothing, or a point that is no valid setting.
    """
    folder, record = finished_scan(settings.scan)
    root = folder.root
    base = validate(ScanConfig, record["config"], verb="scan")
    base = replace(base, embeddings=base.embeddings or str(root), oracle=None, write=[], manifest=None)
    base = replace(base, tracking=TrackingConfig(enabled=False), cluster=replace(settings.cluster, workers=1))
    proven = _proven(folder, base)
    if not proven:
        raise ConfigError(
            f"scan={settings.scan}: it calls no pair poisoned, and settings are compared by the pairs that it has proven; "
            "scan with an oracle"
        )
    if settings.manifest is not None and not Path(settings.manifest).is_file():
        raise ConfigError(f"manifest={settings.manifest}: no such file")
    try:
        points = (
            grid_points(settings.space)
            if isinstance(settings.search, GridSearch)
            else [*_own(base, settings.space), *random_points(settings.space, settings.search.trials, settings.seed)]
        )
    except ValueError as error:
        raise ConfigError(f"space: {error}") from None
    triggers = read_summary(root).get("proof", {}).get("triggers", [])
    targets = tuple(dict.fromkeys(target for trigger in triggers for target in trigger["targets"]))
    scanned = [record["fingerprint"], sorted(proven)]
    mark = fingerprint(
        {"scan": scanned, "settings": {k: v for k, v in as_tree(settings).items() if k not in (*FREE, "scan")}}
    )
    home = Path(settings.out).expanduser().resolve() / "trials"
    trials = tuple(_trial(i, point, base, home / f"{i:04d}", mark) for i, point in enumerate(points))
    return Plan(settings, base, trials, proven, targets, mark)


def run_sweep(settings: DetectorSweepConfig) -> dict[str, Any]:
    """Run the sweep, or what is left of it, and return its summary; trials that have finished are not run again."""
    return run_plan(make_plan(settings))


def run_plan(plan: Plan) -> dict[str, Any]:
    """Run a checked plan, or what is left of it; see run_sweep."""
    started = time.monotonic()
    settings = plan.config
    folder = open_run(settings.out, verb="sweep-detectors", tree=as_tree(settings), fingerprint=plan.mark)
    left = [trial for trial in plan.trials if trial.figures is None]
    if folder.summary.is_file() and not left:
        return read_summary(folder.root)
    if left:
        with ray_session(settings.cluster):
            _tune(plan, left, folder)
    summary = _summary(plan, round(time.monotonic() - started, 1))
    _publish(plan, folder, summary)
    return summary


def _proven(folder: RunFolder, base: ScanConfig) -> tuple[str, ...]:
    parts = [unit.index for unit in list_units(base.data)]
    found: list[str] = []
    for table in read_parts(folder.verdicts, parts, ["uid", "verdict"]):
        found += table.filter(pc.equal(table.column("verdict"), Verdict.POISONED.value)).column("uid").to_pylist()
    return tuple(found)


def _own(base: ScanConfig, space: Mapping[str, Dimension]) -> list[Point]:
    """Return the scan's own settings as a point; none where the space names what the scan does not have."""
    point: Point = {}
    tree = as_tree(base)
    for name in space:
        node: Any = tree
        for part in name.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if node is None:
            return []
        point[name] = node
    return [point]


def _trial(number: int, point: Point, base: ScanConfig, folder: Path, sweep: str) -> Trial:
    tree = as_tree(base)
    for name, value in point.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.get(parent)
            if not isinstance(node, dict):
                raise ConfigError(f"space: {name}: there is no section {parent}")
        node[last] = value
    shown = ", ".join(f"{name}={value}" for name, value in point.items())
    try:
        own = validate(ScanConfig, {**tree, "out": str(folder / "scan")}, verb="scan")
    except ConfigError as error:
        raise ConfigError(f"scan with {shown}: {error}") from None
    return Trial(number, point, own, folder, fingerprint([sweep, number, point]))


def _tune(plan: Plan, left: list[Trial], folder: RunFolder) -> None:
    from ray import tune

    from .search import quiet_tune

    settings, cluster = plan.config, plan.config.cluster
    quiet_tune()
    scratch = folder.work / "tune"
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

    trial: Trial = shared["trials"][settings["number"]]
    torch.set_num_threads(trial.scan.cluster.threads_per_worker)
    trial.folder.mkdir(parents=True, exist_ok=True)
    try:
        figures = measure(trial, shared["proven"], shared["manifest"])
    except Exception as error:
        write_text(trial.folder / ERROR, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        raise
    write_text(trial.folder / FIGURES, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    (trial.folder / ERROR).unlink(missing_ok=True)
    tune.report({"average_precision": figures["average_precision"]})


def measure(trial: Trial, proven: tuple[str, ...], manifest: str | None) -> Row:
    """Scan the cache with a trial's settings in this process; return its figures.

    `average_precision` is the ensemble's for the proven pairs against all others, `detectors` has every detector's; with the
    manifest `true_average_precision` says the same of the truth.
    """
    started = time.monotonic()
    with in_this_process():
        summary = scan.run_scan(scan.make_plan(trial.scan))
    folder = RunFolder(Path(trial.scan.out))
    parts = [unit.index for unit in list_units(trial.scan.data)]
    found = detection_summary(folder.scores, parts, truth_mask(folder.scores, parts, pa.array(proven)))
    figures: Row = {
        "mark": trial.mark,
        "seconds": round(time.monotonic() - started, 1),
        "average_precision": found["ensemble"]["average_precision"],
        "recall_at_1_pct": 100 * found["ensemble"]["recall_at"]["0.01"],
        "detectors": {name: own["average_precision"] for name, own in found.items()},
        "named": summary["targets"],
        "flagged": summary["counts"]["flagged"],
    }
    if manifest is not None:
        truth = truth_mask(folder.scores, parts, manifest_uids(manifest))
        true = detection_summary(folder.scores, parts, truth)
        figures["true_average_precision"] = true["ensemble"]["average_precision"]
    # the scores can be made again from the settings in seconds; a hundred copies of them need not lie there
    shutil.rmtree(folder.root, ignore_errors=True)
    return figures


def _summary(plan: Plan, seconds: float) -> dict[str, Any]:
    rows = [_row(plan, trial) for trial in plan.trials]
    finished = [row for row in rows if row["state"] == "finished"]
    # of equals the one that names fewer other concepts, then the first
    best = min(finished, key=lambda row: (-row["average_precision"], row["wrong_names"], row["trial"]), default=None)
    return {
        "verb": "sweep-detectors",
        "fingerprint": plan.mark,
        "seconds": seconds,
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


def _row(plan: Plan, trial: Trial) -> Row:
    figures = trial.figures
    row: Row = {"trial": trial.number, "state": "failed" if figures is None else "finished", **trial.point}
    if figures is None:
        return {**row, "error": trial.error or "its process was lost"}
    wrong = [name for name in figures["named"] if name not in plan.targets]
    return {**row, **{k: v for k, v in figures.items() if k != "mark"}, "wrong_names": len(wrong)}


def _publish(plan: Plan, folder: RunFolder, summary: dict[str, Any]) -> None:
    """Write the table, the best settings as a file for `clipsan scan`, and the summary; log a run with a child a trial."""
    write_text(folder.root / TABLE, json.dumps(summary["rows"], indent=1, ensure_ascii=False) + "\n")
    best = summary["recommended"]
    if best is not None:
        tree = as_tree(plan.trials[best["trial"]].scan.detectors)
        write_text(folder.root / BEST, yaml.safe_dump(tree, sort_keys=False))
    write_summary(folder, summary)
    tracking = plan.config.tracking
    shown = {name: summary[name] for name in ("counts", "seconds", "recommended") if summary[name] is not None}
    above = log_run(
        tracking,
        verb="sweep-detectors",
        root=folder.root,
        tree=as_tree(plan.config),
        metrics=metrics_of(shown),
        files=[folder.run_yaml, folder.summary, folder.root / TABLE, folder.root / BEST],
        tags={"clipsan.scan_root": str(Path(plan.config.scan).expanduser().resolve())},
        inputs=[data_input(plan.base.data, list_units(plan.base.data), "scan")],
    )
    if above is None:
        return
    for trial, row in zip(plan.trials, summary["rows"], strict=True):
        log_run(
            tracking,
            verb="trial",
            root=trial.folder,
            tree={"settings": trial.point, "state": row["state"]},
            metrics=metrics_of({name: value for name, value in row.items() if name not in trial.point}),
            files=[trial.folder / FIGURES],
            parent=above,
        )


def _screen(summary: Mapping[str, Any]) -> str:
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
    return "\n".join(lines) + "\n"
