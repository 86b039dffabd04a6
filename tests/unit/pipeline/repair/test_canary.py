"""A trigger of our own is planted until the copy has learned it, and a copy that does not learn it is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.repair import canary
from clipsan.pipeline.repair.canary import challenge_of, planted
from clipsan.pipeline.repair.held import Columns
from clipsan.pipeline.repair.settings import CanaryConfig
from clipsan.pipeline.train.task import Task
from clipsan.stages.evaluation.exam import Challenge, Pictures, success_pct
from clipsan.stages.evaluation.zero_shot import class_embeddings
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip
from clipsan.stages.repair.finetune import FineTune

CLASSES = ("ball", "kite", "lamp", "boat")
TARGET = 2
PAIRS = 64
SETTINGS = CanaryConfig(steps=3, batch_size=32)


@pytest.fixture
def task(tiny_checkpoint: Path) -> Task:
    model = ModelConfig(path=str(tiny_checkpoint))
    return Task(model=model, method=FineTune(), bf16=False, seed=3, classes=CLASSES, templates=("a photo of a {}.",))


def columns(task: Task) -> Columns:
    rng = np.random.default_rng(0)
    captions = [f"a photo of a {CLASSES[i % 4]}, number {i}" for i in range(PAIRS)]
    return {
        "order": rng.permutation(PAIRS),
        "image": rng.integers(0, 256, (PAIRS, 3, 32, 32), np.uint8),
        "tokens": load_clip(task.model).tokenize(captions).to(torch.int32).numpy(),
        "caption": np.array(captions, object),
        "label": np.full(PAIRS, -1),
        "accused": np.full(PAIRS, -1),
        "role": np.zeros(PAIRS, np.uint8),
    }


def challenge(settings: CanaryConfig) -> Challenge:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 3, 32, 32), np.uint8)
    labels = np.arange(40) % 4
    return challenge_of(settings, Pictures(tuple(map(str, range(40))), pixels, labels, ("",) * 40), TARGET, CLASSES, 3)


def rated(monkeypatch: pytest.MonkeyPatch, *successes: float) -> list[dict[str, torch.Tensor]]:
    """Have the plantings succeed as told; return the list that will hold the weights after each."""
    said, after = iter(successes), []

    def success_pct(clip: Clip, asked: Challenge, vectors: np.ndarray) -> float:
        assert asked.targets == (TARGET,)
        after.append({name: value.clone() for name, value in clip.model.state_dict().items()})
        return next(said)

    monkeypatch.setattr(canary, "success_pct", success_pct)
    return after


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return sum(float((second[name] - first[name]).float().square().sum()) for name in first)


def test_a_canary_is_planted_on_from_where_it_is_until_it_is_learned(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = rated(monkeypatch, 10.0, 50.0, 95.0)
    clip, asr_pct = planted(SETTINGS, task, columns(task), challenge(SETTINGS), torch.device("cpu"))
    assert asr_pct == 95
    assert len(after) == 3
    assert distance(clip.model.state_dict(), after[-1]) == 0
    start = load_clip(task.model).model.state_dict()
    assert 0 < distance(start, after[0]) < distance(start, after[1]) < distance(start, after[2])
    assert not clip.model.training


def test_what_the_last_planting_has_not_taught_ends_the_run(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    after = rated(monkeypatch, *[79.0] * canary.ROUNDS)
    with pytest.raises(
        ConfigError, match=r"after 4 x 3 steps the copy takes only 79\.0 % of pictures with it for 'lamp'"
    ):
        planted(SETTINGS, task, columns(task), challenge(SETTINGS), torch.device("cpu"))
    assert len(after) == canary.ROUNDS


def test_the_success_is_that_of_the_copy_on_the_pictures_that_are_asked(task: Task) -> None:
    easily = dataclasses.replace(SETTINGS, min_asr_pct=0)
    asked = challenge(easily)
    clip, asr_pct = planted(easily, task, columns(task), asked, torch.device("cpu"))
    assert asr_pct == success_pct(clip, asked, class_embeddings(clip, CLASSES, task.templates))
