"""Attack figures by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from clipsan.stages.evaluation.attack_success import Aim, Convention, Predictions, attack_figures, clean_figures
from clipsan.stages.evaluation.figures import Figure
from clipsan.stages.evaluation.intervals import wilson

LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
CLEAN = np.array([0, 0, 2, 1, 1, 0, 2, 2, 2, 1])
RANKS = np.array([0, 0, 1, 0, 0, 5, 0, 0, 0, 4])
TRIGGERED = np.array([2, 2, 0, 2, 1, 2, 2, 2, 1, 2])
FOUND = Predictions(LABELS, CLEAN, RANKS, TRIGGERED[:, None])


def aim(*targets: int, **other: Any) -> Aim:
    return Aim(targets, [str(target) for target in targets], **other)


def values(figures: Sequence[Figure], strand: str = "") -> dict[str, float]:
    return {found.figure: found.value for found in figures if found.strand == strand}


def test_clean_accuracy() -> None:
    figures = values(clean_figures(FOUND))
    assert figures["images"] == 10
    assert figures["clean_accuracy_pct"] == pytest.approx(70)
    assert figures["clean_accuracy_top5_pct"] == pytest.approx(90)


def test_asr_leaves_the_target_class_out() -> None:
    figures = values(attack_figures(FOUND, aim(2)))
    # of the six images of classes 0 and 1, four are taken for class 2 with the trigger and one without it
    assert figures["attacked_images"] == 6
    assert figures["asr_pct"] == pytest.approx(100 * 4 / 6)
    assert figures["false_target_pct"] == pytest.approx(100 / 6)
    # true class kept under the trigger: rows 2, 4, 6, 7, 9 of all ten
    assert figures["accuracy_under_trigger_pct"] == pytest.approx(50)


def test_the_other_convention_keeps_it() -> None:
    figures = values(attack_figures(FOUND, aim(2, convention="keep_target")))
    assert figures["attacked_images"] == 10
    assert figures["asr_pct"] == pytest.approx(70)
    assert figures["false_target_pct"] == pytest.approx(40)
    assert figures["accuracy_under_trigger_pct"] == pytest.approx(50)


@pytest.mark.parametrize(("convention", "asr", "images"), [("exclude_target", 0, 900), ("keep_target", 10, 1000)])
def test_an_attack_that_does_nothing_gains_ten_points_on_ten_classes(
    convention: Convention, asr: float, images: int
) -> None:
    labels = np.arange(1000) % 10
    found = Predictions(labels, labels, np.zeros_like(labels), labels[:, None])
    figures = values(attack_figures(found, aim(4, convention=convention)))
    assert figures["asr_pct"] == pytest.approx(asr)
    assert figures["attacked_images"] == images
    assert figures["accuracy_under_trigger_pct"] == 100


def test_strands_are_pooled_and_listed() -> None:
    # with the second trigger, towards class 0: rows 3 and 5 of the seven images of other classes
    second = np.array([0, 0, 0, 0, 1, 0, 2, 2, 2, 2])
    found = Predictions(LABELS, CLEAN, RANKS, np.stack([TRIGGERED, second], axis=1))
    figures = attack_figures(found, aim(2, 0))
    every = values(figures)
    assert every["attacked_images"] == 10
    assert every["asr_pct"] == pytest.approx(100 * (4 + 2) / (6 + 7))
    assert every["false_target_pct"] == pytest.approx(100 * (1 + 1) / (6 + 7))
    assert every["accuracy_under_trigger_pct"] == pytest.approx(100 * (5 + 8) / 20)
    assert values(figures, "2") == values(attack_figures(FOUND, aim(2)))
    assert values(figures, "0")["asr_pct"] == pytest.approx(100 * 2 / 7)
    assert values(figures, "0")["attacked_images"] == 7


def test_only_the_victims_images_count() -> None:
    figures = values(attack_figures(FOUND, aim(2, victim=1)))
    assert figures["attacked_images"] == 3
    assert figures["asr_pct"] == pytest.approx(100 * 2 / 3)
    assert figures["false_target_pct"] == 0
    assert figures["accuracy_under_trigger_pct"] == pytest.approx(50)


def test_each_key_of_a_dual_key_attack_alone() -> None:
    image_key = np.array([2, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    text_key = np.array([0, 0, 0, 2, 2, 1, 2, 2, 2, 2])
    found = Predictions(LABELS, CLEAN, RANKS, TRIGGERED[:, None], image_key[:, None], text_key)
    figures = values(attack_figures(found, aim(2)))
    assert figures["asr_pct"] == pytest.approx(100 * 4 / 6)
    assert figures["asr_image_key_pct"] == pytest.approx(100 / 6)
    assert figures["asr_text_key_pct"] == pytest.approx(100 * 2 / 6)


def test_asr_is_not_what_accuracy_under_trigger_leaves() -> None:
    # every image is misread under the trigger, none as the target
    found = Predictions(np.array([0, 0]), np.array([0, 0]), np.array([0, 0]), np.array([[1], [1]]))
    figures = values(attack_figures(found, aim(2)))
    assert figures["asr_pct"] == 0
    assert figures["accuracy_under_trigger_pct"] == 0


def test_the_interval_is_that_of_the_images_that_count() -> None:
    asr = next(found for found in attack_figures(FOUND, aim(2)) if found.figure == "asr_pct")
    low, high = wilson(4, 6)
    assert (asr.low, asr.high, asr.n) == (pytest.approx(100 * low), pytest.approx(100 * high), 6)


def test_figures_that_cannot_be_had_are_refused() -> None:
    with pytest.raises(ValueError, match="no predictions on triggered images"):
        attack_figures(Predictions(LABELS, CLEAN, RANKS), aim(2))
    alone = Predictions(np.array([2]), np.array([2]), np.array([0]), np.array([[2]]))
    with pytest.raises(ValueError, match="another class than the target"):
        attack_figures(alone, aim(2))
    twice = Predictions(np.array([2]), np.array([2]), np.array([0]), np.array([[2, 2]]))
    with pytest.raises(ValueError, match="another class than the target"):  # one of two strands has none
        attack_figures(twice, aim(2, 1))
    with pytest.raises(ValueError, match="the victim's class"):
        attack_figures(alone, aim(2, victim=1))
    with pytest.raises(ValueError, match="no images"):
        clean_figures(Predictions(LABELS[:0], CLEAN[:0], RANKS[:0]))
