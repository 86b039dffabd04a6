"""Search spaces: what may be drawn, that draws stand still, and the whole grid."""

import itertools
import math

import numpy as np
import pydantic
import pytest

from clipsan.pipeline.core.config import ConfigError, validate
from clipsan.stages.search.space import (
    Choice,
    Dimension,
    LogUniform,
    RandInt,
    Uniform,
    end_points,
    grid_points,
    random_points,
)

SPACE = {
    "method.lr": LogUniform(low=1e-5, high=1e-2),
    "method.tau": Choice(values=("auto", 2.15)),
    "steps": RandInt(low=3, high=6),
    "method.weight_decay": Uniform(low=-1.0, high=1.0),
}


def test_draws_stay_inside_and_reach_everything():
    points = random_points(SPACE, 2000, seed=1)
    rates = np.array([point["method.lr"] for point in points])
    assert rates.min() >= 1e-5
    assert rates.max() <= 1e-2
    # each decade holds a third
    for decade in (1e-5, 1e-4, 1e-3):
        share = ((rates >= decade) & (rates < 10 * decade)).mean()
        assert abs(share - 1 / 3) < 0.05
    assert {point["steps"] for point in points} == {3, 4, 5, 6}
    assert {point["method.tau"] for point in points} == {"auto", 2.15}
    assert abs(np.mean([point["method.weight_decay"] for point in points])) < 0.06


def test_a_point_hangs_on_the_seed_and_its_number_alone():
    assert random_points(SPACE, 5, seed=1) == random_points(SPACE, 9, seed=1)[:5]
    assert random_points(SPACE, 5, seed=1) != random_points(SPACE, 5, seed=2)
    smaller = {name: SPACE[name] for name in reversed(SPACE) if name != "steps"}
    found = random_points(smaller, 5, seed=1)
    assert [p["method.lr"] for p in found] == [p["method.lr"] for p in random_points(SPACE, 5, seed=1)]


def test_settings_do_not_move_together():
    points = random_points({"a": Uniform(low=0, high=1), "b": Uniform(low=0, high=1)}, 2000, seed=0)
    assert abs(np.corrcoef([p["a"] for p in points], [p["b"] for p in points])[0, 1]) < 0.06


def test_a_grid_is_every_combination_in_order():
    space = {"a": Choice(kind="grid", values=(1, 2, 3)), "b": Choice(values=("x", "y"))}
    expected = [{"a": a, "b": b} for a, b in itertools.product((1, 2, 3), ("x", "y"))]
    assert grid_points(space) == expected


def test_a_grid_in_a_drawn_order_has_the_same_points():
    space = {"x": Choice(kind="grid", values=(1, 2, 3)), "y": Choice(kind="grid", values=(1, 2, 3))}
    plain, drawn = grid_points(space), grid_points(space, 0)
    assert drawn != plain
    assert sorted(map(str, drawn)) == sorted(map(str, plain))
    assert drawn == grid_points(space, 0) != grid_points(space, 1)


def test_a_grid_of_a_range_is_refused():
    with pytest.raises(ValueError, match=r"method\.lr: a grid search needs .* loguniform is a range"):
        grid_points({"method.lr": SPACE["method.lr"]})


def test_every_end_is_tried():
    points = end_points(SPACE)
    for name, dimension in SPACE.items():
        assert {point[name] for point in points} == set(dimension.ends)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"kind": "uniform", "low": 2, "high": 1}, "low must be below high"),
        ({"kind": "loguniform", "low": 0, "high": 1}, "above 0"),
        ({"kind": "uniform", "low": 0, "high": math.inf}, "finite"),
        ({"kind": "choice", "values": []}, "at least one value"),
        ({"kind": "grid", "values": [1, 1]}, "differ"),
        ({"kind": "randint", "low": 0.5, "high": 3}, "integer"),
        ({"kind": "normal", "low": 0, "high": 3}, "kind"),
        ({"kind": "uniform", "low": 0, "high": 3, "step": 1}, "step: unknown key"),
    ],
)
def test_a_range_that_is_none_is_refused(tree, words):
    with pytest.raises(ConfigError, match=words):
        validate(Dimension, tree, verb="sweep")


def test_values_keep_their_kind():
    found = pydantic.TypeAdapter(Dimension).validate_python({"kind": "choice", "values": [1, 1.0, True, "1", None]})
    assert [type(value) for value in found.values] == [int, float, bool, str, type(None)]
