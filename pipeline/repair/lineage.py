"""Where a repaired model comes from, as MLflow and its registry are told."""

from collections.abc import Mapping
from typing import Any

from clipsan.stages.model.clip import load_clip, save_clip
from clipsan.stages.sources import list_units

from ..core.place import AnyPath, below, place_of, written
from ..core.run_folder import RunFolder
from ..tracking.record import DataInput, ModelRecord, data_input
from .output import CARD
from .plan import Plan
from .unseen import worst


def lineage(plan: Plan) -> dict[str, str]:
    """Return the tags that say where a repaired model comes from (pipeline.tracking.record has the scheme)."""
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
        data = plan.evaluation(plan.config.model, place_of(plan.config.out)).data
        found.append(data_input(data, list_units(data), "evaluation"))
    return found


def measured(plan: Plan, summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags by which versions are compared (pipeline.tracking.registry has the rule); none where nothing was measured."""
    before, after = summary["before"] or {}, summary["after"] or {}
    if not before or not after:
        return {}
    asr, was = after.get("asr_pct"), before.get("asr_pct")
    if summary["unseen"] is not None:
        # triggers that the repair trained on, which the evaluation then puts on, make no champion
        judge = worst(summary["unseen"])
        asr, was = (None, None) if judge is None else (judge["after_pct"], judge["before_pct"])
    if asr is None or was is None:
        return {}
    asked = {
        "clipsan.max_asr_pct": plan.config.max_asr_pct,
        "clipsan.max_loss_points": plan.config.max_loss_points,
    }
    return {
        "clipsan.evaluation": plan.evaluation_fingerprint(),
        "clipsan.asr_pct": f"{asr:.4f}",
        "clipsan.asr_before_pct": f"{was:.4f}",
        "clipsan.accuracy_lost_points": f"{before['clean_accuracy_pct'] - after['clean_accuracy_pct']:.4f}",
        **{name: f"{most:.4f}" for name, most in asked.items() if most is not None},
    }


def model_record(
    plan: Plan, folder: RunFolder, target: AnyPath, name: str | None, more: Mapping[str, str]
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
    artifacts: dict[str, AnyPath] = {"checkpoint": target}
    if plan.is_adapter:
        base = load_clip(plan.config.model)
        with written(folder.work / "suspect") as there:
            save_clip(base.model, base.model_cfg, base.preprocess_cfg, there, base.tokenizer)
        artifacts = {"checkpoint": folder.work / "suspect", "adapter": target}
    return ModelRecord(
        name=name,
        artifacts={key: str(below(path, folder.root)) for key, path in artifacts.items()},
        card=str(below(target / CARD, folder.root)),
        tags={**lineage(plan), "clipsan.fingerprint": plan.fingerprint, **more},
    )
