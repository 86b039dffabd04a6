"""The figures of oracle quality, by hand on a small picture."""

import numpy as np
import pytest

from clipsan.stages.oracle.regions import Region
from tests.benchmarks.oracle_quality import Photo, figures, look


def test_figures_of_two_regions_against_three_segments():
    labels = np.zeros((10, 10), dtype=np.int64)
    labels[:4, :5], labels[4:8, :5], labels[:, 8:] = 1, 2, 3  # 20, 20 and 20 pixels; 40 are unknown
    photo = Photo(np.zeros((10, 10, 3), dtype=np.uint8), labels, {1: "cat", 2: "dog", 3: "sky-other-merged"})
    cat, cow = np.zeros((2, 10, 10), dtype=bool)
    cat[:4, :6] = True  # 24 pixels, 20 of them the cat's, 4 unknown
    cow[4:8, :2] = True  # 8 of the dog's 20
    seen = look([Region(cat, 1.0, "cat"), Region(cow, 1.0, "cow")], photo)
    assert seen.ious == pytest.approx([20 / 24, 8 / 20, 0])
    row = figures([seen, seen], labelled=True)
    assert row["mean_iou"] == pytest.approx((20 / 24 + 8 / 20) / 3, abs=1e-4)
    assert (row["segments"], row["regions"], row["covered_pct"]) == (6, 2.0, 33.33)
    assert (row["label_precision_pct"], row["label_recall_pct"]) == (50.0, 50.0)
    # Unknown pixels are not judged: the cat is exact; dog and cow share nothing.
    assert row["class_iou"] == pytest.approx(1 / 3, abs=1e-4)
    assert figures([seen], labelled=False)["class_iou"] is None
