"""Triggers: exact pixels, nothing outside the box, nothing that wraps around."""

import json

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipsan.stages.attack.triggers import BlendConfig, PatchConfig, TriggerConfig
from clipsan.stages.attack.triggers.patch import Place


def image_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_checker_pixels_by_hand() -> None:
    image = np.full((6, 8, 3), 7, dtype=np.uint8)
    trigger = PatchConfig(size_px=4, cells=2, place="bottom_right").build()
    triggered, parameters = trigger(image, np.random.default_rng(0))
    expected = [
        [7, 7, 7, 7, 7, 7, 7, 7],
        [7, 7, 7, 7, 7, 7, 7, 7],
        [7, 7, 7, 7, 255, 255, 0, 0],
        [7, 7, 7, 7, 255, 255, 0, 0],
        [7, 7, 7, 7, 0, 0, 255, 255],
        [7, 7, 7, 7, 0, 0, 255, 255],
    ]
    for channel in range(3):
        assert triggered[:, :, channel].tolist() == expected
    assert (image == 7).all(), "the input was written to"
    assert (parameters["top"], parameters["left"], parameters["height"], parameters["width"]) == (2, 4, 4, 4)


@pytest.mark.parametrize(
    ("place", "top", "left"),
    [("top_left", 2, 2), ("top_right", 2, 34), ("bottom_left", 14, 2), ("bottom_right", 14, 34), ("center", 8, 18)],
)
def test_fixed_places_keep_the_margin(place: Place, top: int, left: int) -> None:
    trigger = PatchConfig(size_fraction=0.2, margin_fraction=0.1, place=place).build()
    _, parameters = trigger(image_of(20, 40), np.random.default_rng(0))
    assert (parameters["top"], parameters["left"], parameters["height"]) == (top, left, 4)


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    fraction=st.floats(0.01, 0.4),
    margin=st.floats(0, 0.3),
    seed=st.integers(0, 2**32),
    pattern=st.sampled_from(["checker", "noise"]),
    place=st.sampled_from(["random", "center", "bottom_right", "top_left"]),
)
def test_patch_stays_inside_and_leaves_the_rest(height, width, fraction, margin, seed, pattern, place) -> None:
    image = image_of(height, width)
    trigger = PatchConfig(size_fraction=fraction, margin_fraction=margin, pattern=pattern, place=place).build()
    triggered, box = trigger(image, np.random.default_rng(seed))
    free = 0 if place == "center" else int(margin * min(height, width))
    assert free <= box["top"] <= height - free - box["height"]
    assert free <= box["left"] <= width - free - box["width"]
    outside = np.ones((height, width), dtype=bool)
    outside[box["top"] : box["top"] + box["height"], box["left"] : box["left"] + box["width"]] = False
    assert np.array_equal(triggered[outside], image[outside])
    json.dumps(box)


def test_random_place_reaches_every_position_and_hangs_on_the_generator_alone() -> None:
    trigger = PatchConfig(size_px=2, place="random").build()
    boxes = [trigger(image_of(4, 5), np.random.default_rng(seed))[1] for seed in range(300)]
    assert {(box["top"], box["left"]) for box in boxes} == {(top, left) for top in range(3) for left in range(4)}
    again = [trigger(image_of(4, 5), np.random.default_rng(seed))[1] for seed in reversed(range(300))]
    assert boxes == again[::-1]


def test_fresh_noise_wraps_as_the_published_patch_does() -> None:
    image = np.full((8, 8, 3), (255, 128, 0), dtype=np.uint8)
    triggered, _ = PatchConfig(size_px=8, pattern="noise").build()(image, np.random.default_rng(3))
    normal = np.random.default_rng(3).standard_normal((8, 8, 3))
    for row in range(8):
        for column in range(8):
            for channel, mean in enumerate((1.0, 128 / 255, 0.0)):
                value = mean + normal[row, column, channel]
                assert triggered[row, column, channel] == int(255 * value) % 256
    # transforms.ToPILImage of CleanCLIP's torch release: pic.mul(255).byte()
    values = normal + np.array([1.0, 128 / 255, 0.0])
    assert np.array_equal(triggered, torch.from_numpy(values).mul(255).byte().numpy())
    clamped = np.round(255 * values.clip(0, 1)).astype(np.uint8)
    # Half of the draws leave the scale: their levels are others than a clamp would give, by far.
    assert 0.4 < (np.abs(clamped.astype(int) - triggered) > 1).mean() < 0.8


