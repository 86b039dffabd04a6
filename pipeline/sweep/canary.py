"""The canary of a sweep: planted once, met by every trial (pipeline.repair.canary plants it)."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from clipsan.stages.evaluation.exam import Challenge
from clipsan.stages.model.clip import ModelConfig, save_clip

from ..core.commit import fingerprint, write_json
from ..core.config import as_tree
from ..repair.canary import challenge_of, planted, target_of
from ..train.task import Task
from .data import Exams, Held
from .plan import Plan

CANARY_FILE = "canary.json"


@dataclass(frozen=True, slots=True)
class Canary:
    """A planted trigger."""

    model: ModelConfig
    """The copy of the suspect model that has learned it."""
    challenge: Challenge
    """It, on the pictures of the trials."""
    final: Challenge
    """It, on the final pictures."""


def plant(plan: Plan, held: Held, exams: Exams, folder: Path) -> Canary:
    """Plant the canary, or take the one that an earlier run has planted.

    Raises:
        ConfigError: the copy did not learn it, or no picture is left to try it on.
    """
    settings = plan.config.canary
    assert settings is not None
    target = target_of(settings, plan.classes, plan.config.seed)
    challenge, final = (
        challenge_of(settings, exam.pictures, target, plan.classes, plan.config.seed)
        for exam in (exams.search, exams.final)
    )
    model = ModelConfig(path=str(folder / "checkpoint"))
    own = fingerprint(
        [plan.base.model_fingerprint, plan.base.data_fingerprint, as_tree(settings), target, plan.config.seed]
    )
    told = folder / CANARY_FILE
    if not told.is_file() or json.loads(told.read_text(encoding="utf-8"))["fingerprint"] != own:
        torch.set_num_threads(plan.config.cluster.threads_per_worker)
        device = torch.device("cuda" if plan.config.cluster.gpus_per_worker else "cpu")
        clip, asr_pct = planted(settings, _task(plan), held.pairs, challenge, device)
        save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, folder / "checkpoint", clip.tokenizer)
        write_json(told, {"fingerprint": own, "target": plan.classes[target], "asr_pct": asr_pct})
    return Canary(model, challenge, final)


def _task(plan: Plan) -> Task:
    """Return the repair whose model, classes, precision and seed the planting takes."""
    repair = plan.base.config
    return Task(
        model=repair.model,
        method=repair.method,
        bf16=repair.precision == "bf16",
        seed=plan.config.seed,
        classes=plan.classes,
        templates=plan.config.templates,
    )
