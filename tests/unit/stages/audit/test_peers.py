"""A suspect beside clean models: Student's prediction by hand, false alarms, and a label that goes beyond all clean ones."""

import math

import numpy as np
import pytest

from clipsan.stages.audit.outliers import combined, either, tail
from clipsan.stages.audit.peers import LEAST_PEERS, beyond, tail_beside

LABELS = 16


def drawn(seed: int, peers: int, *, planted: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Models that differ and share how easily each label is reached, the suspect's label 3 by so much more."""
    rng = np.random.default_rng(seed)
    labels, models = 3 * rng.standard_normal(LABELS), rng.standard_normal((peers + 1, 1))
    values = labels + models + rng.standard_normal((peers + 1, LABELS))
    values[0, 3] += planted
    return values[0], values[1:]


def least(seed: int, peers: int, **options) -> tuple[float, int]:
    """The least p value of both tests, as an audit takes it, and its label."""
    value, theirs = drawn(seed, peers, **options)
    p = either(combined(tail(value)), tail_beside(value, theirs))
    return float(p.min()), int(p.argmin())


def test_the_next_of_three_by_hand() -> None:
    # every peer's largest difference from the mean of the three others, by hand: with the suspect's
    value = np.array([9.0, 0.0])
    peers = np.array([[1.0, 0.0], [2.0, 1.0], [3.0, -1.0]])
    largest = [0.0 - (0.0 + 1.0 - 1.0) / 3, 1.0 - (0.0 + 0.0 - 1.0) / 3, 3.0 - (9.0 + 1.0 + 2.0) / 3]
    mean = sum(largest) / 3
    deviation = math.sqrt(sum((one - mean) ** 2 for one in largest) / 2)
    t = (9.0 - 2.0 - mean) / (deviation * math.sqrt(1 + 1 / 3))
    # Student's distribution with two degrees of freedom has a closed form
    expected = 0.5 - t / (2 * math.sqrt(2 + t * t))
    assert largest == pytest.approx([0.0, 4 / 3, -1.0])
    assert tail_beside(value, peers)[0] == pytest.approx(expected, rel=1e-9)


def test_the_next_of_two_by_hand() -> None:
    value, peers = np.array([5.0, 0.0]), np.array([[1.0, 0.0], [2.0, 3.0]])
    largest = [max(1.0 - 3.5, 0.0 - 1.5), max(2.0 - 3.0, 3.0 - 0.0)]
    mean, deviation = sum(largest) / 2, abs(largest[0] - largest[1]) / math.sqrt(2)
    t = (5.0 - 1.5 - mean) / (deviation * math.sqrt(1.5))
    assert tail_beside(value, peers)[0] == pytest.approx(0.5 - math.atan(t) / math.pi, rel=1e-9)


@pytest.mark.parametrize("peers", [2, 3, 5, 10])
def test_clean_models_are_accused_no_more_often_than_is_stated(peers: int) -> None:
    draws = 1500
    alone, both = np.empty(draws), np.empty(draws)
    for seed in range(draws):
        value, theirs = drawn(seed, peers)
        beside = tail_beside(value, theirs)
        alone[seed], both[seed] = beside.min(), either(combined(tail(value)), beside).min()
    for limit in (0.05, 0.01):
        error = 3 * math.sqrt(limit * (1 - limit) / draws)
        assert (alone <= limit).mean() <= limit + error
        assert (both <= limit).mean() <= limit + error


def test_a_planted_label_is_seen_and_named_where_the_model_alone_shows_nothing() -> None:
    found = [least(seed, 4, planted=10.0) for seed in range(40)]
    assert sum(p <= 0.05 and label == 3 for p, label in found) >= 36
    alone = [combined(tail(drawn(seed, 4, planted=10.0)[0])) for seed in range(40)]
    assert sum(p.min() <= 0.05 for p in alone) <= 20


def test_a_label_that_every_clean_model_shows_is_no_news() -> None:
    value, peers = drawn(0, 4)
    np.testing.assert_allclose(
        tail_beside(value + 30 * np.eye(LABELS)[5], peers + 30 * np.eye(LABELS)[5]), tail_beside(value, peers)
    )
    assert beyond(value, peers).argmax() == tail_beside(value, peers).argmin()


def test_models_that_are_all_alike_make_no_outlier_of_a_rounding_error() -> None:
    peers = np.zeros((4, LABELS))
    value = np.zeros(LABELS)
    value[4] = 1e-5
    assert tail_beside(value, peers).min() > 0.4


def test_one_peer_is_too_few_and_what_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match=f"1 peers, and Student's distribution needs {LEAST_PEERS} at least"):
        tail_beside(np.zeros(LABELS), np.zeros((1, LABELS)))
    with pytest.raises(ValueError, match="not finite"):
        tail_beside(np.full(LABELS, np.nan), np.zeros((3, LABELS)))


def test_either_of_two_tests_costs_a_factor_of_two() -> None:
    np.testing.assert_allclose(either(np.array([0.01, 0.9, 0.3]), np.array([0.5, 0.8, 0.02])), [0.02, 1.0, 0.04])
