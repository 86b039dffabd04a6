"""Scenes: the same whatever the order, masks that are exact, captions that say what is there."""

import re
from collections import Counter

import numpy as np
import pytest

import clipsan.stages.scenes.scene
from clipsan.stages.scenes.scene import ALONE, BACKGROUNDS, COLOURS, TOGETHER, Scene, SceneConfig, Thing, render
from clipsan.stages.scenes.shapes import CONCEPTS, SHAPES

CONFIG = SceneConfig(count=10_000, seed=3)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render(index, CONFIG) for index in range(600)]


def test_a_scene_hangs_on_seed_and_index_alone(scenes: list[Scene]) -> None:
    larger = SceneConfig(count=20_000, seed=3)
    for index in (511, 3, 77):
        again = render(index, larger)
        assert np.array_equal(again.rgb, scenes[index].rgb)
        assert np.array_equal(again.masks, scenes[index].masks)
        assert (again.caption, again.label, again.things) == (
            scenes[index].caption,
            scenes[index].label,
            scenes[index].things,
        )
    assert not np.array_equal(render(3, SceneConfig(count=10, seed=4)).rgb, scenes[3].rgb)
    assert len({scene.rgb.tobytes() for scene in scenes}) == len(scenes)


def test_shapes_types_and_sizes(scenes: list[Scene]) -> None:
    for scene in scenes[:50]:
        assert scene.rgb.shape == (64, 64, 3)
        assert scene.rgb.dtype == np.uint8
        assert scene.masks.shape == (64, 64)
        assert scene.masks.max() <= len(scene.things) <= 3
        assert len({thing.concept for thing in scene.things}) == len(scene.things)
        assert scene.things[0].radius > max((thing.radius for thing in scene.things[1:]), default=0)
    for side in (16, 48, 224):
        assert render(0, SceneConfig(count=1, side_px=side)).rgb.shape == (side, side, 3)


def test_concepts_are_many_distinct_and_even(scenes: list[Scene]) -> None:
    assert len(CONCEPTS) == len(set(CONCEPTS)) >= 16
    counts = Counter(scene.label for scene in scenes)
    assert set(counts) == set(range(len(CONCEPTS)))
    assert max(counts.values()) < 2.2 * 600 / len(CONCEPTS)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {thing.colour for scene in scenes for thing in scene.things} == set(COLOURS)
    for parts in SHAPES.values():
        extent = np.abs(np.concatenate([part.points for part in parts]))
        assert 0.8 < extent.max() < 1.2


def test_captions_name_the_main_thing_and_say_nothing_false(scenes: list[Scene]) -> None:
    for scene in scenes:
        words = set(re.findall(r"[a-z]+", scene.caption.lower()))
        assert CONCEPTS[scene.label] == scene.things[0].concept
        assert scene.things[0].concept in words
        named = words & set(CONCEPTS)
        assert named <= {thing.concept for thing in scene.things}
        assert words & set(COLOURS) <= {thing.colour for thing in scene.things}
        said = [name for name, phrase in BACKGROUNDS.items() if phrase in scene.caption.lower()]
        assert said in ([], [scene.background])
        assert not re.search(r"\b[aA] [aeiou]", scene.caption)
    assert len({scene.caption for scene in scenes}) > 0.85 * len(scenes)
    assert len(ALONE) + len(TOGETHER) >= 12


def test_place_words_are_true(scenes: list[Scene]) -> None:
    for scene in scenes:
        columns = np.nonzero(scene.masks == 1)[1].mean() / 64
        if "on the left" in scene.caption:
            assert columns < 0.55
        if "on the right" in scene.caption:
            assert columns > 0.45


def square(x: float, y: float, radius: float, concept: str = "star") -> Thing:
    return Thing(concept, "red", x, y, radius, 0.0, False)


def test_mask_is_exact_on_a_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape whose pixels can be counted: x, y in [-1, 1] scaled by .97 of the radius around the centre."""
    part = clipsan.stages.scenes.scene.SHAPES["star"][0]
    corners = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    monkeypatch.setitem(clipsan.stages.scenes.scene.SHAPES, "star", (type(part)(corners / 0.97, "body"),))
    canvas = np.full((40, 40, 3), 200, dtype=np.float32)
    masks = np.zeros((40, 40), dtype=np.uint8)
    clipsan.stages.scenes.scene._paint_thing(canvas, masks, 2, square(0.5, 0.25, 0.2), np.random.default_rng(0))
    expected = np.zeros((40, 40), dtype=np.uint8)
    expected[2:18, 12:28] = 2  # centre (20, 10), half side 8 px
    assert np.array_equal(masks, expected)
    # The square is red, and what is neither square nor shadow is untouched.
    assert (canvas[5:15, 15:25, 0] > 2 * canvas[5:15, 15:25, 2]).all()
    assert (canvas[22:] == 200).all()
    assert (canvas[:, :10] == 200).all()


def test_masks_tell_what_is_visible() -> None:
    """The main thing is painted last and wins; a thing that reaches over the edge is cut, not wrapped around."""
    canvas = np.zeros((64, 64, 3), dtype=np.float32)
    masks = np.zeros((64, 64), dtype=np.uint8)
    generator = np.random.default_rng(0)
    clipsan.stages.scenes.scene._paint_thing(canvas, masks, 2, square(0.95, 0.5, 0.2, "heart"), generator)
    behind = masks == 2
    assert behind[:, -1].any()
    assert not behind[:, :40].any()
    clipsan.stages.scenes.scene._paint_thing(canvas, masks, 1, square(0.7, 0.5, 0.3, "heart"), generator)
    assert ((masks == 2) <= behind).all()
    assert (behind & (masks == 1)).any()


def test_main_thing_is_always_large_and_visible(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert (scene.masks == 1).sum() > 80
        inside, outside = scene.rgb[scene.masks == 1].astype(int), scene.rgb[scene.masks == 0].astype(int)
        assert np.abs(inside.mean(axis=0) - outside.mean(axis=0)).sum() > 10


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"count": 0}, "count must be"),
        ({"count": 1, "side_px": 8}, "side_px"),
        ({"count": 1, "seed": -1}, "seed must be"),
    ],
)
def test_impossible_settings_are_named(settings: dict, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        SceneConfig(**settings)


def test_an_index_outside_the_set_is_an_error() -> None:
    with pytest.raises(IndexError, match="scene 5 of 5"):
        render(5, SceneConfig(count=5))
