"""Stages: what a chain lacks is said before any worker starts."""

import dataclasses
from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import Field

from clipsan.stages.stage import ChainError, check_chain, config, part_of


class Decode:
    reads = frozenset({"image"})
    adds = frozenset({"rgb"})


class Score:
    reads = frozenset({"rgb", "layer.*"})
    adds = frozenset({"score"})


def test_a_chain_adds_up():
    assert check_chain({"image", "layer.*"}, [Decode(), Score()]) == {"image", "layer.*", "rgb", "score"}


def test_a_gap_names_the_stage_and_the_column():
    with pytest.raises(ChainError, match=r"Score reads layer\.\*"):
        check_chain({"image"}, [Decode(), Score()])


def test_order_matters():
    with pytest.raises(ChainError, match="Score reads rgb"):
        check_chain({"image", "layer.*"}, [Score(), Decode()])


def test_a_column_has_one_owner():
    with pytest.raises(ChainError, match="Score adds score, which the chain has already"):
        check_chain({"image", "layer.*"}, [Decode(), Score(), Score()])


def test_a_configuration_is_frozen_and_keyword_only():
    @config
    class Side:
        px: int = 3

    with pytest.raises(AttributeError):
        Side().px = 4
    with pytest.raises(TypeError):
        Side(4)


@config
class Limited:
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    count: Annotated[int, Field(ge=1, le=9)] | None = None
    pair: tuple[int, int] = (1, 2)

    def __post_init__(self) -> None:
        if self.pair[0] >= self.pair[1]:
            raise ValueError("pair must rise")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 0.0}, "share must be above 0, not 0.0"),
        ({"share": 1.0}, "share must be below 1, not 1.0"),
        ({"count": 0}, "count must be at least 1, not 0"),
        ({"count": 10}, "count must be at most 9, not 10"),
        ({"pair": (2, 2)}, "pair must rise"),
    ],
)
def test_limits_hold_for_what_is_made_in_python(given: dict[str, Any], message: str) -> None:
    assert Limited(count=9).count == 9
    with pytest.raises(ValueError, match=message):
        Limited(**given)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Limited(), **given)


def test_a_column_stands_once():
    with pytest.raises(ChainError, match=r"Decode adds rgb, which the chain has already"):
        check_chain({"image", "layer.*", "rgb"}, [Decode(), Score()])


def test_a_part_of_so_many_is_that_of_the_decimal_as_it_is_written():
    for hundredths in range(101):
        for count in (0, 1, 100, 12_345, 10**9):
            assert part_of(hundredths / 100, count) == hundredths * count // 100
    assert part_of(np.float64(0.29), 100) == 29
