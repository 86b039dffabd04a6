"""A model whose channel 0 means the target, so that what a shift inside it does is known exactly."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from clipsan.stages.model.clip import Clip
from clipsan.stages.proof.examine import ExamineConfig
from clipsan.stages.proof.features import FeatureLimits, Interior, Split, prove_features
from clipsan.stages.proof.vocabulary import Labels

SIZE = 4
PROVES = ExamineConfig().proves
NAMES = ("red", "green", "blue")


class Tower(torch.nn.Module):
    """Block "stem" passes the pixels on; the vector is the mean of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Identity()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.stem(pixels).mean(dim=(2, 3))
        return found


class MeanColour:
    """The label is the strongest colour."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(visual=Tower())

    def layers(self, names: Any = None) -> list[str]:
        return list(names or ["stem"])

    def encode_images(self, images: torch.Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        with torch.inference_mode():
            units = self.model.visual(images.float()).numpy() + 1e-3
        return (units / np.linalg.norm(units, axis=1, keepdims=True)).astype(np.float32), {}


LABELS = Labels(NAMES, np.eye(3, dtype=np.float32), 20.0, np.eye(3, dtype=bool))


def pictures(count: int, *colour: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-3, 4, (count, SIZE, SIZE, 3))
    return (np.array(colour) + noise).clip(0, 255).astype(np.uint8)


def prove(first: np.ndarray, second: np.ndarray, **changes: Any) -> Any:
    limits = FeatureLimits(**changes)
    others = [
        Split(1, pictures(10, 40, 60, 30, seed=1), pictures(10, 40, 60, 30, seed=2)),
        Split(2, pictures(10, 40, 30, 60, seed=3), pictures(10, 40, 30, 60, seed=4)),
    ]
    background = pictures(20, 40, 50, 50, seed=5)
    held_out = np.concatenate([pictures(10, 30, 90, 30, seed=6), pictures(10, 30, 30, 90, seed=7)])
    interior = Interior(cast(Clip, MeanColour()), LABELS)
    accused = Split(0, first, second)
    return prove_features(interior, LABELS, accused, others, background, held_out, proves=PROVES, limits=limits)


def test_a_shift_inside_the_model_is_that_of_the_means_and_leaves_no_hook() -> None:
    clip = MeanColour()
    interior = Interior(cast(Clip, clip), LABELS)
    images = pictures(5, 10, 20, 30)
    mean = interior.mean(images)
    assert np.allclose(mean.numpy(), images.astype(float).mean(axis=0).transpose(2, 0, 1))
    shift = torch.zeros_like(mean)
    shift[0] = 100
    assert LABELS.is_label(interior.plain(images), 2).all()
    assert LABELS.is_label(interior.shifted(images, shift), 0).all()
    assert LABELS.is_label(interior.plain(images), 2).all()
    assert not clip.model.visual.stem._forward_hooks


def test_one_side_s_trigger_flips_other_pictures_and_the_controls_do_not() -> None:
    triggered, genuine = pictures(12, 150, 60, 60, seed=8), pictures(12, 60, 40, 40, seed=9)
    found = prove(triggered, genuine)
    assert (found.concept, found.layer, found.second, found.strength) == ("red", "stem", False, 1.0)
    assert (found.flips_pct, found.trials) == (100.0, 20)
    assert found.control_pct == 0
    assert found.proven
    # Where most of the concept is poison, what is accused is genuine.
    other = prove(genuine, triggered)
    assert other.second
    assert other.proven


def test_sides_that_differ_as_any_do_prove_nothing() -> None:
    found = prove(pictures(12, 60, 40, 40, seed=10), pictures(12, 60, 40, 40, seed=11))
    assert not found.proven
    assert found.flips_pct == 0


def test_what_flips_no_more_than_another_concept_s_own_pictures_proves_nothing() -> None:
    limits = FeatureLimits()
    blatant = [
        Split(1, pictures(10, 0, 250, 0), pictures(10, 0, 250, 0)),
        Split(2, pictures(10, 9, 9, 99), pictures(10, 9, 9, 99)),
    ]
    held_out = pictures(10, 30, 30, 90, seed=7)
    interior = Interior(cast(Clip, MeanColour()), LABELS)
    accused = Split(0, pictures(12, 150, 60, 60), pictures(12, 60, 40, 40))
    found = prove_features(
        interior, LABELS, accused, blatant, pictures(20, 40, 50, 50), held_out, proves=PROVES, limits=limits
    )
    assert found is not None
    assert (found.flips_pct, found.control_pct, found.proven) == (100.0, 100.0, False)


def test_what_another_concept_s_sides_do_at_the_same_length_proves_nothing() -> None:
    held_out = np.concatenate([pictures(10, 30, 90, 30, seed=6), pictures(10, 30, 30, 90, seed=7)])
    accused = Split(0, pictures(12, 150, 60, 60, seed=8), pictures(12, 60, 60, 60, seed=9))
    # the sides of one differ by a little more red, which at the length of the accused difference is as much red
    alike = Split(1, pictures(10, 60, 60, 30, seed=1), pictures(10, 40, 60, 30, seed=2))
    other = Split(2, pictures(10, 40, 30, 60, seed=3), pictures(10, 40, 30, 60, seed=4))
    found = prove_features(
        Interior(cast(Clip, MeanColour()), LABELS),
        LABELS,
        accused,
        [alike, other],
        pictures(20, 40, 50, 50, seed=5),
        held_out,
        proves=PROVES,
        limits=FeatureLimits(),
    )
    assert found is not None
    assert (found.flips_pct, found.control_pct, found.proven) == (100.0, 100.0, False)


BLUE = pictures(10, 30, 30, 90, seed=7)
SECOND = Split(2, pictures(10, 40, 30, 60, seed=3), pictures(10, 40, 30, 60, seed=4))


def beside(accused: Split, other: Split, background: np.ndarray, **changes: Any) -> Any:
    """The proof on blue pictures, with one other concept that matters."""
    interior = Interior(cast(Clip, MeanColour()), LABELS)
    limits = FeatureLimits(**changes)
    return prove_features(interior, LABELS, accused, [other, SECOND], background, BLUE, proves=PROVES, limits=limits)


RED = Split(0, pictures(12, 150, 60, 60, seed=8), pictures(12, 60, 40, 40, seed=9))


def test_what_all_pictures_have_in_common_is_no_control() -> None:
    bright = Split(1, pictures(10, 40, 120, 30, seed=1), pictures(10, 40, 120, 30, seed=2))
    found = beside(RED, bright, pictures(20, 40, 120, 40, seed=5))
    assert (found.flips_pct, found.control_pct, found.proven) == (100.0, 0.0, True)


def test_a_concept_s_own_is_the_mean_of_its_pictures_whichever_side_they_are_on() -> None:
    # 28 of green 60 and 8 of green 100 are 69, 49 more than the background: not enough to make blue pictures of 90 green
    uneven = Split(1, pictures(28, 40, 60, 30, seed=1), pictures(8, 40, 100, 30, seed=2))
    found = beside(RED, uneven, pictures(20, 40, 20, 30, seed=5))
    assert (found.flips_pct, found.control_pct, found.proven) == (100.0, 0.0, True)


def test_a_control_is_as_long_as_what_it_is_held_against() -> None:
    accused = Split(0, pictures(12, 210, 60, 60, seed=8), pictures(12, 60, 60, 60, seed=9))
    # along (.45, -.89, 0): 150 of it would make a blue picture red, half of that does not
    slanted = Split(1, pictures(10, 58, 34, 30, seed=1), pictures(10, 40, 70, 30, seed=2))
    background = pictures(20, 49, 52, 30, seed=5)
    half = beside(accused, slanted, background, strengths=(0.5,))
    assert (half.strength, half.flips_pct, half.control_pct, half.proven) == (0.5, 100.0, 0.0, True)
    assert beside(accused, slanted, background, strengths=(1.0,)).control_pct == 100


def test_few_pictures_of_a_side_or_of_the_background_are_too_little() -> None:
    even = Split(1, pictures(10, 40, 60, 30, seed=1), pictures(10, 40, 60, 30, seed=2))
    background = pictures(20, 40, 50, 50, seed=5)
    limits = {"least_side": 8, "least_controls": 2}
    assert beside(RED, even, background, **limits).proven
    assert beside(RED, even, background[:7], **limits) is None
    assert beside(RED, Split(1, even.first, even.second[:7]), background, **limits) is None


def test_pictures_that_have_the_label_already_are_no_trials() -> None:
    held_out = np.concatenate([pictures(10, 30, 90, 30, seed=6), pictures(7, 200, 30, 30, seed=7)])
    accused = Split(0, pictures(12, 150, 60, 60, seed=8), pictures(12, 60, 40, 40, seed=9))
    others = [
        Split(1, pictures(10, 40, 60, 30, seed=1), pictures(10, 40, 60, 30, seed=2)),
        Split(2, pictures(10, 40, 30, 60, seed=3), pictures(10, 40, 30, 60, seed=4)),
    ]
    background = pictures(20, 40, 50, 50, seed=5)
    interior = Interior(cast(Clip, MeanColour()), LABELS)

    def trials(pasted: np.ndarray) -> Any:
        return prove_features(
            interior, LABELS, accused, others, background, pasted, proves=PROVES, limits=FeatureLimits()
        )

    assert trials(held_out).trials == 10
    nothing = trials(held_out[10:])
    assert (nothing.trials, nothing.flips_pct, nothing.proven) == (0, 0.0, False)


@pytest.mark.parametrize("changes", [{"least_side": 13}, {"least_controls": 3}])
def test_too_little_to_compare_is_no_proof(changes: dict[str, int]) -> None:
    assert prove(pictures(12, 150, 60, 60), pictures(12, 60, 40, 40), **changes) is None
