"""`clipsan repair`: a backdoored model in, a repaired one out, measured before and after on the same held-out data."""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from clipsan.stages.model.clip import ModelConfig, load_clip, save_clip
from clipsan.stages.training.objective import Objective

from ..core.place import AnyPath, written
from ..core.run_folder import RunFolder, read_run_yaml
from ..core.verb import Job, Result, Summary, Verb
from ..evaluate import verb as evaluate
from ..train.fit import fit
from .blind import calibrate, said
from .gentle import gentlest
from .gentle import said as gentle_said
from .lineage import inputs, lineage, measured, model_record
from .output import CARD, write_card
from .pairs import prepare
from .plan import BEFORE, Plan, make_verb_plan
from .settings import Gentle, RepairConfig
from .unseen import unseen

HEADLINES = ("clean_accuracy_pct", "asr_pct", "accuracy_under_trigger_pct", "rebound_asr_pct")
"""Figures of the closing line."""


def run(plan: Plan, job: Job) -> Result:
    """Repair, or go on repairing where a kill left off.

    Raises:
        ConfigError: too few pairs can be used, or a label names no class.
    """
    settings, folder = plan.config, job.folder
    target = folder.root / plan.target
    for note in plan.notes:
        sys.stderr.write(f"repair: {note}\n")
    order, found, counts = prepare(plan, folder)
    before = _evaluated(plan, settings.model, folder.root / BEFORE)
    started = time.monotonic()
    state = fit(order, folder)
    training_s = time.monotonic() - started
    objective = plan.task.objective()
    objective.load_state_dict(state["weights"])
    held_back = None
    if plan.blind is not None:
        weights, held_back = calibrate(plan, plan.blind, order, folder, objective.model.state_dict())
        objective.model.load_state_dict(weights)
    taken_back = None
    if plan.gentle is None:
        with written(target) as there:
            objective.export(there)
    else:
        taken_back = _export_gently(plan, plan.gentle, folder, objective)
    after = _evaluated(plan, _repaired(plan, target), folder.root / "evaluate-after")
    judged = None
    if settings.unseen is not None:
        judged = unseen(plan, settings.unseen, folder, (settings.model, _repaired(plan, target)))
    notes = (*plan.notes, *objective.notes)
    notes += () if held_back is None else (said(held_back),)
    notes += () if taken_back is None else (gentle_said(taken_back),)
    summary = {
        "training_seconds": round(training_s, 1),
        "counts": counts,
        "rejected_reasons": found.reasons,
        "method": settings.method.kind,
        "parameters": dict(zip(("trained", "total"), objective.parameter_counts, strict=True)),
        "steps": order.pace.steps_after(len(state["history"])),
        "suspect": plan.model_fingerprint,
        "data": plan.data_fingerprint,
        "scan": None if plan.scan is None else {"path": str(plan.scan.root), "fingerprint": plan.scan.fingerprint},
        "notes": list(notes),
        "blind": held_back,
        "gentle": taken_back,
        "unseen": judged,
        "checkpoint": str(target),
        "before": before,
        "after": after,
        "history": state["history"],
    }
    write_card(target, plan, summary, notes, objective.parameter_counts)
    return _result(plan, folder, summary)


def _result(plan: Plan, folder: RunFolder, summary: Summary) -> Result:
    target = folder.root / plan.target
    shown = {name: summary[name] for name in ("counts", "steps", "training_seconds", "before", "after")}
    return Result(
        summary=summary,
        metrics={name: value for name, value in shown.items() if value is not None},
        files=[target / CARD],
        tags=lineage(plan),
        inputs=inputs(plan),
        model=model_record(plan, folder, target, plan.config.register, measured(plan, summary)),
    )


def _export_gently(plan: Plan, rule: Gentle, folder: RunFolder, objective: Objective[Any]) -> dict[str, Any]:
    """Write the model as far along as it may be, and return what was measured on the way."""
    with tempfile.TemporaryDirectory() as home:
        # some methods change the weights only as they are written
        objective.export(Path(home) / "checkpoint")
        whole = load_clip(ModelConfig(path=str(Path(home) / "checkpoint")))
    clip, found = gentlest(plan, rule, folder, whole.model.state_dict())
    with written(folder.root / plan.target) as there:
        save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, there, clip.tokenizer)
    return found


def _repaired(plan: Plan, target: AnyPath) -> ModelConfig:
    if plan.is_adapter:
        model = plan.config.model
        return ModelConfig(name=model.name, config=model.config, path=model.path, adapter=str(target))
    return ModelConfig(path=str(target))


def _evaluated(plan: Plan, model: ModelConfig, out: AnyPath) -> dict[str, Any] | None:
    return None if plan.config.evaluate is None else evaluate.VERB.start(plan.evaluation(model, out))["evaluation"]


def is_whole(plan: Plan, folder: RunFolder) -> bool:
    """Whether the repaired model is there, and what both models were measured on is what it was."""
    judged = RunFolder(folder.root / BEFORE)
    measured_on = read_run_yaml(judged.root)["fingerprint"] if judged.is_finished else plan.judging_fingerprint
    return (folder.root / plan.target / CARD).is_file() and measured_on == plan.judging_fingerprint


def closing(summary: Summary) -> str:
    """Return the last line of a repair."""
    before, after = summary["before"] or {}, summary["after"] or {}
    figures = ", ".join(f"{name} {before[name]:.2f} -> {after[name]:.2f}" for name in after if name in HEADLINES)
    return (
        f"repair: {summary['counts']['used']:,} pairs, {summary['steps']:,} steps of {summary['method']} in "
        f"{summary['seconds']:.0f} s; {figures or 'not evaluated'}; look at {summary['checkpoint']}"
    )


VERB = Verb(
    name="repair",
    config=RepairConfig,
    plan=make_verb_plan,
    run=run,
    closing=closing,
    on_stores=True,
    is_whole=is_whole,
    again=_result,
)
