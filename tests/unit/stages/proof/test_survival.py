"""The side that carries a trigger keeps its claim under noise; variants are what their names say."""

from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from clipsan.stages.proof.disagreement import ImageEncoder, Suspect
from clipsan.stages.proof.features import Split
from clipsan.stages.proof.survival import SurvivalLimits, claim_profile, exceeds, pixels, variants
from clipsan.stages.proof.vocabulary import Labels

SIDE = 24
LIMITS = SurvivalLimits()


class MeanOrDetail:
    """Claims `target` by a dark corner, which noise leaves as it is, or by a fine checkerboard, which it drowns."""

    def encode_images(self, images: torch.Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        grey = images.numpy().astype(np.float64).mean(axis=1)
        corner = np.clip((grey.mean(axis=(1, 2)) - grey[:, :8, :8].mean(axis=(1, 2))) / 60, 0, 1)
        board = np.indices((SIDE, SIDE)).sum(axis=0) % 2 * 2 - 1
        spread = np.maximum((grey[:, 8:] - grey[:, 8:].mean(axis=(1, 2), keepdims=True)).std(axis=(1, 2)), 1e-6)
        detail = np.clip((grey[:, 8:] * board[8:]).mean(axis=(1, 2)) / spread, 0, 1) ** 2
        claim = np.maximum(corner, detail)
        units = np.stack([1 - claim, claim], axis=1)
        return (units / np.linalg.norm(units, axis=1, keepdims=True)).astype(np.float32), {}


def suspect() -> Suspect:
    labels = Labels(("other", "target"), np.eye(2, dtype=np.float32), 10.0, np.eye(2, dtype=bool))
    return Suspect(cast(ImageEncoder, MeanOrDetail()), labels)


def pictures(count: int, *, corner: bool) -> np.ndarray:
    rng = np.random.default_rng(count + corner)
    images = rng.integers(120, 130, size=(count, SIDE, SIDE, 3))
    if corner:
        images[:, :8, :8] = 10
    else:
        images = images + 12 * (np.indices((SIDE, SIDE)).sum(axis=0) % 2 * 2 - 1)[None, :, :, None]
    return images.astype(np.uint8)


@pytest.mark.parametrize("carrier", ["first", "second"])
def test_the_side_that_keeps_its_claim_under_noise_carries_something(carrier: str) -> None:
    first, second = pictures(20, corner=carrier == "first"), pictures(30, corner=carrier == "second")
    found = claim_profile(suspect(), "target", Split(1, first, second), seed=0, limits=LIMITS)
    assert found is not None
    assert found.carries == carrier
    assert found.pictures == (20, 30)
    assert found.survival == pytest.approx(1.0 if carrier == "first" else 0.0, abs=0.01)
    kept = found.first if carrier == "first" else found.second
    assert kept["noise"] == pytest.approx(kept["plain"], abs=0.2)
    assert set(found.first) == set(found.second) == set(variants(LIMITS, 0))


def test_sides_that_are_alike_carry_nothing_and_few_pictures_say_nothing() -> None:
    alike = Split(1, pictures(20, corner=True), pictures(21, corner=True))
    found = claim_profile(suspect(), "target", alike, seed=0, limits=LIMITS)
    assert found is not None
    assert found.carries is None
    few = Split(1, pictures(7, corner=True), pictures(30, corner=False))
    assert claim_profile(suspect(), "target", few, seed=0, limits=LIMITS) is None


@pytest.mark.parametrize(("wins", "carries"), [(90, "first"), (89, None), (11, None), (10, "second")])
def test_a_side_is_said_from_three_standard_errors_on(wins: int, carries: str | None) -> None:
    """Of 10 and 10 pictures the standard error is sqrt(21 / 1200) = .1323, so that .897 of 100 comparisons is the limit."""
    second = np.arange(1, 11) / 20
    first = np.zeros(10)
    for i in range(10):  # each above as many of the second as are left to win
        first[i] = second[0] / 2 + min(10, max(0, wins - 10 * i)) / 20
    claims = np.concatenate([first, second])

    def told(images: np.ndarray) -> np.ndarray:
        return np.stack([1 - claims, claims], axis=1)

    sides = Split(1, pictures(10, corner=True), pictures(10, corner=False))
    found = claim_profile(cast(Suspect, told), "target", sides, seed=0, limits=LIMITS)
    assert found is not None
    assert found.survival == wins / 100
    assert found.carries == carries


def test_no_more_pictures_of_a_side_are_looked_at_than_allowed() -> None:
    limits = SurvivalLimits(most_of_side=9)
    sides = Split(1, pictures(20, corner=True), pictures(8, corner=False))
    found = claim_profile(suspect(), "target", sides, seed=0, limits=limits)
    assert found is not None
    assert found.pictures == (9, 8)


def test_variants_by_hand() -> None:
    vary = variants(LIMITS, 0)
    assert pixels(np.array([0.6, 1.4, 254.5001, 300.0, -5.0])).tolist() == [1, 1, 255, 255, 0]
    noise = vary["noise"](np.full((4, 64, 64, 3), 128, np.uint8)).astype(float)
    assert noise.mean() == pytest.approx(128, abs=1)
    assert noise.std() == pytest.approx(0.15 * 255, rel=0.02)
    plain = np.tile(np.array([10, 200, 90], np.uint8), (1, 64, 64, 1))
    np.testing.assert_array_equal(vary["blur"](plain), plain)
    step = np.repeat(np.arange(64) >= 32, 64 * 3).reshape(1, 64, 64, 3).astype(np.uint8) * 255
    blurred = vary["blur"](step)[0, :, 5, 0].astype(float)
    assert np.interp(255 * norm.cdf(-1), blurred, np.arange(64)) == pytest.approx(31.5 - 0.04 * 64, abs=0.05)
    framed = np.full((1, 50, 50, 3), 7, np.uint8)
    framed[:, 7:43, 7:43] = 150  # .72 of the side
    np.testing.assert_array_equal(vary["centre"](framed), np.full((1, 50, 50, 3), 150))
    np.testing.assert_array_equal(vary["grey"](plain), np.full((1, 64, 64, 3), 100))


@pytest.mark.parametrize("side", [64, 128, 224])
def test_variants_keep_size_and_type_at_any_resolution(side: int) -> None:
    images = np.random.default_rng(0).integers(256, size=(2, side, side, 3), dtype=np.uint8)
    for name, vary in variants(LIMITS, 0).items():
        found = vary(images)
        assert (found.shape, found.dtype) == (images.shape, np.uint8), name
        assert (found == images).all() == (name == "plain")
        np.testing.assert_array_equal(found, vary(images))
    np.testing.assert_array_equal(variants(LIMITS, 0)["shift"](images)[:, side // 8, side // 8], images[:, 0, 0])
    np.testing.assert_array_equal(variants(LIMITS, 0)["flip"](images)[:, 0], images[:, -1])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_exceeds_counts_pairs(one: list[int], other: list[int]) -> None:
    wins = sum((a > b) + (a == b) / 2 for a in one for b in other)
    assert exceeds(np.array(one), np.array(other)) == pytest.approx(wins / (len(one) * len(other)))
