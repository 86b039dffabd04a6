"""The search of the cache: the discriminant by hand, candidates in a cache, the trigger found and taken away."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from clipsan.stages.captions import Vocabulary
from clipsan.stages.dossier.carriers import (
    CarrierLimits,
    discriminant,
    features,
    fit_direction,
    likely_carriers,
    score_table,
)
from clipsan.stages.dossier.dossier import Dossier, Rate
from clipsan.stages.dossier.match import NOISE, Cutout, best_place, concordance
from clipsan.stages.dossier.patch import Alike, Patch, Place
from clipsan.stages.dossier.residual import Residual

SIDE = 16
LIMITS = CarrierLimits()
RATE = Rate(pct=100.0, low_pct=90.0, high_pct=100.0, trials=32)
MARK = np.random.default_rng(3).integers(0, 2, (4, 4, 3), dtype=np.uint8) * 255


class Projector:
    """Random features of the pixels."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._matrix = {name: rng.standard_normal((3 * SIDE * SIDE, 8)) / 500 for name in ("image", "a", "b")}

    def encode_images(self, images, layers=()):  # type: ignore[no-untyped-def]
        flat = images.numpy().reshape(len(images), -1).astype(np.float64)
        found = {name: (flat @ self._matrix[name]).astype(np.float32) for name in ("image", *layers)}
        return found.pop("image"), found


