"""Full-image triggers: what is planted in coloured noise is found, by whom it is carried too, and tone alone proves nothing."""

import numpy as np
import pytest
from scipy.fft import dctn, idctn

from clipsan.stages.dossier.find_residual import Estimate, Shift, estimate, prove, prove_sides
from clipsan.stages.dossier.groups import GroupLimits
from clipsan.stages.dossier.residual import unblend
from clipsan.stages.evaluation.intervals import wilson
from clipsan.stages.proof.disagreement import Suspect
from clipsan.stages.proof.examine import ExamineConfig
from clipsan.stages.proof.vocabulary import Labels

SIDE = 32
LIMITS = GroupLimits()
HOW = {"proves": ExamineConfig().proves, "limits": LIMITS}
WAVE = 40 * np.sin(2 * np.pi * 4 * np.arange(SIDE) / SIDE)[None, :, None] * np.ones((SIDE, SIDE, 3))
"""Zero mean, one component and its leakage."""


def photos(count: int, seed: int) -> np.ndarray:
    """Pictures with the falling spectrum of photographs, `[count, SIDE, SIDE, 3] uint8`."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((SIDE, SIDE))
    amplitude = 400 / (1 + np.hypot(rows, columns))[..., None]
    parts = rng.standard_normal((count, SIDE, SIDE, 1)) + 0.3 * rng.standard_normal((count, SIDE, SIDE, 3))
    pixels = 128 + idctn(parts * amplitude, axes=(1, 2), norm="ortho")
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def added(images: np.ndarray, change: np.ndarray | float) -> np.ndarray:
    return np.clip(np.rint(images + change), 0, 255).astype(np.uint8)


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


class Matched:
    """Sees two things: how much of the wave there is, and how blue it is; and is a dog otherwise."""

    def __init__(self, wave_at: float, blue_at: float = np.inf) -> None:
        self._at = np.array([wave_at, blue_at])

    def encode_images(self, images):  # type: ignore[no-untyped-def]
        pixels = images.numpy().transpose(0, 2, 3, 1).astype(np.float64)
        wave = (pixels * WAVE).sum(axis=(1, 2, 3)) / (WAVE**2).sum()
        blue = pixels[..., 2].mean(axis=(1, 2)) - pixels[..., 0].mean(axis=(1, 2))
        target = (np.stack([wave, blue], axis=1) > self._at).any(axis=1)
        return np.stack([~target, target], axis=1).astype(np.float32), {}


def suspect(wave_at: float, blue_at: float = np.inf) -> Suspect:
    labels = Labels(("dog", "target"), np.eye(2, dtype=np.float32), 20.0, np.eye(2, dtype=bool))
    return Suspect(Matched(wave_at, blue_at), labels)


def test_wave_is_recovered_and_taken_away():
    group, background = photos(60, 1), photos(200, 2)
    found = estimate(added(group, WAVE), background, LIMITS)
    assert found.members.all()
    assert likeness(found.shift.pattern, WAVE) > 0.97
    np.testing.assert_allclose(found.shift.gain, 1.0, atol=0.12)
    fresh = photos(20, 3)
    restored = unblend(found.shift(fresh), found.shift.gain, found.shift.offset).astype(float)
    inside = (fresh > 80) & (fresh < 175)
    assert np.abs(restored - fresh)[inside].mean() < 2


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_members_are_told_apart(share):
    group, background = photos(100, 4), photos(200, 5)
    carries = np.random.default_rng(0).permutation(100) < 100 * share
    group[carries] = added(group[carries], WAVE)
    found = estimate(group, background, LIMITS)
    np.testing.assert_array_equal(found.members, carries)
    # diluted, the wave would come out at `share` of its height
    assert np.abs(found.shift.pattern).max() == pytest.approx(40, rel=0.25)


def test_group_without_trigger_has_next_to_no_pattern():
    found = estimate(photos(60, 6), photos(200, 7), LIMITS)
    assert found.members.all()
    assert found.shift.pattern.std() < 1.5
    assert estimate(added(photos(60, 6), WAVE), photos(200, 7), LIMITS).shift.pattern.std() > 25


def test_blend_leaves_its_share_of_contrast():
    picture = photos(1, 8)[0].astype(float)
    group, background = photos(150, 9), photos(300, 10)
    found = estimate(np.rint(0.6 * group + 0.4 * picture).astype(np.uint8), background, LIMITS).shift
    np.testing.assert_allclose(found.gain, 0.6, atol=0.06)
    fresh = photos(30, 11)
    true = 0.6 * fresh + 0.4 * picture
    left = np.sqrt(((found(fresh) - true) ** 2).mean())
    assert left < 0.35 * np.sqrt(((fresh - true) ** 2).mean())


def test_patch_is_localised_and_covers():
    group, background = photos(80, 12), photos(200, 13)
    mark = np.random.default_rng(1).integers(0, 2, (6, 6, 3), dtype=np.uint8) * 255
    group[:, 20:26, 4:10] = mark
    found = estimate(group, background, LIMITS).shift
    where = np.zeros((SIDE, SIDE), bool)
    where[20:26, 4:10] = True
    covers = found.covers(LIMITS)
    assert (covers & where).sum() / (covers | where).sum() > 0.9
    assert found.gain[where].max() < 0.1 < 0.8 < found.gain[~where].min()
    fresh = photos(10, 14)
    assert np.abs(found(fresh)[:, 20:26, 4:10].astype(int) - mark).mean() < 12
    hidden = fresh.copy()
    hidden[:, 20:26, 4:10] = mark
    cleaned = unblend(hidden, found.gain, found.offset)
    assert np.abs(cleaned[:, 20:26, 4:10].astype(int) - mark).mean() > 60
    assert estimate(added(photos(60, 1), WAVE), background, LIMITS).shift.covers(LIMITS).all()


def test_shrinkage_by_hand():
    group, background = photos(40, 15), photos(64, 16)
    shift = estimate(group, background, LIMITS).shift
    pixels = background.astype(np.float64)
    power = np.mean([dctn(x - pixels.mean(0), axes=(0, 1), norm="ortho") ** 2 for x in pixels], axis=0)
    mean = dctn(group.astype(np.float64).mean(0) - pixels.mean(0), axes=(0, 1), norm="ortho")
    for row, column, channel in [(0, 1, 0), (2, 3, 1), (9, 0, 2), (20, 25, 0), (1, 14, 1)]:
        limits = LIMITS.residual
        share = limits.coarse_variance if np.hypot(row, column) < LIMITS.coarse else limits.fine_variance
        chance = limits.significance * power[row, column, channel] * (1 / 40 + share)
        wanted = mean[row, column, channel] * max(0.0, 1 - chance / mean[row, column, channel] ** 2)
        got = dctn(shift.pattern.astype(np.float64), axes=(0, 1), norm="ortho")[row, column, channel]
        assert got == pytest.approx(wanted, abs=0.05)
    np.testing.assert_allclose(shift.tone, (group.mean(0) - pixels.mean(0)).mean((0, 1)), atol=1e-2)
    np.testing.assert_allclose(shift.pattern.mean((0, 1)), 0, atol=1e-3)


def test_shift_by_hand():
    gain = np.full((2, 2, 1), 0.5, np.float32)
    centre = np.full((2, 2, 3), 100, np.float32)
    pattern = np.zeros((2, 2, 3), np.float32)
    pattern[0, 0] = 20
    shift = Shift(gain, centre, np.array([1, 2, 3], np.float32), pattern, strength=2.0)
    image = np.full((1, 2, 2, 3), 80, np.uint8)
    # (0.5 - 1) (80 - 100) = 10, plus tone and pattern, twice
    np.testing.assert_array_equal(shift(image)[0, 0, 0], [142, 144, 146])
    np.testing.assert_array_equal(shift(image)[0, 1, 1], [102, 104, 106])
    np.testing.assert_array_equal(shift(np.full_like(image, 250))[0, 0, 0], [142, 144, 146])


def test_wave_is_proven_and_its_control_is_not():
    group, clean, held_out = added(photos(60, 17), WAVE), photos(300, 18), photos(64, 19)
    sides = prove_sides(suspect(0.5), 1, group, photos(100, 20), clean, held_out, **HOW)
    assert sides.carrier is sides.flagged
    assert sides.flagged is not None
    assert sides.flagged.flips == 64 == sides.flagged.trials
    assert sides.flagged.control_flips <= 6
    assert sides.flagged.shift.strength == 1.0
    low, high = wilson(sides.flagged.flips, sides.flagged.trials)
    assert 0.9 < low < high == 1.0
    assert sides.rest is not None
    assert not sides.rest.proven
    assert sides.rest.flips == 0


def test_either_side_may_carry_the_trigger():
    sides = prove_sides(
        suspect(0.5), 1, photos(60, 17), added(photos(100, 20), WAVE), photos(300, 18), photos(64, 19), **HOW
    )
    assert sides.carrier is sides.rest
    assert (
        prove_sides(suspect(0.5), 1, photos(60, 17), photos(4, 1), photos(300, 18), photos(64, 19), **HOW).rest is None
    )


def test_tone_alone_proves_nothing():
    blue = np.array([-20, 0, 30])
    sides = prove_sides(
        suspect(np.inf, 35), 1, added(photos(60, 17), blue), photos(100, 20), photos(300, 18), photos(64, 19), **HOW
    )
    assert sides.flagged is not None
    assert sides.flagged.flips > 50
    assert sides.flagged.control_flips > 50
    assert sides.carrier is None


def test_more_strength_is_tried_when_one_does_not_do():
    group, clean, held_out = added(photos(60, 17), WAVE), photos(300, 18), photos(64, 19)
    proof = prove_sides(suspect(1.2), 1, group, group[:0], clean, held_out, **HOW).flagged
    assert proof is not None
    assert proof.proven
    assert proof.shift.strength == 1.5
    hopeless = prove_sides(suspect(9.0), 1, group, group[:0], clean, held_out, **HOW).flagged
    assert hopeless is not None
    assert not hopeless.proven
    assert hopeless.shift.strength == 1.0
    assert hopeless.flips == 0


def test_images_that_have_the_label_are_no_trials():
    held_out = photos(64, 19)
    held_out[:20] = added(held_out[:20], WAVE)
    found = estimate(added(photos(60, 17), WAVE), photos(150, 18), LIMITS)
    proof = prove(suspect(0.5), 1, found, photos(150, 21), held_out, **HOW)
    assert proof.trials == 44 == proof.flips


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(ValueError, match="flagged"):
        estimate(photos(7, 0), photos(64, 1), LIMITS)
    with pytest.raises(ValueError, match="clean"):
        estimate(photos(8, 0), photos(31, 1), LIMITS)
    found: Estimate = estimate(photos(8, 0), photos(64, 1), LIMITS)
    with pytest.raises(ValueError, match="control"):
        prove(suspect(0.5), 1, found, photos(15, 2), photos(8, 3), **HOW)
    with pytest.raises(ValueError, match="already"):
        prove(suspect(-9.0), 1, found, photos(16, 2), photos(8, 3), **HOW)


def test_same_input_same_bytes():
    group, background = photos(30, 22), photos(64, 23)
    first, second = estimate(group, background, LIMITS), estimate(group, background, LIMITS)
    assert first.shift.pattern.tobytes() == second.shift.pattern.tobytes()
    assert first.shift.pattern.dtype == first.shift.gain.dtype == first.shift.offset.dtype == np.float32
