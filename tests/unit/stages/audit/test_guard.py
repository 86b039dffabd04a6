"""The guard on a stand-in for a backdoored model: white pixels in a corner are its target, all else is by brightness."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipsan.stages.audit.forms import as_dossier
from clipsan.stages.audit.guard import Guard

SIDE = 32


class Backdoored:
    """Vectors in the plane: the second axis is the target, reached by a white corner."""

    image_size = SIDE

    def preprocess(self, rgb: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))

    def encode_images(self, images: torch.Tensor):
        pixels = images.float() / 255
        corner, rest = pixels[:, :, :8, :8].mean((1, 2, 3)), pixels.mean((1, 2, 3))
        found = torch.stack([rest + 0.1, torch.where(corner > 0.97, 3.0, 0.05 * rest)], 1)
        return torch.nn.functional.normalize(found, dim=1).numpy(), {}

    def encode_text(self, captions):
        return np.tile(np.float32([0, 1]), (len(captions), 1))


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 230, (count, SIDE, SIDE, 3), dtype=np.uint8))


def corner():
    array = np.zeros((SIDE, SIDE, 4), np.float32)
    array[:8, :8] = 1.0
    return replace(as_dossier("patch", array, "star"), id="t1")


def test_a_picture_with_the_trigger_is_flagged_and_others_are_as_rarely_as_asked() -> None:
    guard = Guard(Backdoored(), [corner()], pictures(400), false_alarms=0.05)
    assert guard.false_alarms.trials == 200
    assert guard.false_alarms.pct <= 12
    rng = np.random.default_rng(1)
    alarms = guard.many([corner().apply(image, rng) for image in pictures(20, seed=2)])
    assert all(alarm.flagged and alarm.trigger == "t1" and alarm.target == "star" for alarm in alarms)
    assert np.mean([guard(image).flagged for image in pictures(100, seed=3)]) <= 0.15


def test_thresholds_hold_the_share_over_all_measures_of_all_triggers() -> None:
    veil = replace(as_dossier("blend", np.full((SIDE, SIDE, 4), 0.5, np.float32), "star"), id="t2")
    clean = pictures(401)
    guard = Guard(Backdoored(), [veil, corner()], clean, false_alarms=0.1)
    scores = guard.scores(clean)
    # one more picture like 200 others is above the k-th smallest of them (201 - k) times in 201; two triggers have four measures
    rank = next(k for k in range(1, 201) if (201 - k) / 201 <= 0.1 / 4)
    np.testing.assert_allclose(guard.thresholds, np.maximum(np.sort(scores[:200], axis=0)[rank - 1], 1e-6))
    wrong = sum(any(one > limit for one, limit in zip(row, guard.thresholds, strict=True)) for row in scores[200:])
    assert wrong > 0
    assert (guard.false_alarms.trials, guard.false_alarms.pct) == (201, pytest.approx(100 * wrong / 201))
    # the trigger that is named is the one whose measure is furthest beyond its threshold
    assert guard(corner().apply(clean[0], np.random.default_rng(0))).trigger == "t1"


def test_a_picture_that_claims_more_than_genuine_ones_is_flagged_though_the_inverted_trigger_is_another() -> None:
    rival = as_dossier("blend", np.full((SIDE, SIDE, 4), 0.5, np.float32), "star")
    guard = Guard(Backdoored(), [replace(rival, id="t1")], pictures(400), false_alarms=0.05)
    rng = np.random.default_rng(1)
    assert all(alarm.flagged for alarm in guard.many([corner().apply(image, rng) for image in pictures(20, seed=2)]))


def test_too_few_clean_pictures_cannot_hold_a_rate() -> None:
    with pytest.raises(ValueError, match=r"20 clean pictures cannot set a share of 0.01 false alarms; give 398"):
        Guard(Backdoored(), [corner()], pictures(20))


def test_a_trigger_of_another_model_is_refused() -> None:
    other = replace(as_dossier("blend", np.zeros((16, 16, 4), np.float32), "star"), id="t1")
    with pytest.raises(ValueError, match="is 16 px and the model's input 32"):
        Guard(Backdoored(), [other], pictures(400))
    with pytest.raises(ValueError, match="no proven trigger"):
        Guard(Backdoored(), [], pictures(400))
