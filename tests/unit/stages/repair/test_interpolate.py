"""Weights between a suspect model and its repair."""

import torch

from clipsan.stages.repair.interpolate import between
from tests.unit.stages.repair.helpers import disturb, tiny_clip


def test_the_ends_are_the_models_and_the_way_is_straight() -> None:
    start, moved = tiny_clip().model.state_dict(), tiny_clip().model
    disturb(moved, 0.3)
    end = moved.state_dict()
    for share, expected in ((0.0, start), (1.0, end)):
        found = between(start, end, share)
        assert found.keys() == start.keys()
        assert all(torch.equal(found[name], expected[name]) for name in start)
    half = between(start, end, 0.5)
    for name, value in half.items():
        torch.testing.assert_close(value, (start[name] + end[name]) / 2)


def test_counts_are_no_fractions() -> None:
    start, end = {"batches": torch.tensor(3)}, {"batches": torch.tensor(7)}
    assert between(start, end, 0.5)["batches"].item() == 3
    assert between(start, end, 1.0)["batches"].item() == 7
