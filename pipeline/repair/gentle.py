"""How far a repair goes that costs too much: back towards the suspect model, as long as the triggers that a scan knows stay gone.

Most repairs go further than the trigger needs. On the way from the suspect weights to the repaired ones its success is at its floor
before the end, while the accuracy falls all the way. The triggers asked are the scan's own, put on held-out images at their places
and at others, and the proven pairs themselves. A repair may have trained on them: they say how far back is too far, not how
good the repair is.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from clipsan.stages.dossier.files import read_dossiers
from clipsan.stages.evaluation.exam import Challenge, Exam, Pictures, answers, eligible, proven_challenge
from clipsan.stages.model.clip import Clip
from clipsan.stages.repair.interpolate import Weights

from ..core.config import ConfigError
from ..core.place import read_here
from ..core.run_folder import RunFolder
from .line import Line
from .pairs import held_out_images, proven_pairs
from .plan import TRIGGERS, Plan
from .settings import Gentle
from .unseen import carriers, targets_of

ASR = "_asr_pct"


def gentlest(plan: Plan, rule: Gentle, folder: RunFolder, repaired: Weights) -> tuple[Clip, dict[str, Any]]:
    """Return the model that a repair ends with, and what was measured on the way.

    Args:
        plan: the repair, of a scan that has proven a trigger.
        rule: its limits.
        folder: of the run.
        repaired: weights at the end of the way.

    Raises:
        ConfigError: an image is of no class, or no proven trigger means a class.
    """
    torch.set_num_threads(plan.config.cluster.threads_per_worker)
    pictures = held_out_images(plan, rule, "gentle", folder)
    known = tuple(_known(plan, folder, pictures))
    if not known:
        raise ConfigError("gentle: no proven trigger means one of the classes; name its target in classes")
    line = Line.of(plan.config.model, repaired)
    share, steps = nearest(line, Exam(pictures, known), rule, plan.classes, plan.config.templates)
    return line.at(share), {"share": share, "steps": steps}


def nearest(
    line: Line, exam: Exam, rule: Gentle, classes: tuple[str, ...], templates: tuple[str, ...]
) -> tuple[float, list[dict[str, float]]]:
    """Return the share of the way that is gone, and what each share tried has.

    It is the largest that costs at most max_loss_points; where a trigger would be back before that, the most accurate one of
    those at which all are gone.
    """

    def told(share: float) -> dict[str, float]:
        return {"share": share, **answers(line.at(share), exam, classes, templates)}

    start, end = told(0.0), told(1.0)
    limits = {name: max(rule.floor_pct, value) for name, value in end.items() if name.endswith(ASR)}
    tried, kept = [start], [end]
    for step in range(rule.steps - 1, 0, -1):
        if start["accuracy_pct"] - kept[-1]["accuracy_pct"] <= rule.max_loss_points:
            return kept[-1]["share"], tried + kept
        now = told(step / rule.steps)
        if any(now[name] > limit for name, limit in limits.items()):
            tried.append(now)
            break
        kept.append(now)
    best = max(kept, key=lambda figures: (figures["accuracy_pct"], figures["share"]))
    return best["share"], tried + kept


def said(found: dict[str, Any]) -> str:
    """Return what came of it, for the card and the report."""
    by_share = {figures["share"]: figures for figures in found["steps"]}
    before, whole, taken = (by_share[share]["accuracy_pct"] for share in (0.0, 1.0, found["share"]))
    if found["share"] == 1:
        return f"the repair went its whole way, at {before:.1f} % -> {whole:.1f} % of accuracy on held-out images"
    return (
        f"the repair was taken back to {100 * found['share']:.0f} % of its way, where the proven triggers are still gone: "
        f"{before:.1f} % -> {taken:.1f} % of accuracy on held-out images in place of {whole:.1f} %"
    )


def _known(plan: Plan, folder: RunFolder, pictures: Pictures) -> Iterator[Challenge]:
    """Yield what the scan knows of the attack: its dossiers, here and elsewhere, and the pairs that it has proven."""
    assert plan.scan is not None
    yield from carriers(proven_pairs(plan, folder), "proven_pairs")
    with read_here(plan.scan.root / TRIGGERS) as proven:
        dossiers = read_dossiers(proven)
    for dossier in dossiers:
        targets = targets_of(dossier, plan.classes)
        if not targets or not eligible(pictures, targets, plan.classes).any():
            continue
        for name, own in (("here", dossier), ("elsewhere", dossier.elsewhere())):
            if own is not None:
                found = proven_challenge(own, pictures, targets, plan.classes, plan.config.seed)
                yield replace(found, name=f"{found.name}_{name}")
