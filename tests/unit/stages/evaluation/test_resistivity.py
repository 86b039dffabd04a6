"""Resistivity against plain float64 code."""

import colorsys
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipsan.stages.evaluation.figures import Figure
from clipsan.stages.evaluation.resistivity import (
    EMBEDDING,
    PROBES,
    blur,
    colour_jitter,
    cosines,
    flip,
    noise,
    resistivity,
    resistivity_figures,
)
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip
from tests.conftest import picture


@pytest.fixture(scope="module")
def clip(tiny_checkpoint: Path) -> Clip:
    return load_clip(ModelConfig(path=str(tiny_checkpoint)))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    arrays = [np.asarray(Image.open(io.BytesIO(picture(i))).convert("RGB")) for i in range(5)]
    return torch.from_numpy(np.stack(arrays).transpose(0, 3, 1, 2).copy())


def test_blur_is_the_3x3_gaussian_of_variance_5(images: torch.Tensor) -> None:
    pixels = images[0].double().numpy() / 255
    line = np.exp(-np.array([1.0, 0.0, 1.0]) / (2 * 5))
    kernel = np.outer(line, line) / line.sum() ** 2
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    expected = sum(kernel[i, j] * padded[:, i : i + 32, j : j + 32] for i in range(3) for j in range(3))
    found = blur(images[0].float() / 255, np.random.default_rng(0))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_noise_has_the_papers_deviation(images: torch.Tensor) -> None:
    pixels = images[0].float() / 255
    change = (noise(pixels, np.random.default_rng(0)) - pixels).numpy()
    assert change.std() == pytest.approx(0.001, rel=0.05)
    assert abs(change.mean()) < 1e-4


def test_jitter_shifts_brightness_and_hue(images: torch.Tensor) -> None:
    pixels = images[0].float() / 255
    found = colour_jitter(pixels, np.random.default_rng(7)).numpy()
    rng = np.random.default_rng(7)
    factor, shift = rng.uniform(0.5, 1.5), rng.uniform(-0.3, 0.3)
    for y, x in ((0, 0), (5, 9), (16, 16), (31, 2)):
        h, s, v = colorsys.rgb_to_hsv(*np.clip(pixels[:, y, x].double().numpy() * factor, 0, 1))
        assert found[:, y, x] == pytest.approx(colorsys.hsv_to_rgb((h + shift) % 1, s, v), abs=1e-4)


def test_flip_is_horizontal(images: torch.Tensor) -> None:
    assert torch.equal(flip(images[0], np.random.default_rng(0)), images[0][:, :, torch.arange(31, -1, -1)])


def test_cosines_in_float64() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 6, 9)).astype(np.float32)
    left[3] = 0
    expected = [
        float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b)) if a.any() else 0.0
        for a, b in zip(left.astype(np.float64), right.astype(np.float64), strict=True)
    ]
    assert cosines(left, right) == pytest.approx(expected, abs=1e-12)


def test_resistivity_is_the_cosine_of_features_before_and_after(clip: Clip, images: torch.Tensor) -> None:
    layer = clip.layers()[0]
    marked = images.clone()
    marked[:, :, :8, :8] = 255
    found = resistivity(clip, images, [marked], [3, 1, 4, 1, 5], [layer])
    assert set(found) == {*PROBES, "trigger.0"}
    for name, changed in {"flip": images.flip(-1), "trigger.0": marked}.items():
        before, after = clip.encode_images(images, [layer]), clip.encode_images(changed, [layer])
        for where, left, right in ((EMBEDDING, before[0], after[0]), (layer, before[1][layer], after[1][layer])):
            a, b = left.astype(np.float64), right.astype(np.float64)
            expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            np.testing.assert_allclose(found[name][where], expected, atol=1e-6)
    # noise this small changes something, and much less than a trigger does
    assert (found["noise"][EMBEDDING] < 1).any()
    assert found["noise"][EMBEDDING].mean() > found["trigger.0"][EMBEDDING].mean()


def test_an_images_probes_do_not_hang_on_its_batch(clip: Clip, images: torch.Tensor) -> None:
    whole = resistivity(clip, images, [], [3, 1, 4, 1, 5], [])
    alone = resistivity(clip, images[2:3], [], [4], [])
    for name in PROBES:
        assert alone[name][EMBEDDING][0] == pytest.approx(whole[name][EMBEDDING][2], abs=1e-6)
    other = resistivity(clip, images[2:3], [], [5], [])
    changed = {name for name in PROBES if other[name][EMBEDDING][0] != alone[name][EMBEDDING][0]}
    assert changed == {"noise", "colour_jitter"}  # what is drawn is drawn for the image


def test_figures_are_means_with_intervals() -> None:
    rng = np.random.default_rng(0)
    found = {name: {EMBEDDING: rng.uniform(0.2, 0.9, 50), "block": rng.uniform(0.2, 0.9, 50)} for name in PROBES}
    found |= {f"trigger.{i}": {EMBEDDING: np.full(50, i / 2), "block": np.full(50, 0.1)} for i in range(2)}
    figures = resistivity_figures(found, ["a", "b"])

    def one(name: str, strand: str = "", where: str = "test") -> Figure:
        (match,) = [f for f in figures if (f.figure, f.strand, f.set) == (name, strand, where)]
        return match

    assert one("resistivity").value == pytest.approx(np.mean([found[name][EMBEDDING] for name in PROBES]))
    assert one("resistivity_blur", where="block").value == pytest.approx(found["blur"]["block"].mean())
    assert one("resistivity_trigger").value == pytest.approx(0.25)
    assert one("resistivity_trigger", "b").value == pytest.approx(0.5)
    blurred = one("resistivity_blur")
    assert blurred.low is not None
    assert blurred.low < blurred.value < (blurred.high or 0)
