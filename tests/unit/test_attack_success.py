"""Attack figures by hand."""

import math

import numpy as np
import pytest

from stages.evaluation.attack_success import Predictions, attack_figures, clean_figures

LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
CLEAN = np.array([0, 0, 2, 1, 1, 0, 2, 2, 2, 1])
RANKS = np.array([0, 0, 1, 0, 0, 6, 0, 0, 0, 4])
TRIGGERED = np.array([2, 2, 0, 2, 1, 2, 2, 2, 1, 2])
FOUND = Predictions(LABELS, CLEAN, RANKS, TRIGGERED)


def test_clean_accuracy() -> None:
    figures = clean_figures(FOUND)
    assert figures["images"] == 10
    assert figures["clean_accuracy_pct"] == pytest.approx(70)
    assert figures["clean_accuracy_top5_pct"] == pytest.approx(90)


def test_asr_leaves_the_target_class_out() -> None:
    figures = attack_figures(FOUND, 2)
    # of the six images of classes 0 and 1, four are taken for class 2 with the trigger and one without it
    assert figures["attacked_images"] == 6
    assert figures["asr_pct"] == pytest.approx(100 * 4 / 6)
    assert figures["false_target_pct"] == pytest.approx(100 / 6)
    # true class kept under the trigger: rows 2, 4, 6, 7, 9 of all ten
    assert figures["accuracy_under_trigger_pct"] == pytest.approx(50)


def test_the_other_convention_keeps_it() -> None:
    figures = attack_figures(FOUND, 2, keep_target_images=True)
    assert figures["attacked_images"] == 10
    assert figures["asr_pct"] == pytest.approx(70)
    assert figures["false_target_pct"] == pytest.approx(40)
    assert figures["accuracy_under_trigger_pct"] == pytest.approx(50)


def test_asr_is_not_what_accuracy_under_trigger_leaves() -> None:
    # every image is misread under the trigger, none as the target
    found = Predictions(np.array([0, 0]), np.array([0, 0]), np.array([0, 0]), np.array([1, 1]))
    figures = attack_figures(found, 2)
    assert figures["asr_pct"] == 0
    assert figures["accuracy_under_trigger_pct"] == 0


def test_intervals_are_wilsons_in_percent() -> None:
    low, high = attack_figures(FOUND, 2)["asr_pct_ci95"]
    z, n, p = 1.959963984540054, 6, 4 / 6
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert [low, high] == pytest.approx([100 * (centre - half), 100 * (centre + half)], abs=1e-6)


def test_figures_that_cannot_be_had_are_refused() -> None:
    with pytest.raises(ValueError, match="no predictions on triggered images"):
        attack_figures(Predictions(LABELS, CLEAN, RANKS), 2)
    with pytest.raises(ValueError, match="another class than the target"):
        attack_figures(Predictions(np.array([2]), np.array([2]), np.array([0]), np.array([2])), 2)
    with pytest.raises(ValueError, match="no images"):
        clean_figures(Predictions(LABELS[:0], CLEAN[:0], RANKS[:0]))
