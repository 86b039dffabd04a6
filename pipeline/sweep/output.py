"""What a sweep leaves behind: a row a trial, the summary, the page, one MLflow run with a child a trial, a registered model."""

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipsan.stages.evaluation.exam import objective_pct
from clipsan.stages.report.sweep import SweepReport, TrialLine, front_picture, render

from ..core.commit import fingerprint, whole, write_json, write_text
from ..core.config import public_tree
from ..core.run_folder import RunFolder, versions
from ..core.verb import Child, Result
from ..repair.lineage import inputs, lineage, model_record
from ..repair.output import write_card
from ..repair.plan import Plan as RepairPlan
from ..tracking.record import DataInput, ModelRecord, data_input, metrics_of
from .plan import Plan
from .run import Found, short
from .trial import ERRORS_FILE, HISTORY_FILE, Trial

TABLES = ("table.parquet", "table.json")
FRONT = "front.svg"

Row = dict[str, Any]


def publish(plan: Plan, folder: RunFolder, found: Found) -> Result:
    """Write tables, card and picture of the front; return what is told of the sweep."""
    rows = _rows(plan, found)
    _write_tables(folder.local, rows)
    summary = _summary(plan, folder, found, rows)
    if found.recommended is not None and found.checkpoint is not None:
        _card(plan, found, summary)
    page = _report(plan, found, rows, summary["rule"])
    write_text(folder.local / FRONT, front_picture(page))
    shown = {name: summary[name] for name in ("counts", "compute", "before", "recommended")}
    return Result(
        summary=summary,
        page=lambda told: render(dataclasses.replace(page, seconds=told["seconds"])),
        metrics={name: value for name, value in shown.items() if value is not None},
        files=[folder.local / FRONT, *(folder.local / name for name in TABLES)],
        tags=lineage(plan.base),
        inputs=[*inputs(plan.base), *_held_out(plan)],
        model=_model(plan, folder, found),
        children=[_child(plan, trial, row) for trial, row in zip(found.trials, rows, strict=True)],
    )


def state_of(trial: Trial) -> str:
    """Return finished, stopped (by early stopping) or failed."""
    return "finished" if trial.finished else "stopped" if trial.stopped else "failed"


def _rows(plan: Plan, found: Found) -> list[Row]:
    """Return a row a trial, all with the same columns."""
    rows = [_row(plan, found, trial) for trial in found.trials]
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def _row(plan: Plan, found: Found, trial: Trial) -> Row:
    """Return the table's row of a trial; its figures are those of the last measurement."""
    history = trial.history()
    last: Row = dict(history[-1]) if history else {}
    accuracy = last.get("accuracy_pct")
    return {
        "trial": trial.number,
        "state": state_of(trial),
        **found.points[trial.number],
        "steps": last.pop("step", 0),
        "steps_planned": trial.rungs[-1],
        "measurements": len(history),
        "seconds": last.pop("seconds", 0.0),
        "accuracy_loss_points": None if accuracy is None else found.before["accuracy_pct"] - accuracy,
        **{name: value for name, value in last.items() if name not in ("share", "badness")},
        "on_front": trial.number in found.front,
        "recommended": trial.number == found.recommended,
        "failures": len(trial.errors()),
        "error": trial.errors()[-1] if trial.errors() and not trial.finished else None,
    }


def _write_tables(root: Path, rows: list[Row]) -> None:
    table = pa.table({name: _column([row[name] for row in rows]) for name in rows[0]})
    with whole(root / TABLES[0]) as temporary:
        pq.write_table(table, temporary)
    write_json(root / TABLES[1], rows)