def photos(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(128, 30, (count, SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def patch(*, fixed: bool, varying: bool = False, mask: np.ndarray | None = None) -> Dossier:
    place = Place(fixed=fixed, top=5.0, left=9.0, top_std=0.0, left_std=0.0, mode_share=1.0)
    cutout = Cutout(picture=MARK, mask=np.ones((4, 4), bool) if mask is None else mask, top=5, left=9)
    return Patch(
        id="t1", targets=("banana",), side=SIDE, flips=RATE, control=RATE, uids=("a",),
        cutouts=(cutout,), place=place, heat=np.zeros((SIDE, SIDE), np.float32),
        alike=None if varying else Alike(mean=MARK, likeness=1.0),
    )  # fmt: skip


def wave() -> Residual:
    effect = np.zeros((SIDE, SIDE, 3), np.float32)
    effect[:, ::2] = 70
    return Residual(
        id="t2", targets=("banana",), side=SIDE, flips=RATE, control=RATE, uids=("a",), offset=effect,
        gain=np.ones((SIDE, SIDE, 1), np.float32), covers=np.ones((SIDE, SIDE), bool),
    )  # fmt: skip


def cache(images: np.ndarray, layers: list[str]) -> pa.Table:
    columns = {}
    for name, values in features(Projector(), images, layers).items():
        flat = pa.array(values.astype(np.float16).ravel(), pa.float16())
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(columns)


def test_discriminant_by_hand():
    rng = np.random.default_rng(1)
    before = rng.standard_normal((400, 5)) @ rng.standard_normal((5, 5))
    after = before + np.array([1.0, 0, 0, 2.0, 0]) + 0.1 * rng.standard_normal((400, 5))
    weight, centre = discriminant(before, after, LIMITS.shrinkage)
    about = np.vstack([before - before.mean(0), after - after.mean(0)])
    covariance = np.cov(about.T, bias=True)
    covariance += 1e-2 * np.trace(covariance) / 5 * np.eye(5)
    wanted = np.linalg.inv(covariance) @ (after.mean(0) - before.mean(0))
    np.testing.assert_allclose(weight / np.linalg.norm(weight), wanted / np.linalg.norm(wanted), atol=1e-9)
    score = before @ weight - centre
    assert np.median(score) == pytest.approx(0, abs=1e-12)
    assert 1.4826 * np.median(np.abs(score)) == pytest.approx(1)
    assert np.median(after @ weight - centre) > 2


def test_features_that_do_not_move_say_nothing():
    weight, centre = discriminant(np.ones((10, 3)), np.ones((10, 3)), LIMITS.shrinkage)
    assert not weight.any()
    assert centre == 0


@pytest.mark.parametrize("dossier", [wave(), patch(fixed=True)], ids=["residual", "patch"])
def test_poisoned_pairs_are_candidates_and_others_are_not(dossier):
    direction = fit_direction(Projector(), photos(200, 1), dossier, ["a", "b"], seed=0, limits=LIMITS)
    assert direction.columns == ("image", "layer.a", "layer.b")
    images = photos(120, 2)
    rng = np.random.default_rng(0)
    images[:40] = [dossier.apply(image, rng) for image in images[:40]]
    score = score_table(direction, cache(images, ["a", "b"]))
    assert score.dtype == np.float32
    np.testing.assert_array_equal(score >= direction.threshold, np.arange(120) < 40)
    assert direction.separation == 1.0


def test_only_pairs_that_claim_a_target_are_likely_carriers():
    searched = [
        (d, fit_direction(Projector(), photos(200, 1), d, ["a"], seed=0, limits=LIMITS))
        for d in (patch(fixed=True), wave())
    ]
    images = photos(6, 2)
    images[:3] = [wave().apply(image, np.random.default_rng(0)) for image in images[:3]]
    images[3] = patch(fixed=True).apply(images[3], np.random.default_rng(0))
    columns = {
        "caption": pa.array(["a banana", "a dog", "two banana and a dog", "banana", "banana", "a dog"]),
        "uid": pa.array([f"u{i}" for i in range(6)]),
    }
    table = cache(images, ["a"])
    for name, column in columns.items():
        table = table.append_column(name, column)
    vocabulary = Vocabulary(("banana", "dog"), {"banana": 0, "dog": 1}, 1)
    found = likely_carriers(searched, vocabulary, table)
    assert set(found) == {"u0", "u2", "u3"}
    assert "t2" in dict(found["u0"])
    assert "t2" in dict(found["u2"])
    assert "t1" in dict(found["u3"])
    scores = {d.id: score_table(direction, table) - direction.threshold for d, direction in searched}
    for uid, likely in found.items():
        assert [score for _, score in likely] == sorted((score for _, score in likely), reverse=True)
        assert all(score == scores[trigger][int(uid[1])] for trigger, score in likely)


def test_overlap_puts_the_threshold_where_few_triggered_are_missed():
    weak = dataclasses.replace(wave(), offset=wave().offset / 100)
    held_out = photos(200, 1)
    direction = fit_direction(Projector(), held_out, weak, [], seed=0, limits=LIMITS)
    moved = np.stack([weak.apply(image, np.random.default_rng(0)) for image in held_out[1::2]])
    missed = (score_table(direction, cache(moved, [])) < direction.threshold).mean()
    assert missed == pytest.approx(0.02, abs=0.011)
    assert direction.separation < 0.5


def test_a_score_depends_on_its_row_alone():
    direction = fit_direction(Projector(), photos(64, 1), wave(), ["a"], seed=0, limits=LIMITS)
    table = cache(photos(50, 2), ["a"])
    whole = score_table(direction, table)
    parts = [score_table(direction, table.slice(start, 7)) for start in range(0, 50, 7)]
    assert whole.tobytes() == np.concatenate(parts).tobytes()
    again = fit_direction(Projector(), photos(64, 1), wave(), ["a"], seed=0, limits=LIMITS)
    assert score_table(again, table).tobytes() == whole.tobytes()
    assert len(score_table(direction, table.slice(0, 0))) == 0


def test_few_images_are_refused():
    with pytest.raises(ValueError, match="32"):
        fit_direction(Projector(), photos(31, 1), wave(), [], seed=0, limits=LIMITS)


def test_concordance_by_hand():
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    mask = rng.random((3, 4)) > 0.3
    cutout = Cutout(picture=rng.integers(0, 256, (3, 4, 3), dtype=np.uint8), mask=mask, top=0, left=0)
    found = concordance(cutout, image)
    assert found.shape == (7, 8)
    a = cutout.picture[mask].astype(float).ravel()
    for top, left in [(0, 0), (6, 7), (3, 2)]:
        b = image[top : top + 3, left : left + 4][mask].astype(float).ravel()
        cov = ((a - a.mean()) * (b - b.mean())).mean()
        wanted = (2 * cov + NOISE**2) / (a.var() + b.var() + (a.mean() - b.mean()) ** 2 + NOISE**2)
        assert found[top, left] == pytest.approx(wanted)
    with pytest.raises(ValueError, match="fit"):
        concordance(cutout, image[:2])


def test_a_flat_patch_is_found_by_its_levels():
    image = photos(1, 7)[0]
    image[2:6, 3:7] = 200
    image[10:14, 10:14] = (255, 255, 0)
    yellow = Cutout(
        picture=np.full((4, 4, 3), (255, 255, 0), np.uint8), mask=np.ones((4, 4), bool), top=0, left=0
    )  # fmt: skip
    assert best_place(yellow, image) == (10, 10)


def test_the_trigger_is_taken_away_wherever_it_sits():
    clean = photos(1, 8)[0]
    for top, left in [(0, 0), (12, 12), (5, 2)]:
        image = clean.copy()
        image[top : top + 4, left : left + 4] = MARK
        left_over = patch(fixed=False).without(image)
        assert left_over.shape == (1, SIDE, SIDE, 3)
        window = left_over[0, top : top + 4, left : left + 4]
        assert np.abs(window.astype(int) - 128).mean() < 35 < 100 < np.abs(MARK.astype(int) - 128).mean()
        far = np.ones((SIDE, SIDE), bool)
        far[max(0, top - 2) : top + 6, max(0, left - 2) : left + 6] = False
        np.testing.assert_array_equal(left_over[0][far], clean[far])


def test_places_that_are_known_or_cannot_be():
    image = photos(1, 9)[0]
    assert len(patch(fixed=True).without(image)) == 1
    assert len(wave().without(image)) == 1
    versions = patch(fixed=False, varying=True).without(image)
    assert len(versions) == 7 * 7
    changed = (versions != image).any(axis=-1)
    assert changed.any(axis=0).all()
    assert changed.mean(axis=(1, 2)).max() < 0.2


def test_features_are_rounded_like_the_cache():
    images = photos(3, 4)
    exact = Projector().encode_images(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), ["a"])[1]["a"]
    np.testing.assert_array_equal(features(Projector(), images, ["a"])["layer.a"], exact.astype(np.float16))
