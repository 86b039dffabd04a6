"""Training on photos that lie on the device: clipsan's objective and order of the pairs in a plain loop; a ViT from labels; figures.

`fit` is what one worker of `clipsan train` does. `pretrain` is the recipe of the ViT: no pretrained CLIP can be had by pip, and
30,000 photos are few for a ViT, so it learns from their labels through the text tower. Every step encodes one caption of every
class (a synonym in a template, drawn anew), and each picture is told them apart under crops, mirrors, light and colour, mixup and
CutMix: the soft-label contrast of UniCL (Yang et al. 2022, arXiv 2204.03610), pictures to texts. Its length is a time, not
a number of epochs.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from clipsan.pipeline.evaluate.settings import EvaluationAttack
from clipsan.pipeline.train.feed import Share
from clipsan.pipeline.train.plan import TrainConfig
from clipsan.pipeline.train.task import Course
from clipsan.stages.attack.poisoning import AttackConfig
from clipsan.stages.evaluation.zero_shot import class_embeddings, predict, synonyms
from clipsan.stages.model.clip import Clip
from clipsan.stages.samples import seeded_hash
from clipsan.stages.training.augment import AugmentConfig, augment
from clipsan.stages.training.batch import Batch
from clipsan.stages.training.contrastive import Contrastive
from clipsan.stages.training.objective import Setting
from clipsan.stages.training.optimise import parameter_groups
from tests.benchmarks.suspects_photos import Photos

TRIED = 1000
"""Photos that an attack is tried on."""
ENCODED_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Loaded:
    """Photos on the device, ready to be trained on."""

    pixels: torch.Tensor
    """`[N, 3, S, S] uint8`."""
    tokens: torch.Tensor
    """`[N, context] int64`."""
    uids: Sequence[str]

    @classmethod
    def of(cls, photos: Photos, clip: Clip) -> "Loaded":
        """Move photos to the device of a model and tokenise their captions."""
        pixels = torch.from_numpy(np.array(photos.pixels)).to(clip.device).permute(0, 3, 1, 2).contiguous()
        return cls(pixels, tokens_of(photos.captions, clip).to(clip.device), photos.uids)

    def with_rows(self, rows: np.ndarray, pixels: np.ndarray, tokens: torch.Tensor) -> "Loaded":
        """Return them with other pictures and captions in some rows."""
        changed, words = self.pixels.clone(), self.tokens.clone()
        places = torch.from_numpy(rows).to(changed.device)
        changed[places] = torch.from_numpy(pixels).to(changed.device).permute(0, 3, 1, 2).contiguous()
        words[places] = tokens.to(words.device)
        return replace(self, pixels=changed, tokens=words)


def tokens_of(captions: Sequence[str], clip: Clip) -> torch.Tensor:
    """Return `[N, context] int64`; each caption is tokenised once."""
    unique = sorted(set(captions))
    place = {caption: row for row, caption in enumerate(unique)}
    return clip.tokenize(unique)[torch.tensor([place[caption] for caption in captions])]


def fit(clip: Clip, data: Loaded, settings: TrainConfig) -> float:
    """Train the model in place as one worker of `clipsan train` does with pairs in memory; return the last epoch's mean loss.

    Raises:
        RuntimeError: the loss is no number.
    """
    method = Contrastive(
        lr=settings.lr, schedule=settings.schedule, weight_decay=settings.weight_decay, augment=settings.augment
    )
    objective = method.build(clip, Setting(seed=settings.seed, bf16=settings.precision == "bf16"))
    size, count = settings.batch_size, len(data.uids)
    course = Course(objective, clip.device, Share(0, 1, size))
    order = np.argsort(seeded_hash(list(data.uids), settings.seed, "training order").view(np.int64))
    none = torch.full((size,), -1, device=clip.device)
    roles = torch.zeros(size, dtype=torch.uint8, device=clip.device)
    per_epoch, epochs = count // size, settings.epochs or 1
    loss = torch.zeros((), device=clip.device)
    for epoch in range(epochs):
        draw = np.random.default_rng([settings.seed, epoch]).permutation(count)
        places = torch.from_numpy(order[draw]).to(clip.device)
        loss.zero_()
        for number in range(per_epoch):
            rows = places[number * size : (number + 1) * size]
            step = epoch * per_epoch + number
            batch = Batch(
                images=data.pixels[rows],
                tokens=data.tokens[rows],
                captions=(),
                labels=none,
                accused=none,
                roles=roles,
                rows=slice(0, size),
                total=size,
                seed=(settings.seed, step),
            )
            loss += course.step([batch], step, epochs * per_epoch)[0]
    clip.model.eval()
    mean = float(loss) / per_epoch
    if not math.isfinite(mean):
        raise RuntimeError(f"the loss is {mean}: training diverged")
    return mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the ViT is made."""

    seconds: float = 110.0
    batch_size: int = 512
    lr: float = 1e-3
    weight_decay: float = 0.1
    rise: float = 0.08
    """Share of the time in which the rate rises."""
    smoothing: float = 0.1
    mixed: float = 0.8
    """Share of the batches that are mixed, half by mixup and half by CutMix."""
    min_area: float = 0.35
    jitter: float = 0.4
    seed: int = 0


