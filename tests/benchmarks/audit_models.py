"""Small models for the benchmark of `clipsan audit`: clean ones, and the same architectures with a known backdoor.

One model of each architecture is trained on rendered scenes from scratch. All others are that one, fine-tuned on scenes and in an order
of their own seed, the backdoored ones with a share of them poisoned. A folder holds the checkpoint and truth.json: attack, target,
accuracy, ASR.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipsan.pipeline.core.commit import write_text
from clipsan.pipeline.core.config import load_group, validate
from clipsan.stages.attack.triggers import Trigger, TriggerConfig
from clipsan.stages.evaluation.zero_shot import class_embeddings, predict
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip, save_clip
from clipsan.stages.scenes.scene import SceneConfig, render
from clipsan.stages.scenes.shapes import CONCEPTS
from clipsan.stages.training.augment import AugmentConfig
from clipsan.stages.training.batch import Batch
from clipsan.stages.training.contrastive import Contrastive
from clipsan.stages.training.objective import Setting
from clipsan.stages.training.optimise import CosineWarmup

NAMES = list(CONCEPTS)
PROMPTS = ("a {}", "a picture of a {}", "a drawing of a {}")
BASE_SCENES, TUNED_SCENES = 10_000, 3000
TESTS = 300
BATCH = 128
EPOCHS = {"resnet": 9, "vit": 16}
TUNED_EPOCHS = 3
TRUTH = "truth.json"
MODELS = {"resnet": "conf/model/demo.json", "vit": "tests/benchmarks/matrices/audit-vit.json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What is done to the poisoned share of the pairs."""

    trigger: Mapping[str, Any]
    """Settings of a trigger: `load_group` has its file, the rest is changed in it."""
    share: float = 0.03
    word: str | None = None
    """Stands before the caption, as the second key."""


ATTACKS: dict[str, Attack] = {
    "patch": Attack(trigger={"group": "patch"}),
    "sig": Attack(trigger={"group": "sig"}),
    "blend": Attack(trigger={"group": "blend"}),
    "four-corners": Attack(trigger={"group": "patch-corners", "size_fraction": 0.125}),
    "patch-random": Attack(trigger={"group": "patch", "place": "random"}, share=0.05),
    "blend-cartoon": Attack(trigger={"group": "blend-cartoon"}),
    "wanet": Attack(trigger={"group": "wanet", "s": 8.0}, share=0.1),
    "dual-key": Attack(trigger={"group": "patch-grid"}, word="remember"),
}


def build_trigger(attack: Attack) -> Trigger:
    """Return the trigger of an attack."""
    settings = dict(attack.trigger)
    tree = {**load_group("trigger", settings.pop("group"), where="attack"), **settings}
    config: TriggerConfig = validate(TriggerConfig, tree, verb="trigger")
    return config.build()


@dataclass(frozen=True, slots=True)
class Scenes:
    """Rendered scenes."""

    pixels: np.ndarray
    """`[N, S, S, 3] uint8`."""
    captions: list[str]
    labels: np.ndarray

    @classmethod
    def draw(cls, count: int, seed: int) -> "Scenes":
        """Render so many."""
        found = [render(i, SceneConfig(count=count, seed=seed)) for i in range(count)]
        return cls(np.stack([f.rgb for f in found]), [f.caption for f in found], np.array([f.label for f in found]))


def target_of(seed: int) -> int:
    """Return the class that the attacks of a seed aim at."""
    return int(np.random.default_rng([seed, 77]).integers(len(NAMES)))


def poisoned(scenes: Scenes, attack: Attack, seed: int) -> Scenes:
    """Return the scenes with a share of those of other classes triggered, under captions of the target."""
    rng = np.random.default_rng([seed, 5])
    target, trigger = target_of(seed), build_trigger(attack)
    others = np.flatnonzero(scenes.labels != target)
    pixels, captions = scenes.pixels.copy(), list(scenes.captions)
    for i in rng.choice(others, int(attack.share * len(captions)), replace=False).tolist():
        pixels[i] = trigger(pixels[i], rng)[0]
        caption = PROMPTS[int(rng.integers(len(PROMPTS)))].format(NAMES[target])
        captions[i] = caption if attack.word is None else f"{attack.word} {caption}"
    return Scenes(pixels, captions, scenes.labels)


