"""`clipsan repair`: a backdoored model in, a repaired one out, measured before and after on the same held-out data."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipsan.stages.model.clip import ModelConfig, load_clip, save_clip
from clipsan.stages.repair.rvpt import Rvpt
from clipsan.stages.repair.unlearn import Unlearn
from clipsan.stages.samples import Unit
from clipsan.stages.sources import list_units

from ..core.cluster import ray_session
from ..core.commit import read_parts
from ..core.config import ConfigError, load
from ..core.run_folder import RunFolder, open_run, read_summary, write_summary
from ..data.choice import NOBODY, Choice, Draw, cut_for, draw_numbers
from ..evaluate import verb as evaluate
from ..evaluate.plan import read_classes
from ..tracking.record import DataInput, ModelRecord, data_input, metrics_of
from ..tracking.send import log_run, registered
from ..train.data import Reading
from ..train.fit import Checked, Order, PairSet, check, fit
from ..train.stop import StopRule
from .output import CARD, write_card
from .plan import Picked, Plan, make_plan
from .settings import EarlyStop, RepairConfig

__all__ = [
    "EarlyStop",
    "RepairConfig",
    "RepairResult",
    "command",
    "make_plan",
    "prepare",
    "registered",
    "run_plan",
    "run_repair",
]


@dataclass(frozen=True, slots=True)
class RepairResult:
    """A finished repair."""

    model: ModelConfig
    """The repaired model: OUT/checkpoint, or the suspect checkpoint with OUT/adapter."""
    history: list[dict[str, float]]
    """One record an epoch: epoch (from 1), loss, lr, seconds, pairs_per_s, and clean_accuracy_pct with early stop."""
    summary: dict[str, Any]
    """What stands in summary.json."""


def command(file: str | None, overrides: list[str], dry_run: bool) -> int:
    """Run the verb from the command line."""
    plan = make_plan(load(RepairConfig, file, overrides, verb="repair"))
    if dry_run:
        sys.stdout.write(plan.describe())
        return 0
    result = run_plan(plan)
    before, after = result.summary["before"] or {}, result.summary["after"] or {}
    figures = ", ".join(f"{name} {before[name]:.2f} -> {after[name]:.2f}" for name in after if _is_headline(name))
    sys.stdout.write(
        f"repair: {result.summary['counts']['used']:,} pairs, {result.summary['steps']:,} steps of "
        f"{plan.config.method.kind} in {result.summary['seconds']:.0f} s; {figures or 'not evaluated'}; "
        f"look at {result.summary['checkpoint']}\n"
    )
    return 0


def _is_headline(name: str) -> bool:
    return name in ("clean_accuracy_pct", "asr_pct", "accuracy_under_trigger_pct", "rebound_asr_pct")


def run_repair(settings: RepairConfig) -> RepairResult:
    """Repair, or go on repairing, and return the result; the same `out` and settings continue where a kill left off."""
    return run_plan(make_plan(settings))


def run_plan(plan: Plan) -> RepairResult:
    """Run a checked plan, or what is left of it; see run_repair."""
    started = time.monotonic()
    settings = plan.config
    folder = open_run(settings.out, verb="repair", tree=plan.tree, fingerprint=plan.mark)
    target = folder.root / ("adapter" if plan.is_adapter else "checkpoint")
    repaired = _repaired(plan, target)
    if folder.summary.is_file() and (target / CARD).is_file():
        summary = read_summary(folder.root)
        return RepairResult(repaired, summary["history"], summary)
    for note in plan.notes:
        sys.stderr.write(f"repair: {note}\n")
    with ray_session(settings.cluster):
        order, found, counts = prepare(plan, folder)
        before = _evaluated(plan, settings.model, folder.root / "evaluate-before")
        training = time.monotonic()
        state = fit(order, folder)
        training_s = time.monotonic() - training
        objective = plan.task.objective()
        objective.load_state_dict(state["weights"])
        objective.export(target)
        after = _evaluated(plan, repaired, folder.root / "evaluate-after")
    history, notes = state["history"], (*plan.notes, *objective.notes)
    summary = {
        "verb": "repair",
        "fingerprint": plan.mark,
        "seconds": round(time.monotonic() - started, 1),
        "training_seconds": round(training_s, 1),
        "counts": counts,
        "rejected_reasons": found.reasons,
        "method": settings.method.kind,
        "steps": _steps(order, folder, history),
        "suspect": plan.model_fingerprint,
        "data": plan.data_fingerprint,
        "scan": None if plan.scan is None else {"path": str(plan.scan.root), "fingerprint": plan.scan.fingerprint},
        "notes": list(notes),
        "checkpoint": str(target),
        "before": before,
        "after": after,
        "history": history,
    }
    trained = sum(value.numel() for value in objective.trainable().values())
    total = sum(value.numel() for value in objective.model.parameters())
    write_card(target, plan, summary, notes, (trained, total))
    write_summary(folder, summary)
    version = _log(plan, folder, target, summary)
    if version is not None:
        summary["registered"] = version
        write_summary(folder, summary)
    return RepairResult(repaired, history, summary)


def _repaired(plan: Plan, target: Path) -> ModelConfig:
    if plan.is_adapter:
        model = plan.config.model
        return ModelConfig(name=model.name, config=model.config, path=model.path, adapter=str(target))
    return ModelConfig(path=str(target))


def _evaluated(plan: Plan, model: ModelConfig, out: Path) -> dict[str, Any] | None:
    return None if plan.config.evaluate is None else evaluate.VERB.start(plan.evaluation(model, out))["evaluation"]


def prepare(plan: Plan, folder: RunFolder) -> tuple[Order, Checked, dict[str, int]]:
    """Check all pairs; return the training, what the check found, and how many pairs of each kind there are."""
    settings = plan.config
    method = settings.method
    pairs, found = _checked(plan, folder, plan.main, folder.root / "checked", folder.rejected)
    if method.labelled:
        _check_labels(_table(folder.root / "checked", plan.main.units), plan.classes, "data")
    pairs = _sampled(plan, folder, pairs)
    counts = found.counts | {"used": pairs.pairs}
    beside = []
    for i, some in enumerate(plan.beside):
        home = folder.work / f"beside-{i}"
        own, _ = _checked(plan, folder, some, home / "checked", home / "rejected")
        counts[some.name.replace(" ", "_")] = own.pairs
        beside += [own] if own.pairs else []
    share = method.flagged_share_pct if isinstance(method, Unlearn) else 0.0
    rows = round(share * method.batch_size / 100) if beside else 0
    needed = (method.batch_size - rows) * settings.accumulate
    if pairs.pairs < needed:
        raise ConfigError(
            f"{plan.section}.batch_size={method.batch_size}: a step takes {needed} {plan.main.name}, and there are only "
            f"{pairs.pairs} that can be used ({found.rejected} are in {folder.rejected})"
        )
    order = Order(
        name="repair",
        task=plan.task,
        pairs=pairs,
        image_size=plan.image_size,
        epochs=method.epochs,
        steps=settings.steps,
        batch_size=method.batch_size,
        accumulate=settings.accumulate,
        seed=settings.seed,
        checkpoint_every_epochs=settings.checkpoint_every_epochs,
        retries=settings.retries,
        memory_mb=settings.memory_mb,
        cluster=settings.cluster,
        beside=tuple(beside),
        beside_rows=rows,
        validation=_validation(plan, folder),
        stop=_stop(plan),
    )
    workers = settings.cluster.worker_count()
    if not order.cached and rows % workers:
        raise ConfigError(
            f"method.flagged_share_pct={share:g}: the data are streamed, so each of {workers} workers needs as many of the "
            f"{rows} rows that it stands for in a batch; choose another share or batch_size"
        )
    return order, found, counts


def _checked(plan: Plan, folder: RunFolder, picked: Picked, parts: Path, rejected: Path) -> tuple[PairSet, Checked]:
    settings = plan.config
    # where labels teach, a picture without a caption is as good as any
    captioned = not settings.method.labelled and picked is not plan.validation
    choice = Choice(picked.lookup)
    reading = Reading(picked.source, settings.model, settings.max_pixels, settings.seed, choice, captioned)
    found = check(f"check {picked.name}", picked.units, reading, parts, rejected, plan.mark, settings.cluster)
    return PairSet(picked.units, reading, found.used), found


def _sampled(plan: Plan, folder: RunFolder, pairs: PairSet) -> PairSet:
    """Return the sample that the settings ask for: so many pairs, or so many images of each class."""
    settings = plan.config
    if isinstance(settings.method, Rvpt):
        return _drawn(
            pairs, _table(folder.root / "checked", pairs.units), settings.method.shots, settings.seed, by_class=True
        )
    if settings.pairs is not None:
        return _drawn(
            pairs, _table(folder.root / "checked", pairs.units), settings.pairs, settings.seed, by_class=False
        )
    return pairs


def _table(parts: Path, units: list[Unit]) -> pa.Table:
    return pa.concat_tables(read_parts(parts, [unit.index for unit in units], ["uid", "label"]))


def _check_labels(table: pa.Table, classes: tuple[str, ...], where: str, least: int = NOBODY) -> None:
    """Refuse labels that name no class; with `least` NOBODY a pair may have none."""
    labels = table.column("label").to_numpy()
    wrong = labels[(labels < least) | (labels >= len(classes))]
    if len(wrong):
        raise ConfigError(
            f"{where}: {len(wrong)} images have a label such as {wrong[0]} ({NOBODY}: none), but there are {len(classes)} "
            "classes; name the label column or member in data, and every class in classes"
        )


def _drawn(pairs: PairSet, table: pa.Table, count: int, seed: int, *, by_class: bool) -> PairSet:
    """Draw `count` pairs, or as many of each class; pairs without a class take no part in the latter."""
    numbers = draw_numbers(table.column("uid").to_pylist(), seed)
    if not len(numbers):
        return pairs
    if not by_class:
        groups = {NOBODY: numbers}
    else:
        labels = table.column("label").to_numpy()
        groups = {int(label): numbers[labels == label] for label in np.unique(labels) if label != NOBODY}
    draw = Draw(seed, {label: cut_for(own, count) for label, own in groups.items()})
    used = sum(min(count, len(own)) for own in groups.values())
    reading = pairs.reading
    choice = Choice(reading.choice.lookup, draw)
    chosen = Reading(reading.source, reading.model, reading.max_pixels, reading.seed, choice, reading.captioned)
    return PairSet(pairs.units, chosen, used)


def _validation(plan: Plan, folder: RunFolder) -> PairSet | None:
    stop = plan.config.early_stop
    if stop is None or plan.validation is None:
        return None
    home = folder.work / "validation"
    images, _ = _checked(plan, folder, plan.validation, home / "checked", home / "rejected")
    if not images.pairs:
        raise ConfigError(f"early_stop.data: no image of {stop.data.path} can be used: see {home / 'rejected'}")
    table = _table(home / "checked", images.units)
    _check_labels(table, plan.classes, "early_stop.data", least=0)
    return _drawn(images, table, stop.images, plan.config.seed, by_class=False)


def _stop(plan: Plan) -> StopRule | None:
    stop = plan.config.early_stop
    if stop is None:
        return None
    evaluation = plan.config.evaluate or {}
    # what the scan accuses beside the classes is none of theirs
    given = plan.config.classes or evaluation.get("classes")
    names = plan.classes if given is None else tuple(read_classes(given))
    templates = tuple(evaluation.get("templates", plan.config.templates))
    return StopRule(names, templates, stop.patience, stop.min_gain_points)


def _steps(order: Order, folder: RunFolder, history: list[dict[str, float]]) -> int:
    job = order.job(folder)
    return sum(job.steps_of(epoch) for epoch in range(len(history)))


def _log(plan: Plan, folder: RunFolder, target: Path, summary: dict[str, Any]) -> str | None:
    """Log the run, register the model, and say in both where they come from; return the registered version, if there is one."""
    settings = plan.config
    shown = {name: summary[name] for name in ("counts", "steps", "seconds", "training_seconds", "before", "after")}
    logged = log_run(
        settings.tracking,
        verb="repair",
        root=folder.root,
        tree=plan.tree,
        metrics=metrics_of({name: value for name, value in shown.items() if value is not None}),
        files=[folder.run_yaml, folder.summary, target / CARD],
        tags=lineage(plan),
        inputs=inputs(plan),
        model=model_record(plan, folder, target, settings.register, measured(plan, summary)),
    )
    return registered(logged)


def lineage(plan: Plan) -> dict[str, str]:
    """Return the tags that say where a repaired model comes from (tracking.py has the scheme)."""
    found = {
        "clipsan.suspect": plan.model_fingerprint,
        "clipsan.data": plan.data_fingerprint,
        "clipsan.method": plan.config.method.kind,
    }
    if plan.scan is None:
        return found
    return found | {"clipsan.scan": plan.scan.fingerprint, "clipsan.scan_root": str(plan.scan.root)}


def inputs(plan: Plan) -> list[DataInput]:
    """Return the data sets that a repair learns from and is measured on."""
    found = [data_input(some.source, some.units, "training") for some in (plan.main, *plan.beside)]
    if plan.config.evaluate is not None:
        data = plan.evaluation(plan.config.model, Path(plan.config.out)).data
        found.append(data_input(data, list_units(data), "evaluation"))
    return found


def measured(plan: Plan, summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags by which versions are compared (registry.py has the rule); none where nothing was measured."""
    before, after = summary["before"] or {}, summary["after"] or {}
    if "asr_pct" not in before or "asr_pct" not in after:
        return {}
    return {
        "clipsan.evaluation": plan.evaluation_mark(),
        "clipsan.asr_pct": f"{after['asr_pct']:.4f}",
        "clipsan.asr_before_pct": f"{before['asr_pct']:.4f}",
        "clipsan.accuracy_lost_points": f"{before['clean_accuracy_pct'] - after['clean_accuracy_pct']:.4f}",
    }


def model_record(
    plan: Plan, folder: RunFolder, target: Path, name: str | None, more: Mapping[str, str]
) -> ModelRecord | None:
    """Return what the registry is told of a repaired model; None without a name.

    Args:
        plan: the repair.
        folder: of the run that made the model.
        target: the checkpoint or adapter, with its card.
        name: of the registered model.
        more: further tags of the version.
    """
    if name is None:
        return None
    artifacts = {"checkpoint": target}
    if plan.is_adapter:
        base = load_clip(plan.config.model)
        save_clip(base.model, base.model_cfg, base.preprocess_cfg, folder.work / "suspect")
        artifacts = {"checkpoint": folder.work / "suspect", "adapter": target}
    return ModelRecord(
        name=name,
        artifacts={key: str(path.relative_to(folder.root)) for key, path in artifacts.items()},
        card=str((target / CARD).relative_to(folder.root)),
        tags={**lineage(plan), "clipsan.fingerprint": plan.mark, **more},
    )
