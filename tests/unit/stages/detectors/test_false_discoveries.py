import numpy as np
import pytest
from scipy.stats import gamma

from clipsan.stages.detectors.false_discoveries import named_by_rate, tail_chances


def clean(concepts: int, seed: int) -> np.ndarray:
    """Statistics whose roots fall off exponentially."""
    return np.random.default_rng(seed).exponential(0.8, size=concepts) ** 2


@pytest.mark.parametrize("concepts", [40, 400])
def test_clean_concepts_are_named_no_more_often_than_stated(concepts: int) -> None:
    wrong = sum(named_by_rate(tail_chances(clean(concepts, seed)), 0.05).any() for seed in range(400))
    assert wrong <= 0.08 * 400


@pytest.mark.parametrize("targets", [1, 3])
def test_targets_far_out_are_named_and_do_not_hide_each_other(targets: int) -> None:
    for seed in range(20):
        statistics = np.concatenate([clean(200, seed), np.full(targets, 150.0)])
        named = named_by_rate(tail_chances(statistics), 0.05)
        assert named[-targets:].all()
        assert named.sum() <= targets + 1


@pytest.mark.parametrize("concepts", [12, 45, 300])
def test_a_chance_is_the_exponential_tail_averaged_over_its_unknown_rate(concepts: int) -> None:
    statistics = np.concatenate([clean(concepts - 2, 1), [40.0, 90.0]])
    roots = sorted(float(value) ** 0.5 for value in statistics)
    start, stop = (np.interp(share * (concepts - 1), range(concepts), roots) for share in (0.5, 0.95))
    tail = [root for root in roots if root > start]
    # of a censored sample the rate, a priori of density 1 / rate, has a gamma distribution
    uncensored, excess = sum(root <= stop for root in tail), sum(min(root, stop) - start for root in tail)
    draws = gamma.ppf((np.arange(20_000) + 0.5) / 20_000, uncensored, scale=1 / excess)
    for statistic, chance in zip(statistics, tail_chances(statistics), strict=True):
        root = float(statistic) ** 0.5
        if root > start:
            expected = len(tail) / concepts * np.exp(-draws * (root - start)).mean()
        else:
            expected = sum(other >= root for other in roots) / concepts
        assert chance == pytest.approx(expected, rel=0.02)


def test_chances_fall_with_the_statistic_and_are_chances() -> None:
    statistics = np.sort(clean(100, 0))
    chances = tail_chances(statistics)
    assert (np.diff(chances) <= 0).all()
    assert chances.min() > 0
    assert chances.max() == 1


def test_rejects_by_benjamini_and_hochberg() -> None:
    chances = np.array([0.001, 0.008, 0.039, 0.041, 0.042, 0.06, 0.074, 0.205])
    assert named_by_rate(chances, 0.05).tolist() == [True, True] + [False] * 6  # 0.008 <= .05 * 2 / 8 < 0.039
    assert not named_by_rate(np.array([0.5, 0.9]), 0.05).any()
    # the second, .02 <= .05 * 2 / 2, takes the first with it
    assert named_by_rate(np.array([0.026, 0.05]), 0.05).all()


def test_no_concept_no_chance() -> None:
    assert not len(tail_chances(np.zeros(0)))
    assert not len(named_by_rate(np.zeros(0), 0.05))
    assert not named_by_rate(tail_chances(np.zeros(50)), 0.05).any()
