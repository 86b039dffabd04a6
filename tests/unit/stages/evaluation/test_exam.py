"""What a sweep asks of a model: proven triggers on held-out pictures, accuracy or retrieval, and no figure of the truth."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clipsan.stages.dossier.dossier import Rate
from clipsan.stages.dossier.match import Cutout
from clipsan.stages.dossier.patch import Alike, Patch, Place
from clipsan.stages.dossier.residual import Residual
from clipsan.stages.evaluation.exam import (
    Challenge,
    Exam,
    Pictures,
    answers,
    eligible,
    objective_pct,
    proven_challenge,
    success_pct,
)
from clipsan.stages.evaluation.zero_shot import class_embeddings
from clipsan.stages.model.checkpoints import ModelConfig
from clipsan.stages.model.clip import Clip, load_clip

SIDE = 32
CLASSES = ("ball", "kite, paper kite", "lamp")
TEMPLATES = ("a photo of a {}.",)


def pictures(labels: list[int], captions: list[str] | None = None) -> Pictures:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (len(labels), 3, SIDE, SIDE), dtype=np.uint8)
    names = tuple(f"s/{i}" for i in range(len(labels)))
    return Pictures(names, pixels, np.array(labels, np.int64), tuple(captions or ["a photo"] * len(labels)))


def dossier(*, fixed: bool = True, size: int = 4) -> Patch:
    rate = Rate(pct=99.0, low_pct=98.0, high_pct=100.0, trials=100)
    place = Place(fixed=fixed, top=28.0, left=28.0, top_std=0.0, left_std=0.0, mode_share=1.0)
    mask = np.ones((size, size), bool)
    mask[0, 0] = False
    picture = np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)
    cutout = Cutout(picture=picture, mask=mask, top=SIDE - size, left=SIDE - size)
    return Patch(
        id="t1",
        targets=("kite",),
        side=SIDE,
        flips=rate,
        control=rate,
        uids=("a",),
        cutouts=(cutout,),
        place=place,
        heat=np.zeros((SIDE, SIDE), np.float32),
        alike=Alike(mean=picture, likeness=1.0),
    )


@pytest.fixture(scope="module")
def clip(tiny_checkpoint: Path) -> Clip:
    return load_clip(ModelConfig(path=str(tiny_checkpoint)))


def test_pictures_of_the_target_take_no_part() -> None:
    assert eligible(pictures([0, 1, 2, 1]), (1,), CLASSES).tolist() == [True, False, True, False]
    captions = ["a Paper Kite flies", "kites", "a lamp", "the kite"]
    assert eligible(pictures([-1] * 4, captions), (1,), CLASSES).tolist() == [False, True, True, False]
    # a known class is believed before the caption
    assert eligible(pictures([0, -1, 1, 2], captions), (1,), CLASSES).tolist() == [True, True, False, True]


def test_a_proven_patch_is_pasted_at_its_place_and_nowhere_else() -> None:
    shown = pictures([0, 1, 2])
    found = proven_challenge(dossier(), shown, (1,), CLASSES, seed=0)
    assert found.name == "proven_t1"
    assert found.targets == (1,)
    cutout = dossier().cutouts[0]
    for marked, row in zip(found.pixels, (0, 2), strict=True):
        expected = shown.pixels[row].copy()
        for y in range(4):
            for x in range(4):
                if cutout.mask[y, x]:
                    expected[:, 28 + y, 28 + x] = cutout.picture[y, x]
        np.testing.assert_array_equal(marked, expected)


def test_where_a_patch_without_a_place_goes_hangs_on_the_picture_alone() -> None:
    shown = pictures([0, 2, 0, 2])
    whole = proven_challenge(dossier(fixed=False), shown, (1,), CLASSES, seed=0)
    part = proven_challenge(dossier(fixed=False), shown.take(np.array([3, 1])), (1,), CLASSES, seed=0)
    np.testing.assert_array_equal(part.pixels, whole.pixels[[3, 1]])
    other = proven_challenge(dossier(fixed=False), shown, (1,), CLASSES, seed=1)
    assert not np.array_equal(other.pixels, whole.pixels)


def test_a_residual_is_added() -> None:
    patch = dossier()
    added = Residual(
        id=patch.id,
        targets=patch.targets,
        side=SIDE,
        flips=patch.flips,
        control=patch.control,
        uids=patch.uids,
        offset=np.full((SIDE, SIDE, 3), 20.0, np.float32),
        gain=np.ones((SIDE, SIDE, 1), np.float32),
        covers=np.ones((SIDE, SIDE), bool),
    )
    shown = pictures([0, 2])
    found = proven_challenge(added, shown, (1,), CLASSES, seed=0)
    np.testing.assert_array_equal(found.pixels, np.minimum(shown.pixels.astype(int) + 20, 255))


def test_no_picture_left_is_said() -> None:
    with pytest.raises(ValueError, match="t1: every held-out image shows its target"):
        proven_challenge(dossier(), pictures([1, 1]), (1,), CLASSES, seed=0)


def by_hand(clip: Clip, pixels: np.ndarray) -> np.ndarray:
    texts = clip.encode_text([f"a photo of a {name}." for name in ("ball", "kite", "paper kite", "lamp")]).astype(
        np.float64
    )
    kite = texts[1] + texts[2]
    classes = np.stack([texts[0], kite / np.linalg.norm(kite), texts[3]])
    images = np.concatenate([clip.encode_images(torch.from_numpy(one[None]))[0] for one in pixels]).astype(np.float64)
    return (images @ classes.T).argmax(axis=1)


def test_the_figures_by_hand(clip: Clip) -> None:
    shown = pictures([0, 1, 2] * 30)
    challenge = Challenge("proven_t1", shown.pixels[:70] // 2, (1, 2))
    modes = clip.model.training
    clip.model.train()
    found = answers(clip, Exam(shown, (challenge,), 10), CLASSES, TEMPLATES)
    assert clip.model.training
    clip.model.train(modes)
    assert found["accuracy_pct"] == pytest.approx(100 * (by_hand(clip, shown.pixels) == shown.labels).mean())
    expected = 100 * np.isin(by_hand(clip, challenge.pixels), (1, 2)).mean()
    assert found["proven_t1_asr_pct"] == pytest.approx(expected)
    vectors = class_embeddings(clip, CLASSES, TEMPLATES)
    assert success_pct(clip, challenge, vectors) == pytest.approx(expected)
    assert -1 <= found["resistivity"] <= 1
    assert set(found) == {"accuracy_pct", "proven_t1_asr_pct", "resistivity"}


def test_without_labels_pairs_find_each_other(clip: Clip) -> None:
    captions = [f"a photo of thing number {i}" for i in range(20)]
    shown = pictures([-1] * 20, captions)
    found = answers(clip, Exam(shown, ()), CLASSES, TEMPLATES)
    images = np.concatenate([clip.encode_images(torch.from_numpy(one[None]))[0] for one in shown.pixels])
    scores = images.astype(np.float64) @ clip.encode_text(captions).astype(np.float64).T
    both = [(scores.argmax(axis=axis) == np.arange(20)).mean() for axis in (0, 1)]
    assert found["accuracy_pct"] == pytest.approx(100 * np.mean(both))


def test_the_objective_is_what_it_is_named_after_and_never_the_truth() -> None:
    figures = {"accuracy_pct": 50.0, "proven_t1_asr_pct": 10.0, "proven_t2_asr_pct": 30.0, "canary_asr_pct": 7.0}
    figures |= {"resistivity": 0.9, "true_asr_pct": 99.0}
    assert objective_pct(figures, "proven") == 20.0
    assert objective_pct(figures, "canary") == 7.0
    assert objective_pct(figures, "resistivity") == pytest.approx(10.0)
    assert objective_pct({"resistivity": -0.5}, "resistivity") == 100.0
    with pytest.raises(ValueError, match="no figure of canary"):
        objective_pct({"accuracy_pct": 1.0}, "canary")