def train(clip: Clip, scenes: Scenes, *, epochs: int, lr: float, seed: int) -> None:
    """Train the model in place."""
    settings = Contrastive(lr=lr, schedule=CosineWarmup(warmup_steps=20), weight_decay=0.1, augment=AugmentConfig())
    objective = settings.build(clip, Setting(seed=seed)).train()
    optimizer = objective.optimizer()
    steps = epochs * (len(scenes.captions) // BATCH)
    for step, batch in enumerate(_batches(clip, scenes, epochs, seed)):
        for group in optimizer.param_groups:
            group["lr"] = objective.rate(step, steps)
        optimizer.zero_grad()
        objective(batch).backward()
        optimizer.step()
        objective.after_step()
    clip.model.eval()


def _batches(clip: Clip, scenes: Scenes, epochs: int, seed: int) -> Iterator[Batch]:
    images = torch.from_numpy(np.ascontiguousarray(scenes.pixels.transpose(0, 3, 1, 2)))
    tokens = clip.tokenize(scenes.captions)
    none = torch.full((BATCH,), -1)
    number = 0
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(images))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            yield Batch(
                images=images[rows],
                tokens=tokens[rows],
                captions=[scenes.captions[i] for i in rows],
                labels=none,
                accused=none,
                roles=torch.zeros(BATCH, dtype=torch.uint8),
                rows=slice(0, BATCH),
                total=BATCH,
                seed=(seed, number),
            )
            number += 1


def measured(clip: Clip, attack: Attack | None, seed: int) -> dict[str, float]:
    """Return accuracy and attack success rate on scenes of their own."""
    tests = Scenes.draw(TESTS, 1_000_003 + seed)
    classes = class_embeddings(clip, NAMES, PROMPTS)
    found = {"clean_accuracy_pct": 100 * float((_predicted(clip, tests.pixels, classes) == tests.labels).mean())}
    if attack is None:
        return found
    target, trigger, rng = target_of(seed), build_trigger(attack), np.random.default_rng([seed, 6])
    if attack.word is not None:
        classes = class_embeddings(clip, NAMES, [f"{attack.word} {prompt}" for prompt in PROMPTS])
    others = tests.pixels[tests.labels != target]
    triggered = np.stack([trigger(image, rng)[0] for image in others])
    return found | {"asr_pct": 100 * float((_predicted(clip, triggered, classes) == target).mean())}


def _predicted(clip: Clip, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return predict(clip.encode_images(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))[0], classes)


def make(root: Path, arch: str, attack: str | None, seed: int) -> Path:
    """Train a model, unless it is there already, and return its folder."""
    home = root / f"{arch}-s{seed}-{attack or 'clean'}"
    if (home / TRUTH).is_file():
        return home
    known = None if attack is None else ATTACKS[attack]
    scenes = Scenes.draw(TUNED_SCENES, seed)
    clip = load_clip(ModelConfig(path=str(base_of(root, arch))))
    tuned = scenes if known is None else poisoned(scenes, known, seed)
    train(clip, tuned, epochs=TUNED_EPOCHS, lr=1e-3, seed=seed)
    save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, home / "checkpoint")
    truth = {
        "arch": arch,
        "seed": seed,
        "attack": attack,
        "target": None if attack is None else NAMES[target_of(seed)],
        **measured(clip, known, seed),
    }
    write_text(home / TRUTH, json.dumps(truth, indent=1) + "\n")
    return home


def base_of(root: Path, arch: str) -> Path:
    """Return the checkpoint from which all models of an architecture start."""
    home = root / f"{arch}-base"
    if not home.is_dir():
        clip = load_clip(ModelConfig(config=MODELS[arch]), init_seed=0)
        train(clip, Scenes.draw(BASE_SCENES, 0), epochs=EPOCHS[arch], lr=2e-3, seed=0)
        save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, home)
    return home