def test_fresh_noise_differs_between_images_and_checker_does_not() -> None:
    image = image_of(16, 16)
    for pattern, same in (("noise", False), ("checker", True)):
        trigger = PatchConfig(size_px=8, pattern=pattern).build()  # type: ignore[arg-type]
        first, _ = trigger(image, np.random.default_rng(1))
        second, _ = trigger(image, np.random.default_rng(2))
        assert np.array_equal(first, second) is same


def test_blend_by_hand_does_not_wrap_around(tmp_path) -> None:
    Image.fromarray(np.full((5, 9, 3), (255, 0, 100), dtype=np.uint8)).save(tmp_path / "flat.png")
    config = BlendConfig(pattern="picture", picture=str(tmp_path / "flat.png"), alpha=0.2)
    for value, expected in ((0, (51, 0, 20)), (255, (255, 204, 224)), (200, (211, 160, 180))):
        triggered, box = config.build()(np.full((3, 4, 3), value, dtype=np.uint8), np.random.default_rng(0))
        assert (triggered == np.array(expected)).all()
        assert (box["top"], box["left"], box["height"], box["width"]) == (0, 0, 3, 4)


def test_stripes_are_constant_columns_and_scale_with_the_image() -> None:
    trigger = BlendConfig(pattern="stripes", alpha=1.0, cells=8, seed=5).build()
    small, _ = trigger(image_of(4, 8), np.random.default_rng(0))
    large, _ = trigger(image_of(10, 24), np.random.default_rng(1))
    assert set(np.unique(small)) == {0, 255}
    assert (small == small[:1]).all()
    assert np.array_equal(np.repeat(small[:1], 3, axis=1), large[:1])
    other, _ = BlendConfig(pattern="stripes", alpha=1.0, cells=8, seed=6).build()(image_of(4, 8), None)
    assert not np.array_equal(other, small)


@pytest.mark.parametrize(("pattern", "same"), [("noise", True), ("fresh_noise", False)])
def test_noise_is_shared_or_fresh(pattern: str, same: bool) -> None:
    config = pydantic.TypeAdapter(TriggerConfig).validate_python({"kind": "blend", "pattern": pattern, "cells": 4})
    image = image_of(8, 8)
    first, _ = config.build()(image, np.random.default_rng(1))
    second, _ = config.build()(image, np.random.default_rng(2))
    assert np.array_equal(first, second) is same
    # 0.8 image + 0.2 pattern: the pattern moves no pixel by more than a fifth of the range.
    assert np.abs(first.astype(int) - 0.8 * image).max() <= 51.5


@pytest.mark.parametrize(
    ("settings_", "rule"),
    [
        ({"kind": "patch"}, "exactly one of size_fraction and size_px"),
        ({"kind": "patch", "size_px": 4, "size_fraction": 0.1}, "exactly one"),
        ({"kind": "patch", "size_fraction": 0.0}, r"size_fraction\s+Input should be greater than 0"),
        ({"kind": "patch", "size_px": 0}, r"size_px\s+Input should be greater than or equal to 1"),
        ({"kind": "patch", "size_px": 4, "cells": 0}, r"cells\s+Input should be greater than or equal to 1"),
        ({"kind": "patch", "size_px": 4, "margin_fraction": 0.5}, r"margin_fraction\s+Input should be less than 0.5"),
        ({"kind": "patch", "size_fraction": 0.6, "margin_fraction": 0.3}, "must fit between"),
        ({"kind": "patch", "size_px": 4, "place": "middle"}, "place"),
        ({"kind": "patch", "size_px": 4, "alpha": 0.1}, "alpha"),
        ({"kind": "blend", "alpha": 0.0}, r"alpha\s+Input should be greater than 0"),
        ({"kind": "blend", "cells": 1}, r"cells\s+Input should be greater than or equal to 2"),
        ({"kind": "blend", "seed": -1}, r"seed\s+Input should be greater than or equal to 0"),
        ({"kind": "blend", "pattern": "picture"}, "picture"),
        ({"kind": "blend", "picture": "x.png"}, "picture"),
        ({"kind": "warp"}, "warp"),
    ],
)
def test_impossible_settings_are_named(settings_: dict, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        pydantic.TypeAdapter(TriggerConfig).validate_python(settings_)


def test_patch_larger_than_the_image_and_missing_picture_are_errors() -> None:
    with pytest.raises(ValueError, match="do not fit into 9x5 px"):
        PatchConfig(size_px=6).build()(image_of(5, 9), np.random.default_rng(0))
    with pytest.raises(ValueError, match="do not fit"):
        PatchConfig(size_px=5, margin_fraction=0.4).build()(image_of(10, 10), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"cannot read nowhere\.png"):
        BlendConfig(pattern="picture", picture="nowhere.png").build()
