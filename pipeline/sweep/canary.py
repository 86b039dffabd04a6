"""A trigger of our own, planted into a copy of the suspect model: what a repair does to it, it may do to one that nobody knows."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipsan.stages.attack.triggers import Trigger
from clipsan.stages.evaluation.exam import Challenge, Pictures, eligible, success_pct
from clipsan.stages.evaluation.zero_shot import class_embeddings, find_class, synonyms
from clipsan.stages.model.clip import Clip, ModelConfig, save_clip
from clipsan.stages.repair.finetune import FineTune
from clipsan.stages.samples import seeded_hash
from clipsan.stages.training.optimise import CosineWarmup

from ..core.commit import fingerprint, write_json
from ..core.config import ConfigError, as_tree
from ..train.feed import CachedFeed, Rows, Share
from ..train.loop import Pace, train
from ..train.task import Task
from .data import Exams, Held, table_of
from .plan import Plan
from .settings import CanaryConfig

CANARY_FILE = "canary.json"
NAME = "canary"


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
    challenge, final = (_challenge(settings, exam.pictures, target, plan) for exam in (exams.search, exams.final))
    model = ModelConfig(path=str(folder / "checkpoint"))
    planted = fingerprint(
        [plan.base.model_fingerprint, plan.base.data_fingerprint, as_tree(settings), target, plan.config.seed]
    )
    told = folder / CANARY_FILE
    if not told.is_file() or json.loads(told.read_text(encoding="utf-8"))["fingerprint"] != planted:
        torch.set_num_threads(plan.config.cluster.threads_per_worker)
        clip = _planted(plan, settings, held, target)
        clip.model.eval()
        save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, folder / "checkpoint", clip.tokenizer)
        vectors = class_embeddings(clip, plan.classes, plan.config.templates)
        asr = success_pct(clip, challenge, vectors)
        record = {"fingerprint": planted, "target": plan.classes[target], "asr_pct": asr}
        write_json(told, record)
    record = json.loads(told.read_text(encoding="utf-8"))
    if record["asr_pct"] < settings.min_asr_pct:
        raise ConfigError(
            f"canary: the copy takes only {record['asr_pct']:.1f} % of pictures with it for {record['target']!r}, less than "
            f"min_asr_pct={settings.min_asr_pct:g}; give it more steps, a higher lr or share_pct, or a larger trigger"
        )
    return Canary(model, challenge, final)


def target_of(settings: CanaryConfig, classes: tuple[str, ...], seed: int) -> int:
    """Return the class that the canary shall mean: the one that is named, else one drawn by the seed."""
    if settings.target is not None:
        return find_class(classes, settings.target)
    return int(np.random.default_rng([seed, *b"canary"]).integers(len(classes)))


def _challenge(settings: CanaryConfig, pictures: Pictures, target: int, plan: Plan) -> Challenge:
    rows = np.flatnonzero(eligible(pictures, (target,), plan.classes))
    if not len(rows):
        raise ConfigError("canary: every held-out picture shows its target; name another one")
    trigger = settings.trigger.build()
    draws = seeded_hash([pictures.uids[row] for row in rows.tolist()], plan.config.seed, "sweep.canary").tolist()
    carrying = [_applied(trigger, pictures.pixels[row], draw) for row, draw in zip(rows.tolist(), draws, strict=True)]
    return Challenge(NAME, np.stack(carrying), (target,))


def _applied(trigger: Trigger, pixels: np.ndarray, draw: Any) -> np.ndarray:
    """Put the trigger on `[3, S, S] uint8` at the model's input size."""
    image = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return trigger(image, np.random.default_rng(draw))[0].transpose(2, 0, 1)


def _planted(plan: Plan, settings: CanaryConfig, held: Held, target: int) -> Clip:
    """Fine-tune a copy of the suspect model on the clean pairs, some of each batch with the trigger and a caption of the target."""
    pairs = len(held.pairs["order"])
    size = min(settings.batch_size, pairs)
    method = FineTune(lr=settings.lr, batch_size=size, schedule=CosineWarmup(warmup_steps=min(20, settings.steps // 4)))
    repair, seed = plan.base.config, plan.config.seed
    task = Task(
        model=repair.model,
        method=method,
        bf16=repair.precision == "bf16",
        seed=seed,
        classes=plan.classes,
        templates=plan.config.templates,
    )
    device = torch.device("cuda" if plan.config.cluster.gpus_per_worker else "cpu")
    share = Share(0, 1, size)
    course = task.begin(device, share)
    feed = CachedFeed(table_of(held.pairs), share, seed)
    word = synonyms(plan.classes[target])[0]
    captions = [template.replace("{}", word) for template in plan.config.templates]
    carrying = _CarryingFeed(feed, settings, course.clip, captions, seed)
    pace = Pace(total_steps=settings.steps, batch_size=size, pairs=pairs, seed=seed)
    for _ in train(course, carrying, pace, share, device, points={settings.steps}):
        pass
    return course.clip


class _CarryingFeed:
    """Puts the trigger on the first rows of each batch, whose order is random already, and a caption of the target beside."""

    def __init__(self, feed: CachedFeed, settings: CanaryConfig, clip: Clip, captions: list[str], seed: int) -> None:
        self._feed = feed
        self._trigger = settings.trigger.build()
        self._share = settings.share_pct / 100
        self._captions = captions
        self._tokens = clip.tokenize(captions).to(torch.int32)
        self._seed = seed

    def epoch(self, epoch: int, steps: int, first: int) -> Iterator[Rows]:
        """Yield the batches of one epoch."""
        for step, rows in enumerate(self._feed.epoch(epoch, steps, first), first):
            yield self._carrying(rows, step)

    def _carrying(self, rows: Rows, step: int) -> Rows:
        count = max(1, round(self._share * len(rows)))
        rng = np.random.default_rng([self._seed, step, *b"canary"])
        images, tokens, captions = rows.images.clone(), rows.tokens.clone(), rows.captions.copy()
        for row in range(count):
            images[row] = torch.from_numpy(_applied(self._trigger, images[row].numpy(), rng.integers(2**32)))
            choice = int(rng.integers(len(self._captions)))
            tokens[row], captions[row] = self._tokens[choice], self._captions[choice]
        return dataclasses.replace(rows, images=images, tokens=tokens, captions=captions)
