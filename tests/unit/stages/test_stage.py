"""Stages: what a chain lacks is said before any worker starts."""

import pytest

from clipsan.stages.stage import ChainError, check_chain, config


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


def test_a_configuration_is_frozen_and_keyword_only():
    @config
    class Side:
        px: int = 3

    with pytest.raises(AttributeError):
        Side().px = 4
    with pytest.raises(TypeError):
        Side(4)
