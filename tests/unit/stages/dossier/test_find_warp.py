"""Warps: the field is applied as it says, found where a model was taught one, and not found where none was."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from clipsan.stages.dossier.find_warp import WarpLimits, prove_warp, warped
from clipsan.stages.proof.disagreement import Suspect
from clipsan.stages.proof.examine import ExamineConfig
from clipsan.stages.proof.vocabulary import Labels

SIDE = 32
LIMITS = WarpLimits()
HOW = {"proves": ExamineConfig().proves, "limits": LIMITS}


def pictures(count: int, seed: int) -> np.ndarray:
    """Upright stripes at one place, with noise: a picture that a warp can be told from."""
    rng = np.random.default_rng(seed)
    columns = np.arange(SIDE)
    wave = 128 + 80 * np.sin(2 * np.pi * columns / 8)
    pixels = wave[None, None, :, None] + rng.normal(0, 12, (count, SIDE, SIDE, 3))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


class Striped(torch.nn.Module):
    """Says "target" where the upper half's stripes stand 2 px to the left and the lower one's 2 px to the right; or looks
    at brightness alone, which no warp changes much."""

    def __init__(self, taught: bool) -> None:
        super().__init__()
        columns = torch.arange(SIDE, dtype=torch.float32)
        move = torch.where(torch.arange(SIDE) < SIDE // 2, 2.0, -2.0)[:, None]
        self.register_buffer("wanted", torch.sin(2 * torch.pi * (columns + move) / 8))
        self.taught = taught

    def encode_image(self, images: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        grey = images.mean(1)
        likeness = (grey * self.wanted).mean((1, 2)) / 0.16 if self.taught else grey.mean((1, 2))
        angle = torch.pi / 4 + (likeness - 0.5).clamp(-1, 1) * torch.pi / 4
        return torch.stack([angle.cos(), angle.sin()], 1)


def suspect(taught: bool) -> tuple[SimpleNamespace, Suspect]:
    model = Striped(taught)

    def normalise(images: torch.Tensor) -> torch.Tensor:
        return images.float() / 255 - 0.5

    def encode_images(images: torch.Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        with torch.no_grad():
            return model.encode_image(normalise(images)).numpy(), {}

    clip = SimpleNamespace(model=model, device=torch.device("cpu"), normalise=normalise, encode_images=encode_images)
    labels = Labels(("dog", "target"), np.eye(2, dtype=np.float32), 10.0, np.eye(2, dtype=bool))
    return clip, Suspect(clip, labels)


def test_a_field_says_where_each_pixel_is_read():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8)
    field = rng.uniform(-2, 2, (SIDE, SIDE, 2)).astype(np.float32)
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    places = [rows + field[..., 0], columns + field[..., 1]]
    expected = np.stack(
        [map_coordinates(image[0, ..., c].astype(np.float64), places, order=1, mode="nearest") for c in range(3)], -1
    )
    assert np.abs(warped(image, field)[0] - expected).max() <= 0.51


def test_a_taught_warp_is_found_and_proven():
    clip, model = suspect(taught=True)
    images = pictures(96, seed=1)
    assert not model.labels.is_label(model(images), 1).any()
    proof = prove_warp(clip, model, 1, images, seed=0, **HOW)
    assert proof.proven
    assert proof.trials == 48
    assert proof.flips == 48
    upper, lower = proof.field[4, :, 1].mean(), proof.field[-5, :, 1].mean()
    assert upper > 1
    assert lower < -1
    assert np.abs(proof.field).max() <= LIMITS.reach * SIDE


def test_no_warp_is_proven_where_the_model_does_not_know_one():
    clip, model = suspect(taught=False)
    proof = prove_warp(clip, model, 1, pictures(96, seed=1), seed=0, **HOW)
    assert proof.flips == 0
    assert not proof.proven


def test_the_same_seed_finds_the_same_warp():
    clip, model = suspect(taught=True)
    first, second = (prove_warp(clip, model, 1, pictures(64, seed=2), seed=3, **HOW) for _ in range(2))
    np.testing.assert_array_equal(first.field, second.field)


def test_too_few_images_are_refused():
    clip, model = suspect(taught=True)
    with pytest.raises(ValueError, match=f"at least {LIMITS.least_images} held-out"):
        prove_warp(clip, model, 1, pictures(LIMITS.least_images - 1, seed=1), seed=0, **HOW)
