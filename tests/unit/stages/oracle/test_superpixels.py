"""The oracle without weights: its windows cover every place, its segments are the parts of a picture."""

import time

import numpy as np
import pytest

from clipsan.stages.oracle.regions import iou
from clipsan.stages.oracle.segments import CutConfig, merge, neighbours, segments
from clipsan.stages.oracle.superpixels import Superpixels, SuperpixelsConfig
from clipsan.stages.oracle.windows import EdgeConfig, GridsConfig, follow_edges, grid
from clipsan.stages.scenes.scene import SceneConfig, render

GRIDS = GridsConfig()


def box_iou(boxes, top, left, side):
    """Intersection over union of `[N, 4]` boxes with one square."""
    rows = np.minimum(boxes[:, 0] + boxes[:, 2], top + side) - np.maximum(boxes[:, 0], top)
    columns = np.minimum(boxes[:, 1] + boxes[:, 3], left + side) - np.maximum(boxes[:, 1], left)
    shared = np.clip(rows, 0, None) * np.clip(columns, 0, None)
    return shared / (boxes[:, 2] * boxes[:, 3] + side * side - shared)


def texture(seed, height=64, width=64):
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 215, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    return np.clip(coarse + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def test_grids_have_a_window_for_every_square_of_8_to_16_px_at_every_place_of_64():
    boxes = np.concatenate([grid(64, 64, GRIDS.coarse), grid(64, 64, GRIDS.fine)])
    assert len(boxes) == 64 + 361
    for side in range(8, 17):
        for top in range(64 - side + 1):
            worst = min(box_iou(boxes, top, left, side).max() for left in range(64 - side + 1))
            assert worst >= 0.5, (side, top)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 61), (33, 200)])
def test_grid_reaches_the_border_exactly_and_steps_no_farther_than_the_stride(height, width):
    for settings in (GRIDS.coarse, GRIDS.fine):
        boxes = grid(height, width, settings)
        for axis, length in ((0, height), (1, width)):
            starts = np.unique(boxes[:, axis])
            assert starts[0] == 0
            assert starts[-1] + boxes[0, 2] == length
            assert np.diff(starts).max() <= settings.stride * min(height, width) + 1
        assert len(np.unique(boxes, axis=0)) == len(boxes)


@pytest.mark.parametrize("side", [5, 8, 11, 16])
def test_a_pasted_square_is_found_among_the_first_regions(side):
    oracle, found = Superpixels(SuperpixelsConfig()), []
    for index in range(20):
        rng = np.random.default_rng(index)
        image = render(index, SceneConfig(count=20)).rgb.copy()
        top, left = (64 - side, 64 - side) if index % 2 else rng.integers(0, 64 - side + 1, 2)
        cells = np.arange(side) // max(1, side // 4) % 2
        image[top : top + side, left : left + side] = 255 * (cells[:, None] ^ cells)[..., None]
        truth = np.zeros((64, 64), dtype=bool)
        truth[top : top + side, left : left + side] = True
        found.append(max(iou(region.mask, truth) for region in oracle(image)[:60]))
    assert np.mean(np.array(found) >= 0.5) >= 0.95


def test_a_window_is_scored_by_the_least_of_its_four_sides():
    """By brute force over all squares of all sides: the first window of the only band that holds the patch is it."""
    image = np.full((32, 32, 3), 90, dtype=np.uint8)
    image[9:15, 20:26] = (200, 30, 90)
    best, where = -1.0, None
    values = image.astype(int)
    for side in range(2, 13):
        for top in range(1, 32 - side):
            for left in range(1, 32 - side):
                rows, columns = slice(top, top + side), slice(left, left + side)
                sides = [
                    (values[rows, left], values[rows, left - 1]),
                    (values[rows, left + side - 1], values[rows, left + side]),
                    (values[top, columns], values[top - 1, columns]),
                    (values[top + side - 1, columns], values[top + side, columns]),
                ]
                score = min(np.abs(a - b).max(1).mean() for a, b in sides)
                if score > best:
                    best, where = score, (top, left, side, side)
    assert where == (9, 20, 6, 6)
    assert list(where) in follow_edges(image, 3, EdgeConfig()).tolist()


