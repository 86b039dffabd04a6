"""Rows that are drawn ahead: the same ones in the same order, no further ahead than told, and nothing left running."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from clipsan.pipeline.train.ahead import DEPTH, ahead, in_thread
from clipsan.pipeline.train.feed import Rows


def numbers(drawn: list[int], fails_at: int | None = None) -> Iterator[int]:
    for number in range(10):
        if number == fails_at:
            raise RuntimeError("the data changed")
        drawn.append(number)
        yield number


def test_items_come_in_order_and_no_more_than_a_few_are_on_their_way() -> None:
    drawn: list[int] = []
    for expected, found in enumerate(in_thread(numbers(drawn), lambda n: (n, threading.current_thread().name))):
        assert found[0] == expected
        assert found[1].startswith("feed")
        assert len(drawn) <= expected + 1 + DEPTH
    assert drawn == list(range(10))


def test_an_error_is_raised_in_its_place() -> None:
    running = in_thread(numbers([], fails_at=5), lambda n: n)
    assert [next(running) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="the data changed"):
        next(running)


def test_who_stops_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    drawn: list[int] = []
    running = in_thread(numbers(drawn), lambda n: n)
    assert next(running) == 0
    running.close()
    assert threading.active_count() == before
    assert len(drawn) <= 1 + DEPTH


def test_on_a_cpu_rows_are_yielded_as_they_are_drawn() -> None:
    own = torch.arange(2)
    rows = Rows(own[:, None], own[:, None], np.array(["a", "b"], object), own, own, own)
    (found,) = ahead(iter([rows]), torch.device("cpu"))
    assert found is rows