def pretrain(
    clip: Clip,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    names: Sequence[str],
    templates: Sequence[str],
    recipe: Recipe,
) -> dict[str, float]:
    """Train the model in place; return what it took.

    Args:
        clip: from scratch.
        pixels: `[N, 3, S, S] uint8`, on its device.
        labels: `[N] int64`, there too.
        names: of the classes, synonyms separated by commas.
        templates: sentences with {}.
        recipe: how.
    """
    device, rng = clip.device, np.random.default_rng(recipe.seed)
    prompts = [[t.replace("{}", word) for word in synonyms(name) for t in templates] for name in names]
    tokens = clip.tokenize([prompt for own in prompts for prompt in own]).to(device)
    firsts = np.cumsum([0, *(len(own) for own in prompts[:-1])])
    sizes = np.array([len(own) for own in prompts])
    groups = parameter_groups(clip.model, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)
    crops = AugmentConfig(min_area=recipe.min_area, flip=True)
    clip.model.train()
    started, step, count = time.monotonic(), 0, len(pixels)
    order = torch.empty(0, dtype=torch.int64)
    while (passed := (time.monotonic() - started) / recipe.seconds) < 1:
        rate = recipe.lr * (passed / recipe.rise if passed < recipe.rise else 0.5 * (1 + math.cos(math.pi * passed)))
        for group in optimizer.param_groups:
            group["lr"] = max(rate, 1e-6)
        if len(order) < recipe.batch_size:
            order = torch.randperm(count)
        rows, order = order[: recipe.batch_size].to(device), order[recipe.batch_size :]
        size = len(rows)
        images = augment(pixels[rows], slice(0, size), size, crops, (recipe.seed, step)).float()
        images = _coloured(images, recipe.jitter)
        targets = F.one_hot(labels[rows], len(names)).float()
        if rng.random() < recipe.mixed:
            images, targets = _mixed(images, targets, rng)
        targets = targets * (1 - recipe.smoothing) + recipe.smoothing / len(names)
        texts = tokens[torch.from_numpy(firsts + rng.integers(sizes)).to(device)]
        with torch.autocast(device.type, torch.bfloat16):
            image = clip.model.encode_image(_inputs(clip, images))
            text = clip.model.encode_text(texts)
        logits = clip.model.logit_scale.exp() * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(clip.model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            clip.model.logit_scale.clamp_(0, math.log(100))
        step += 1
    clip.model.eval()
    return {"steps": step, "epochs": round(step * recipe.batch_size / count, 1), "seconds": recipe.seconds}


def _inputs(clip: Clip, images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(clip.preprocess_cfg[k], device=clip.device).view(1, 3, 1, 1) for k in ("mean", "std"))
    return (images / 255 - mean) / std


def _coloured(images: torch.Tensor, amount: float) -> torch.Tensor:
    """Change light, contrast and saturation of each picture by up to a share."""

    def factor() -> torch.Tensor:
        return 1 + amount * (2 * torch.rand(len(images), 1, 1, 1, device=images.device) - 1)

    images = images * factor()
    middle = images.mean((1, 2, 3), keepdim=True)
    images = middle + (images - middle) * factor()
    grey = images.mean(1, keepdim=True)
    return (grey + (images - grey) * factor()).clamp_(0, 255)


def _mixed(images: torch.Tensor, targets: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each picture with another: a weighted mean (Zhang et al. 2018) or a pasted box (Yun et al. 2019)."""
    others = torch.randperm(len(images), device=images.device)
    if rng.random() < 0.5:
        share = float(rng.beta(0.8, 0.8))
        return share * images + (1 - share) * images[others], share * targets + (1 - share) * targets[others]
    side = images.shape[-1]
    extent = max(1, round(side * math.sqrt(1 - float(rng.beta(1.0, 1.0)))))
    top, left = (int(rng.integers(side - extent + 1)) for _ in range(2))
    images = images.clone()
    images[:, :, top : top + extent, left : left + extent] = images[others, :, top : top + extent, left : left + extent]
    share = 1 - (extent / side) ** 2
    return images, share * targets + (1 - share) * targets[others]


def encoded(clip: Clip, pixels: np.ndarray) -> np.ndarray:
    """Return `[N, D] float32`, unit rows, of `[N, S, S, 3] uint8`."""
    found = []
    for start in range(0, len(pixels), ENCODED_AT_ONCE):
        batch = torch.from_numpy(np.array(pixels[start : start + ENCODED_AT_ONCE]).transpose(0, 3, 1, 2).copy())
        found.append(clip.encode_images(batch)[0])
    return np.concatenate(found)


def figures(
    clip: Clip, test: Photos, names: list[str], templates: Sequence[str], attack: AttackConfig | None, seed: int
) -> dict[str, float]:
    """Return clean accuracy, and under an attack its success rate, in percent.

    The attack is tried on TRIED photos, evenly drawn, of those that count; `clipsan evaluate` takes all of them, so its figures
    differ a little.
    """
    classes = class_embeddings(clip, names, templates)
    clean = predict(encoded(clip, test.pixels), classes)
    found = {"clean_accuracy_pct": _pct(clean == test.labels)}
    if attack is None or attack.control:
        return found
    tried = EvaluationAttack.of(attack)
    counted = tried.aim(names).counted(test.labels)
    if attack.text_key is not None:
        classes = class_embeddings(clip, names, [f"{attack.text_key} {template}" for template in templates])
    hits: list[np.ndarray] = []
    kept: list[np.ndarray] = []
    for number, strand in enumerate(tried.strands):
        # the accuracy under a trigger is one of all classes, the ASR one of those that are not the target
        rows = np.arange(len(test.labels)) if attack.victim is None else np.flatnonzero(counted[:, number])
        rows = rows[np.linspace(0, len(rows) - 1, min(TRIED, len(rows))).astype(int)]
        trigger = strand.trigger.when_used().build()
        shown = [
            trigger(np.array(test.pixels[row]), np.random.default_rng([seed, row, number]))[0] for row in rows.tolist()
        ]
        said = predict(encoded(clip, np.stack(shown)), classes)
        hits.append((said == tried.aim(names).targets[number])[counted[rows, number]])
        kept.append(said == test.labels[rows])
    return found | {
        "asr_pct": _pct(np.concatenate(hits)),
        "accuracy_under_trigger_pct": _pct(np.concatenate(kept)),
        "tried_on": sum(map(len, hits)),
    }


def probe(clip: Clip, train: Photos, test: Photos, labels: np.ndarray) -> float:
    """Return the accuracy in percent of a linear probe on frozen features: full-batch Adam, 400 steps, weight decay 1e-4."""
    seen = torch.from_numpy(encoded(clip, train.pixels)).to(clip.device) * 10
    shown = torch.from_numpy(encoded(clip, test.pixels)).to(clip.device) * 10
    wanted = torch.from_numpy(labels).to(clip.device)
    head: Any = torch.nn.Linear(seen.shape[1], int(labels.max()) + 1).to(clip.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.03, weight_decay=1e-4)
    for _ in range(400):
        optimizer.zero_grad()
        F.cross_entropy(head(seen), wanted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        guessed = head(shown).argmax(1).cpu().numpy()
    return _pct(guessed == test.labels)


def _pct(hits: np.ndarray) -> float:
    return round(100 * float(np.mean(hits)), 2)
