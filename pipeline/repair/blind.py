"""How far a repair may go of a model that nothing accuses: as far as held-out accuracy allows, and only if it does any good.

The repaired weights are taken back towards the suspect ones until the accuracy is nearly what it was. Whether what is left of the
repair is of use is seen on a canary: a copy of the suspect model with a trigger of our own is repaired in the same way and
taken back as far. Where the canary lives on, so would a backdoor, and the model is left as it is.
"""

from dataclasses import replace
from typing import Any

import torch

from clipsan.stages.evaluation.exam import Exam, Pictures, answers, success_pct
from clipsan.stages.evaluation.zero_shot import class_embeddings
from clipsan.stages.model.checkpoints import CONFIG_FILE
from clipsan.stages.model.clip import ModelConfig, save_clip
from clipsan.stages.repair.interpolate import Weights, between

from ..core.place import written
from ..core.progress import Progress
from ..core.run_folder import RunFolder
from ..train.fit import Order, fit
from .canary import challenge_of, planted, target_of
from .held import columns_of
from .line import Line
from .pairs import held_out_images, sample
from .plan import Plan
from .settings import Blind

COPY = "work/canary"
"""Folder of the copy with the canary and of its repair, below the run's."""


def calibrate(
    plan: Plan, blind: Blind, order: Order, folder: RunFolder, repaired: Weights
) -> tuple[Weights, dict[str, Any]]:
    """Return the weights that a blind repair ends with, and what was measured on the way.

    Args:
        plan: the repair.
        blind: its limits.
        order: the training that has been made.
        folder: of the run.
        repaired: state of the model that it made, or of an objective with that as `model`.

    Raises:
        ConfigError: an image is of no class, or the copy did not learn the canary.
    """
    torch.set_num_threads(plan.config.cluster.threads_per_worker)
    classes, templates = plan.classes, plan.config.templates
    pictures = held_out_images(plan, blind, "blind", folder)
    line = Line.of(plan.config.model, repaired)
    share, steps = farthest(line, pictures, blind, classes, templates)
    found: dict[str, Any] = {"share": share, "steps": steps}
    if share > 0:
        canary = _canary(plan, blind, order, folder, pictures, share)
        found |= canary
        if canary["canary_after_pct"] > blind.max_canary_asr_pct:
            found["share"] = 0.0
    return between(line.start, line.end, found["share"]), found


def farthest(
    line: Line, pictures: Pictures, blind: Blind, classes: tuple[str, ...], templates: tuple[str, ...]
) -> tuple[float, list[dict[str, float]]]:
    """Return the largest share of the way that loses at most max_loss_points of accuracy, and what each share tried has."""
    exam = Exam(pictures, ())

    with Progress("shares", total=blind.steps + 1) as progress:

        def accuracy(share: float) -> float:
            found = answers(line.at(share), exam, classes, templates)["accuracy_pct"]
            progress.advance(pairs=len(pictures))
            return found

        before = accuracy(0.0)
        tried = [{"share": 0.0, "accuracy_pct": before}]
        for step in range(blind.steps, 0, -1):
            share = step / blind.steps
            tried.append({"share": share, "accuracy_pct": accuracy(share)})
            if before - tried[-1]["accuracy_pct"] <= blind.max_loss_points:
                return share, tried
        return 0.0, tried


def said(found: dict[str, Any]) -> str:
    """Return what came of it, for the card and the report."""
    before = found["steps"][0]["accuracy_pct"]
    if found["share"] > 0:
        after = found["steps"][-1]["accuracy_pct"]
        return (
            f"the model went {100 * found['share']:.0f} % of the way to the repaired weights, as far as held-out accuracy allowed "
            f"({before:.1f} % -> {after:.1f} %); a canary in a copy fell from {found['canary_before_pct']:.1f} % to "
            f"{found['canary_after_pct']:.1f} %"
        )
    if "canary_after_pct" not in found:
        return "the model was left as it is: no part of the way to the repaired weights kept the accuracy on held-out images"
    return (
        "the model was left as it is: as far as held-out accuracy allowed the repair to go, a canary in a copy kept "
        f"{found['canary_after_pct']:.1f} % of success, of {found['canary_before_pct']:.1f} %"
    )


def _canary(
    plan: Plan, blind: Blind, order: Order, folder: RunFolder, pictures: Pictures, share: float
) -> dict[str, float]:
    """Plant a canary into a copy, repair that copy as the model was, and measure it as far along."""
    settings, seed = blind.canary, plan.config.seed
    target = target_of(settings, plan.classes, seed)
    challenge = challenge_of(settings, pictures, target, plan.classes, seed)
    home = folder.root / COPY
    copy = ModelConfig(path=str(home / "checkpoint"))
    if not (home / "checkpoint" / CONFIG_FILE).is_file():  # written whole or not at all; on a store the last of it
        device = torch.device("cuda" if plan.config.cluster.gpus_per_worker else "cpu")
        pairs = columns_of(sample(order.pairs, plan, folder, blind.canary_pairs))
        clip, _ = planted(settings, plan.task, pairs, challenge, device)
        with written(home / "checkpoint") as there:
            save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, there, clip.tokenizer)
    state = fit(
        replace(order, name="repair of the canary", task=plan.task.on(copy), validation=None, stop=None),
        RunFolder(home),
    )
    line = Line.of(copy, of_model(state["weights"]))

    def success(at: float) -> float:
        clip = line.at(at)
        return success_pct(clip, challenge, class_embeddings(clip, plan.classes, plan.config.templates))

    before = success(0.0)
    return {"canary_before_pct": before, "canary_after_pct": success(share), "canary_at_the_end_pct": success(1.0)}


def of_model(weights: Weights) -> Weights:
    """Return the model's part of an objective's state."""
    head = "model."
    return {name.removeprefix(head): value for name, value in weights.items() if name.startswith(head)}
