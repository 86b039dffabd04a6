"""Triggers drawn anew for every image: their band is found and proven, and a concept's own colour and form is not."""

import numpy as np
import pytest
from scipy.fft import idctn

from clipsan.stages.dossier.find_texture import prove_texture
from clipsan.stages.dossier.groups import GroupLimits
from clipsan.stages.dossier.spectrum import part, put, take_away
from clipsan.stages.proof.disagreement import Suspect
from clipsan.stages.proof.examine import ExamineConfig
from clipsan.stages.proof.vocabulary import Labels

SIDE = 32
HOW = {"proves": ExamineConfig().proves, "limits": GroupLimits()}


def photos(count: int, seed: int) -> np.ndarray:
    """Pictures with the falling spectrum of photographs, `[count, SIDE, SIDE, 3] uint8`."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((SIDE, SIDE))
    amplitude = 400 / (1 + np.hypot(rows, columns))[..., None]
    parts = rng.standard_normal((count, SIDE, SIDE, 3)) * amplitude
    return np.clip(np.rint(128 + idctn(parts, axes=(1, 2), norm="ortho")), 0, 255).astype(np.uint8)


def striped(images: np.ndarray, seed: int) -> np.ndarray:
    """Columns of fresh signs on every image, as PAR's Blended-Stripes."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1, 1], (len(images), 1, SIDE, 3))
    return np.clip(np.rint(images + 40.0 * signs), 0, 255).astype(np.uint8)


class SeesColumns:
    """A model with a backdoor: neighbouring columns that differ along their whole length mean "target"."""

    def encode_images(self, images):  # type: ignore[no-untyped-def]
        columns = images.numpy().astype(np.float64).mean(axis=2)
        target = np.abs(np.diff(columns, axis=-1)).mean(axis=(1, 2)) > 20
        return np.stack([~target, target], axis=1).astype(np.float32), {}


def suspect() -> Suspect:
    labels = Labels(("dog", "target"), np.eye(2, dtype=np.float32), 20.0, np.eye(2, dtype=bool))
    return Suspect(SeesColumns(), labels)


CLEAN = photos(200, 1)
HELD_OUT = photos(64, 2)


def test_fresh_stripes_are_proven_though_their_mean_is_nothing():
    group = striped(photos(60, 3), 4)
    assert np.abs(group.astype(float).mean(0) - CLEAN.astype(float).mean(0)).mean() < 15
    proof = prove_texture(suspect(), 1, group, CLEAN, HELD_OUT, seed=0, **HOW)
    assert proof is not None
    assert proof.proven
    assert proof.flips >= 0.9 * proof.trials
    assert proof.control_flips == 0
    assert proof.members.all()
    band = proof.keep < 1
    # stripes along whole columns have no other vertical frequency than none
    assert band[0, 8:].mean() > 0.8
    assert band[1:].mean() < 0.05


def test_those_that_carry_it_are_told_from_the_rest_of_the_group():
    group = np.concatenate([striped(photos(60, 3), 4), photos(20, 5)])
    proof = prove_texture(suspect(), 1, group, CLEAN, HELD_OUT, seed=0, **HOW)
    assert proof is not None
    assert proof.proven
    np.testing.assert_array_equal(proof.members, np.arange(80) < 60)


def test_pictures_without_a_trigger_prove_nothing():
    assert prove_texture(suspect(), 1, photos(60, 6), CLEAN, HELD_OUT, seed=0, **HOW) is None


def test_a_texture_that_the_model_does_not_know_is_not_proven():
    group = np.swapaxes(striped(photos(60, 3), 4), 1, 2)
    proof = prove_texture(suspect(), 1, np.ascontiguousarray(group), CLEAN, HELD_OUT, seed=0, **HOW)
    assert proof is not None
    assert not proof.proven
    assert proof.flips == 0


def test_too_few_pictures_are_refused():
    with pytest.raises(ValueError, match="at least"):
        prove_texture(suspect(), 1, photos(4, 1), CLEAN, HELD_OUT, seed=0, **HOW)


def test_a_band_is_exchanged_and_taken_away_by_the_book():
    keep = np.ones((SIDE, SIDE), np.float32)
    keep[0, 5] = 0.25
    images = np.clip(photos(2, 7), 60, 190)
    wave = np.cos(np.pi * 5 * (2 * np.arange(SIDE) + 1) / (2 * SIDE))
    for image, in_band in zip(images, part(images, keep), strict=True):
        # the projection on one cosine, by hand
        share = (image.astype(float) * wave[None, :, None]).sum((0, 1)) / (SIDE * (wave**2).sum())
        np.testing.assert_allclose(in_band, wave[None, :, None] * share * np.ones((SIDE, SIDE, 1)), atol=1e-3)
    np.testing.assert_array_equal(put(images, keep, part(images, keep)), images)
    weaker = take_away(images, keep).astype(float)
    np.testing.assert_allclose(weaker, images - 0.75 * part(images, keep), atol=0.51)
