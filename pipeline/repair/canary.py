"""A trigger of our own, planted into a copy of a suspect model: what a repair does to it, it may do to one that nobody knows."""

import dataclasses
import tempfile
from collections.abc import Iterator
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

from ..core.config import ConfigError
from ..core.progress import Progress
from ..train.feed import CachedFeed, Captions, Rows, Share
from ..train.loop import Pace, train
from ..train.task import Task
from .held import Columns, table_of
from .settings import CanaryConfig

NAME = "canary"
ROUNDS = 4
"""Plantings at most, each from where the last one ended: how many steps a canary takes depends on the model."""


def target_of(settings: CanaryConfig, classes: tuple[str, ...], seed: int) -> int:
    """Return the class that the canary shall mean: the one that is named, else one drawn by the seed."""
    if settings.target is not None:
        return find_class(classes, settings.target)
    return int(np.random.default_rng([seed, *b"canary"]).integers(len(classes)))


def challenge_of(
    settings: CanaryConfig, pictures: Pictures, target: int, classes: tuple[str, ...], seed: int
) -> Challenge:
    """Return the canary on every picture that does not show its target.

    Raises:
        ConfigError: all of them do.
    """
    rows = np.flatnonzero(eligible(pictures, (target,), classes))
    if not len(rows):
        raise ConfigError("canary: every held-out picture shows its target; name another one")
    trigger = settings.trigger.build()
    draws = seeded_hash([pictures.uids[row] for row in rows.tolist()], seed, "sweep.canary").tolist()
    carrying = [_applied(trigger, pictures.pixels[row], draw) for row, draw in zip(rows.tolist(), draws, strict=True)]
    return Challenge(NAME, np.stack(carrying), (target,))


def planted(
    settings: CanaryConfig, task: Task, columns: Columns, challenge: Challenge, device: torch.device
) -> tuple[Clip, float]:
    """Fine-tune a copy of the suspect model on clean pairs, some of each batch with the trigger and a caption of the target.

    Where it has not learned the canary it is fine-tuned again from there, ROUNDS times at most.

    Args:
        settings: of the canary.
        task: the repair; its model, classes, precision and seed are taken.
        columns: the pairs.
        challenge: the canary on held-out pictures, with its one target.
        device: where it is trained.

    Returns:
        The copy, and the percentage of the challenge's pictures that it takes for the target.

    Raises:
        ConfigError: that is below min_asr_pct after the last round.
    """
    (target,) = challenge.targets
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(ROUNDS):
            clip = _fine_tuned(settings, task, columns, target, device)
            asr_pct = success_pct(clip, challenge, class_embeddings(clip, task.classes, task.templates))
            if asr_pct >= settings.min_asr_pct:
                return clip, asr_pct
            save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, scratch, clip.tokenizer)
            task = dataclasses.replace(task.on(ModelConfig(path=scratch)), seed=task.seed + 1)  # other draws
    raise ConfigError(
        f"canary: after {ROUNDS} x {settings.steps} steps the copy takes only {asr_pct:.1f} % of pictures with it for "
        f"{task.classes[target]!r}, less than min_asr_pct={settings.min_asr_pct:g}; give it more steps, a higher lr or share_pct, or a "
        "larger trigger"
    )


def _fine_tuned(settings: CanaryConfig, task: Task, columns: Columns, target: int, device: torch.device) -> Clip:
    pairs = len(columns["order"])
    size = min(settings.batch_size, pairs)
    method = FineTune(lr=settings.lr, batch_size=size, schedule=CosineWarmup(warmup_steps=min(20, settings.steps // 4)))
    share = Share(0, 1, size)
    course = dataclasses.replace(task, method=method).begin(device, share)
    feed = CachedFeed(table_of(columns), share, task.seed)
    word = synonyms(task.classes[target])[0]
    captions = [template.replace("{}", word) for template in task.templates]
    carrying = _CarryingFeed(feed, settings, course.clip, captions, task.seed)
    pace = Pace(total_steps=settings.steps, batch_size=size, pairs=pairs, seed=task.seed)
    with Progress("canary", total=settings.steps, unit="steps") as progress:
        steps = train(
            course,
            carrying,
            pace,
            share,
            device,
            points={settings.steps},
            tell=lambda step, loss: progress.advance(pairs=size),
        )
        for _ in steps:
            pass
    course.clip.model.eval()
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
        images, tokens, captions = rows.images.clone(), rows.tokens.clone(), list(rows.captions)
        for row in range(count):
            images[row] = torch.from_numpy(_applied(self._trigger, images[row].numpy(), rng.integers(2**32)))
            choice = int(rng.integers(len(self._captions)))
            tokens[row], captions[row] = self._tokens[choice], self._captions[choice]
        return dataclasses.replace(rows, images=images, tokens=tokens, captions=Captions.of(captions))


def _applied(trigger: Trigger, pixels: np.ndarray, draw: Any) -> np.ndarray:
    """Put the trigger on `[3, S, S] uint8` at the model's input size."""
    image = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return trigger(image, np.random.default_rng(draw))[0].transpose(2, 0, 1)
