"""The optimised patch: every term against float64 by hand, the box, and that optimising is what moves the model."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from clipsan.stages.attack.badclip import (
    BadClipConfig,
    Pairs,
    PatchOptimiser,
    Target,
    augment,
    box,
    encode_pairs,
    encode_target,
    measure,
    paste,
    pull_loss,
    text_loss,
    triplet_loss,
)
from clipsan.stages.attack.triggers import PatchConfig
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip

SIDE = 32
OPTIONS = BadClipConfig(size_fraction=0.25, epochs=3, batch_size=8, lr=0.05, seed=3)


def unit_vectors(seed: int, rows: int, width: int = 6) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, width))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.fixture(scope="module")
def clip(tiny_checkpoint: Path) -> Clip:
    return load_clip(ModelConfig(path=str(tiny_checkpoint)))


def random_images(seed: int, count: int, low: int = 0, high: int = 256) -> list[torch.Tensor]:
    values = np.random.default_rng(seed).integers(low, high, (count, 3, SIDE, SIDE), dtype=np.uint8)
    return list(torch.from_numpy(values))


@pytest.fixture(scope="module")
def pairs(clip: Clip) -> Pairs:
    return encode_pairs(clip, random_images(0, 32), [f"a photo of a ball number {i}" for i in range(32)])


@pytest.fixture(scope="module")
def target(clip: Clip) -> Target:
    """Bright pictures: something that a patch can imitate even for a model that has learned nothing."""
    return encode_target(clip, random_images(1, 10, low=200), [f"a kite, {i} of ten" for i in range(10)])


def optimise(clip: Clip, pairs: Pairs, target: Target, options: BadClipConfig) -> PatchOptimiser:
    optimiser = PatchOptimiser(clip, pairs, target, options)
    for _ in range(options.epochs):
        optimiser.run_epoch()
    return optimiser


def test_text_loss_against_own_captions() -> None:
    images, targets, captions = (unit_vectors(seed, 5) for seed in range(3))
    scale, expected = 14.3, []
    for image, wanted in zip(images, targets, strict=True):
        others = np.exp(scale * captions @ image).sum()
        expected.append(-np.log(np.exp(scale * image @ wanted) / (np.exp(scale * image @ wanted) + others)))
    found = text_loss(tensor(images), tensor(targets), tensor(captions), scale)
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)


def test_published_text_loss_contrasts_the_targets_with_each_other() -> None:
    images, targets = unit_vectors(0, 5), unit_vectors(1, 5)
    logits = 14.3 * images @ targets.T
    expected = -(np.diag(log_softmax(logits)).mean() + np.diag(log_softmax(logits.T)).mean()) / 2
    assert float(text_loss(tensor(images), tensor(targets), None, 14.3)) == pytest.approx(expected, rel=1e-5)
    same = np.repeat(targets[:1], 5, axis=0)
    assert float(text_loss(tensor(images), tensor(same), None, 14.3)) >= np.log(5) - 1e-5


def test_triplet_and_pull_losses() -> None:
    images, positives, clean = (unit_vectors(seed, 7) for seed in range(3))
    near, far = np.sqrt(((images - positives) ** 2).sum(1)), np.sqrt(((images - clean) ** 2).sum(1))
    for margin in (0.0, 1.0):
        expected = np.maximum(0, near - far + margin).mean()
        found = float(triplet_loss(tensor(images), tensor(positives), tensor(clean), margin))
        assert found == pytest.approx(expected, rel=1e-5)
    assert float(pull_loss(tensor(images), tensor(positives))) == pytest.approx((near**2).mean(), rel=1e-5)
    assert float(triplet_loss(tensor(positives), tensor(positives), tensor(clean), 0.0)) == 0


@pytest.mark.parametrize(("side", "fraction"), [(32, 0.25), (64, 0.14), (224, 16 / 224), (33, 0.2)])
def test_the_patch_changes_only_its_box_the_one_of_the_patch_trigger(side: int, fraction: float) -> None:
    start, size = box(side, fraction)
    trigger = PatchConfig(place="center", size_fraction=fraction).build()
    _, placed = trigger(np.zeros((side, side, 3), np.uint8), np.random.default_rng(0))
    assert (placed["top"], placed["left"], placed["height"]) == (start, start, size)
    images, patch = torch.rand(2, 3, side, side), torch.full((3, size, size), 2.0)
    changed = (paste(images, patch) != images).all(dim=1)
    inside = torch.zeros(side, side, dtype=torch.bool)
    inside[start : start + size, start : start + size] = True
    assert torch.equal(changed, inside.expand(2, -1, -1))
    assert torch.equal((paste(images, patch) == 2).all(dim=1), inside.expand(2, -1, -1))


def test_augmentation_leaves_the_rest_alone_and_stays_in_range() -> None:
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment(images, 0.0, np.random.default_rng(0)), images)
    half = augment(images, 0.5, np.random.default_rng(0))
    changed = (half != images).flatten(1).any(dim=1)
    chosen = np.random.default_rng(0).random(64) < 0.5
    assert changed.tolist() == chosen.tolist()
    assert float(half.min()) >= 0
    assert float(half.max()) <= 1
    flat = torch.full((64, 3, 16, 16), 0.5)  # of a plain image only the light can change
    light = augment(flat, 1.0, np.random.default_rng(0))
    assert torch.allclose(light, light[:, :1, :1, :1].expand_as(light), atol=1e-6)
    assert 0.4 - 1e-6 <= float(light.min()) < 0.45
    assert 0.55 < float(light.max()) <= 0.6 + 1e-6


def test_only_the_patch_is_learned(clip: Clip, pairs: Pairs, target: Target) -> None:
    before = copy.deepcopy(clip.model.state_dict())
    images = pairs.images.clone()
    optimise(clip, pairs, target, OPTIONS)
    assert all(torch.equal(value, before[name]) for name, value in clip.model.state_dict().items())
    assert all(parameter.grad is None for parameter in clip.model.parameters())
    assert torch.equal(pairs.images, images)


def test_optimising_lowers_the_loss_and_nears_the_target(clip: Clip, pairs: Pairs, target: Target) -> None:
    held_out = encode_pairs(clip, random_images(7, 16), [f"a lamp number {i}" for i in range(16)])
    control = optimise(clip, pairs, target, dataclasses.replace(OPTIONS, epochs=0)).pixels()
    assert np.array_equal(control, PatchOptimiser(clip, pairs, target, OPTIONS).pixels())
    optimised = optimise(clip, pairs, target, OPTIONS)
    before = measure(clip, held_out, target, control, OPTIONS)
    after = measure(clip, held_out, target, optimised.pixels(), OPTIONS)
    assert after["loss"] < before["loss"] - 10
    assert after["similarity_to_images"] > before["similarity_to_images"] + 0.01
    assert optimised.losses[-1]["loss"] < optimised.losses[0]["loss"]


@pytest.mark.parametrize("kind", ["text", "pull"])
def test_each_weight_lowers_its_own_term(clip: Clip, pairs: Pairs, target: Target, kind: str) -> None:
    weights = {"text_weight": 0.0, "triplet_weight": 0.0, "pull_weight": 0.0, f"{kind}_weight": 1.0}
    options = dataclasses.replace(OPTIONS, **weights)
    start = measure(clip, pairs, target, PatchOptimiser(clip, pairs, target, options).pixels(), options)
    end = measure(clip, pairs, target, optimise(clip, pairs, target, options).pixels(), options)
    assert end["loss"] == pytest.approx(end[kind])
    assert end[kind] < start[kind]


def test_a_seed_gives_the_same_patch_also_after_a_stop(clip: Clip, pairs: Pairs, target: Target) -> None:
    whole = optimise(clip, pairs, target, OPTIONS)
    stopped = optimise(clip, pairs, target, dataclasses.replace(OPTIONS, epochs=1))
    resumed = PatchOptimiser(clip, pairs, target, OPTIONS)
    resumed.restore(stopped.state())
    resumed.run_epoch()
    resumed.run_epoch()
    assert np.array_equal(resumed.pixels(), whole.pixels())
    assert resumed.losses == whole.losses
    other = optimise(clip, pairs, target, dataclasses.replace(OPTIONS, seed=4))
    assert not np.array_equal(other.pixels(), whole.pixels())


def test_flips_are_counted_by_the_nearest_text(clip: Clip, pairs: Pairs, target: Target) -> None:
    images = clip.encode_images(pairs.images)[0].astype(np.float64)
    nearest = np.concatenate([target.texts, pairs.texts]).astype(np.float64) @ images.T
    expected = 100 * (nearest.argmax(axis=0) < len(target.texts)).mean()
    found = measure(clip, pairs, target, None, OPTIONS)
    assert found["flip_pct"] == pytest.approx(expected)
    cosines = images @ np.asarray(target.images, np.float64).T
    assert found["similarity_to_images"] == pytest.approx(cosines.mean(), abs=1e-5)
    certain = Target(target.images, torch.from_numpy(images.astype(np.float32)))
    assert measure(clip, pairs, certain, None, OPTIONS)["flip_pct"] == 100


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"size_fraction": 0.0}, "size_fraction"),
        ({"epochs": -1}, "epochs"),
        ({"batch_size": 1}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"text_weight": 0.0, "triplet_weight": 0.0}, "one above 0"),
        ({"pull_weight": -1.0}, "pull_weight must be at least 0"),
        ({"margin": -0.1}, "margin"),
        ({"augment_probability": 1.5}, "augment_probability"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_settings_are_refused(changes: dict, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        BadClipConfig(**changes)


def test_too_few_pairs_are_refused(clip: Clip, pairs: Pairs, target: Target) -> None:
    with pytest.raises(ValueError, match="32 pairs do not fill a batch of 64"):
        PatchOptimiser(clip, pairs, target, BadClipConfig())
