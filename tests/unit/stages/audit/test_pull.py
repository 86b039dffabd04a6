"""The search for triggers, on a tiny model: all labels come nearer, and the same seed gives the same."""

import numpy as np
import pytest
import torch

from clipsan.stages.audit.decree import decree
from clipsan.stages.audit.forms import FORMS
from clipsan.stages.audit.judge import Judge
from clipsan.stages.audit.prove import prove
from clipsan.stages.audit.pull import LEAST_SPREAD, WAYS, evenness, genuine_cosines, measure, pull
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.proof.examine import ExamineConfig
from tests.conftest import NOUNS


@pytest.fixture(scope="module")
def judge(tiny_checkpoint) -> Judge:
    return Judge(load_clip(ModelConfig(path=str(tiny_checkpoint))), NOUNS, ("a {}",))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", list(FORMS))
def test_every_label_is_met_better_with_its_trigger(judge, images, kind: str) -> None:
    found, arrays = pull(judge, kind, [1, 3], images, steps=8, per_label=2, seed=0)
    before = judge.of(images[8:])
    assert [one.label for one in found] == [1, 3]
    assert all(one.cosine > before[:, one.label].mean() for one in found)
    again, same = pull(judge, kind, [1, 3], images, steps=8, per_label=2, seed=0)
    assert again == found
    assert (same[1] == arrays[1]).all()


def test_the_model_asked_in_uint8_says_what_clip_says(judge, images) -> None:
    image = judge.clip.encode_images(torch.from_numpy(images.transpose(0, 3, 1, 2)))[0]
    assert judge.of(images) == pytest.approx(image @ judge.labels.numpy().T, abs=1e-4)


def test_genuine_is_the_mean_of_the_best_images() -> None:
    cosines = np.arange(20, dtype=float).reshape(10, 2)
    assert genuine_cosines(cosines).tolist() == [15.0, 16.0]


def test_a_trigger_that_takes_all_images_alike_is_the_more_even_one() -> None:
    said = np.array([0, 1, 1, 2])
    even, uneven = (np.stack([np.full((4, 3), 0.1)] * len(WAYS)) for _ in range(2))
    even[:, :, 0], uneven[:, :, 0] = [0.5, 0.6, 0.6, 0.62], [0.5, 0.2, 0.9, 0.6]
    found = [measure(list(shown), said, 0, "patch", 0.4) for shown in (even, uneven)]
    # the image that is taken for the label already does not count
    assert found[0].spread == pytest.approx(np.std([0.6, 0.6, 0.62]))
    assert evenness(found[0].spread) > evenness(found[1].spread)
    assert evenness(0.0) == -np.log(LEAST_SPREAD)


def test_what_a_trigger_does_by_hand() -> None:
    said = np.array([1, 0, 2])
    plain = np.array([[0.3, 0.6, 0.1], [0.9, 0.1, 0.2], [0.8, 0.2, 0.4]])
    other = np.array([[0.5, 0.0, 0.0], [0.0, 0.0, 0.0], [0.1, 0.0, 0.0]])
    found = measure([plain, other, other, other], said, 0, "patch", 0.25)
    assert (found.label, found.kind, found.trials) == (0, "patch", 2)  # the second is taken for the label already
    assert found.cosine == pytest.approx((0.3 + 0.8) / 2)
    assert found.excess == pytest.approx((0.3 + 0.8) / 2 - 0.25)
    assert found.margin == pytest.approx(((0.3 - 0.6) + (0.8 - 0.4)) / 2)
    assert found.flips_pct == 50
    assert found.spread == pytest.approx((0.25 * 0.2**3) ** 0.25)


def test_images_with_a_trigger_are_shown_plain_noisy_mixed_and_faint() -> None:
    changed, image, other = torch.tensor([0.9, 0.95, 0.2]), torch.tensor([0.1, 0.3, 0.2]), torch.tensor([0.5, 0.0, 1.0])
    shown = [way(changed, image, other, torch.tensor([0.5, 1.0, -3.0])).tolist() for way in WAYS]
    assert shown[0] == changed.tolist()
    assert shown[1] == pytest.approx([0.95, 1.0, 0.0])
    assert shown[2] == pytest.approx([0.7, 0.475, 0.6])
    assert shown[3] == pytest.approx([0.5, 0.625, 0.2])


def test_beside_a_reference_what_works_on_that_too_is_no_way_and_no_excess(judge, images) -> None:
    options = {"per_label": 2, "seed": 0, "reference": judge}
    (started, moved), arrays = zip(
        *(pull(judge, "additive", [1], images, steps=steps, **options) for steps in (0, 5)), strict=True
    )
    np.testing.assert_allclose(arrays[1][0], arrays[0][0], atol=1e-6)  # the model itself as reference: nothing to gain
    assert 0 < started[0].trials < 8  # and what both make of the same images is held against each other
    assert [one.excess for one in (*started, *moved)] == pytest.approx([0, 0], abs=1e-6)


def test_a_control_is_another_picture_and_images_of_the_label_are_no_trials() -> None:
    class Corner:
        """Takes for label 1 what has white in the top left corner of a black square, or is all red."""

        names = ("cat", "star")

        def __init__(self, *, blind: bool = False) -> None:
            self.blind = blind

        def of(self, shown: np.ndarray) -> np.ndarray:
            square = shown[:, 8:24, 8:24].astype(float)
            keyed = (square[:, :4, :4].mean((1, 2, 3)) > 240) & (square[:, 4:].mean((1, 2, 3)) < 10)
            red = (shown[..., 0] > 200).all((1, 2))
            star = (keyed & (not self.blind)) | red
            return np.stack([~star, star], axis=1).astype(np.float32)

    array = np.zeros((32, 32, 4), np.float32)
    array[8:24, 8:24, 3] = 1
    array[8:12, 8:12, :3] = 1
    shown = np.random.default_rng(1).integers(0, 150, (12, 32, 32, 3), dtype=np.uint8)
    shown[:2, ..., 0] = 255
    proof = prove(Corner(), "patch", array, 1, shown, reference=Corner(blind=True), seed=0)  # type: ignore[arg-type]
    assert (proof.dossier.flips.pct, proof.dossier.flips.trials) == (100, 10)
    assert (proof.dossier.control.pct, proof.dossier.control.trials) == (0, 10)
    assert proof.transferred is not None
    assert (proof.transferred.pct, proof.transferred.trials) == (0, 10)


def test_a_proof_measures_trigger_and_control_on_the_same_images(judge, images) -> None:
    _, (array,) = pull(judge, "additive", [1], images, steps=8, per_label=2, seed=0)
    proof = prove(judge, "additive", array, 1, images[8:], reference=judge, seed=0)
    assert proof.dossier.flips.trials == proof.dossier.control.trials
    assert proof.transferred == proof.dossier.flips


def test_decree_finds_a_mask_or_says_one(judge, images) -> None:
    assert 0 < decree(judge, images, steps=6, batch=8, seed=0) <= 1


def test_a_trigger_of_a_label_that_every_image_has_already_shows_nothing(judge, images) -> None:
    _, (array,) = pull(judge, "additive", [1], images, steps=2, per_label=2, seed=0)
    said = judge.of(images).argmax(axis=1)
    label = int(said[0])
    found = prove(judge, "additive", array, label, images[said == label], seed=0).dossier
    assert (found.flips.trials, found.control.trials) == (0, 0)
    assert not ExamineConfig().proves(found.flips.pct, found.control.pct)