def _column(values: list[Any]) -> pa.Array:
    """Return a column; settings of several kinds (2.15 and "auto") stand as text in it."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1 and kinds != {int, float}:
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.array(values)


def _summary(plan: Plan, folder: RunFolder, found: Found, rows: list[Row]) -> dict[str, Any]:
    states = [row["state"] for row in rows]
    best = None if found.recommended is None else rows[found.recommended]
    return {
        "counts": {
            "trials": len(rows),
            **{state: states.count(state) for state in ("finished", "stopped", "failed")},
            "held_out": found.pictures[0],
            "final": found.pictures[1],
            "unreadable": found.unreadable,
        },
        "objective": plan.objective,
        "triggers": {dossier.id: list(dossier.targets) for dossier in plan.dossiers},
        "rule": rule(plan),
        "compute": {
            "steps": sum(row["steps"] for row in rows),
            "steps_of_full_trials": sum(row["steps_planned"] for row in rows),
            "trial_seconds": round(sum(row["seconds"] for row in rows), 1),
        },
        "before": found.before,
        "front": list(found.front),
        "recommended": None
        if best is None
        else {
            "trial": best["trial"],
            "settings": found.points[best["trial"]],
            "objective_pct": best["objective_pct"],
            "accuracy_pct": best["accuracy_pct"],
            "final_before": found.final_before,
            "final_after": found.final_after,
        },
        "suspect": plan.base.model_fingerprint,
        "data": plan.base.data_fingerprint,
        "scan": None
        if plan.base.scan is None
        else {"path": str(plan.base.scan.root), "fingerprint": plan.base.scan.fingerprint},
        "checkpoint": None if found.checkpoint is None else str(found.checkpoint),
        "report": str(folder.report),
        "rows": rows,
    }


def rule(plan: Plan) -> str:
    """Return the rule in words."""
    return (
        f"the lowest objective ({plan.objective}) among trials that ran to their end and lost at most "
        f"{plan.config.max_accuracy_loss_points:g} points of accuracy; of equals the most accurate, then the first"
    )


def _card(plan: Plan, found: Found, summary: dict[str, Any]) -> None:
    assert found.recommended is not None
    assert found.checkpoint is not None
    trial = found.trials[found.recommended]
    told = {
        "steps": trial.rungs[-1],
        "counts": {"used": trial.job.pace.pairs},
        "before": found.final_before,
        "after": found.final_after,
    }
    notes = (
        *found.notes,
        f"These settings are those of trial {trial.number} of a sweep of {len(found.trials)} (fingerprint {plan.fingerprint}). Rule: "
        f"{summary['rule']}. The figures are of pictures that no trial was measured on.",
    )
    write_card(found.checkpoint, _repair(plan, found, trial), told, notes, found.parameters)


def _report(plan: Plan, found: Found, rows: list[Row], rule: str) -> SweepReport:
    names = tuple(plan.config.space)
    return SweepReport(
        title=f"{plan.base.config.method.kind}, {len(rows)} trials",
        objective=plan.objective,
        labelled=found.labelled,
        rule=rule,
        max_loss_points=plan.config.max_accuracy_loss_points,
        before=found.before,
        settings_names=names,
        lines=tuple(
            TrialLine(
                number=row["trial"],
                state=row["state"],
                settings=tuple(short(row[name]) for name in names),
                steps=row["steps"],
                steps_planned=row["steps_planned"],
                objective_pct=row.get("objective_pct"),
                accuracy_pct=row.get("accuracy_pct"),
                resistivity=row.get("resistivity"),
                true_asr_pct=row.get("true_asr_pct"),
                on_front=row["on_front"],
                recommended=row["recommended"],
                error=row["error"],
            )
            for row in rows
        ),
        final_before=found.final_before,
        final_after=found.final_after,
        settings=public_tree(plan.config),
        versions=versions(),
        fingerprint=plan.fingerprint,
        seconds=0.0,
    )


def _child(plan: Plan, trial: Trial, row: Row) -> Child:
    settings = {name: row[name] for name in plan.config.space}
    return Child(
        verb="trial",
        root=trial.folder,
        tree={"settings": settings, "state": row["state"], "error": row["error"]},
        metrics=metrics_of({name: value for name, value in row.items() if name not in settings}),
        files=[trial.folder / HISTORY_FILE, trial.folder / ERRORS_FILE],
    )


def _held_out(plan: Plan) -> list[DataInput]:
    settings = plan.config.held_out
    found = [data_input(settings.data, plan.held_out, "evaluation")]
    return found if settings.final is None else [*found, data_input(settings.final, plan.final, "evaluation")]


def _model(plan: Plan, folder: RunFolder, found: Found) -> ModelRecord | None:
    """Return what is registered of the recommended trial; its figures are of pictures that no trial saw."""
    after = found.final_after
    if found.recommended is None or found.checkpoint is None or after is None:
        return None
    before = found.final_before
    told = {"clipsan.sweep": plan.fingerprint, "clipsan.trial": str(found.recommended)}
    if plan.objective != "resistivity":  # which is no success rate
        told |= {
            # versions are comparable that were measured by the same triggers on the same pictures
            "clipsan.evaluation": fingerprint([plan.objective, *_asked(plan)]),
            "clipsan.asr_pct": f"{objective_pct(after, plan.objective):.4f}",
            "clipsan.asr_before_pct": f"{objective_pct(before, plan.objective):.4f}",
            "clipsan.accuracy_lost_points": f"{before['accuracy_pct'] - after['accuracy_pct']:.4f}",
        }
    repair = _repair(plan, found, found.trials[found.recommended])
    return model_record(repair, folder, found.checkpoint, plan.config.register, told)


def _repair(plan: Plan, found: Found, trial: Trial) -> RepairPlan:
    """Return a trial's repair under the trial's own fingerprint."""
    return dataclasses.replace(plan.repair_of(found.points[trial.number]), fingerprint=trial.fingerprint)


def _asked(plan: Plan) -> list[Any]:
    settings = plan.config
    sources = [data.digest for data in _held_out(plan)]
    triggers = [[dossier.id, dossier.kind, dossier.targets] for dossier in plan.dossiers]
    split = [settings.held_out.final_share, settings.held_out.images, settings.seed]
    return [sources, triggers, split, list(settings.templates), list(plan.classes)]