def test_merging_joins_the_cheapest_neighbours_first():
    """Four superpixels in a row of areas 1, 1, 2, 4 and grey values 0, 1, 10, 12: heights by hand."""
    area, mean = np.array([1.0, 1.0, 2.0, 4.0]), np.array([0.0, 1.0, 10.0, 12.0])[:, None] * [[1, 0, 0]]
    near = np.eye(4, k=1, dtype=bool) | np.eye(4, k=-1, dtype=bool)
    members, heights = merge(area, mean, near)
    first, second = np.sqrt(0.5), np.sqrt(8 / 6 * 4)
    last = np.sqrt(2 * 6 / 8 * ((20 + 48) / 6 - 0.5) ** 2)
    assert members[4].tolist() == [True, True, False, False]
    assert members[5].tolist() == [False, False, True, True]
    expected = np.array([first, first, second, second, last, last]) / last
    np.testing.assert_allclose(heights, expected, rtol=1e-12)


def test_neighbours_share_an_edge_and_not_a_corner():
    near = neighbours(np.array([[0, 1], [2, 3]]), 4)
    assert near.astype(int).tolist() == [[0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0]]


def test_segments_find_flat_things_and_a_blank_picture_has_none():
    image = np.full((64, 96, 3), (30, 120, 200), dtype=np.uint8)
    image[10:40, 8:50] = (240, 220, 60)
    image[20:30, 20:30] = (20, 20, 20)
    masks, heights = segments(image, CutConfig())
    for part in ((image == (30, 120, 200)).all(2), (image == (240, 220, 60)).all(2), (image == (20, 20, 20)).all(2)):
        assert max(iou(mask, part) for mask in masks) > 0.9
    assert heights[0] == 1
    assert (np.diff(heights) <= 0).all()
    assert segments(np.full((20, 20, 3), 7, dtype=np.uint8), CutConfig())[0].shape == (0, 20, 20)


def test_the_main_thing_of_most_scenes_is_a_region():
    oracle, scenes = Superpixels(SuperpixelsConfig()), SceneConfig(count=20)
    best = []
    for scene in (render(index, scenes) for index in range(20)):
        best.append(max(iou(region.mask, scene.masks == 1) for region in oracle(scene.rgb)))
    assert np.mean(np.array(best) >= 0.5) >= 0.8


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 64), (40, 150), (200, 333)])
def test_regions_fit_the_image_fall_in_quality_and_are_the_same_again(height, width):
    image = texture(3, height, width)
    settings = SuperpixelsConfig()
    regions = Superpixels(settings)(image)
    assert 1 <= len(regions) <= settings.at_most
    assert {region.mask.shape for region in regions} == {(height, width)}
    qualities = [region.quality for region in regions]
    assert qualities == sorted(qualities, reverse=True)
    assert 0 < qualities[-1] <= qualities[0] <= 1
    again = Superpixels(settings)(image.copy())
    assert all((a.mask == b.mask).all() and a.quality == b.quality for a, b in zip(regions, again, strict=True))


def test_a_large_image_gives_what_its_small_twin_gives():
    small = texture(5, 128, 128)
    few = SuperpixelsConfig(windows=9, segments=9, at_most=18)
    large = Superpixels(few)(small.repeat(3, 0).repeat(3, 1))
    for one, three in zip(Superpixels(few)(small), large, strict=True):
        np.testing.assert_array_equal(one.mask.repeat(3, 0).repeat(3, 1), three.mask)


def test_with_a_low_limit_the_grid_still_reaches_all_sides():
    regions = Superpixels(SuperpixelsConfig(windows=0, segments=0, at_most=9))(texture(0))
    assert len(regions) == 9
    union = np.any([region.mask for region in regions], axis=0)
    assert union[:, 0].any()
    assert union[:, -1].any()
    assert union[0].any()
    assert union[-1].any()


def test_it_is_fast_at_64_px():
    oracle, image = Superpixels(SuperpixelsConfig()), texture(1)
    oracle(image)
    start = time.process_time()
    for _ in range(10):
        oracle(image)
    assert (time.process_time() - start) / 10 < 0.06  # 10 ms on an idle core


@pytest.mark.parametrize("wrong", [{"windows": -1}, {"at_most": 0, "windows": 0, "segments": 0}, {"at_most": 59}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="at least"):
        SuperpixelsConfig(**wrong)


def test_an_image_too_small_is_refused():
    with pytest.raises(ValueError, match="16 px, not 15 x 40"):
        Superpixels(SuperpixelsConfig())(np.zeros((15, 40, 3), dtype=np.uint8))
