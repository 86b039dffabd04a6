"""Two-means splits against all cuts, and what share of a ratio is sure."""

import numpy as np
import pytest
from scipy.stats import chi2, norm

from clipsan.stages.detectors.two_sides import believe, lowest, split, statistic, two_gaussians


@pytest.mark.parametrize("least", [1, 5, 20])
def test_split_is_the_best_of_all_cuts(least: int) -> None:
    values = np.random.default_rng(1).gamma(1.0, size=60)
    ascending = np.sort(values)
    ratios = {}
    for k in range(least, 60 - least + 1):
        groups = ascending[:k], ascending[k:]
        within = sum(len(g) * g.var() for g in groups) / 60
        between = sum(len(g) * (g.mean() - ascending.mean()) ** 2 for g in groups) / 60
        ratios[k] = between / within
    best = max(ratios, key=lambda k: ratios[k])
    found = split(np.stack([values, -values]), least)
    assert found.ratio == pytest.approx(ratios[best], rel=1e-9)
    assert found.cut == pytest.approx(np.array([1, -1]) * (ascending[best - 1] + ascending[best]) / 2)


def test_split_of_too_few_or_of_constants_is_none() -> None:
    assert split(np.arange(9.0)[None], 5).ratio == 0
    assert split(np.full((1, 30), 2.0), 5).ratio == 0


@pytest.mark.parametrize("pairs", [10, 31, 256])
def test_of_few_pairs_less_of_a_ratio_is_sure(pairs: int) -> None:
    assert lowest(pairs) == pytest.approx(chi2.ppf(0.05, pairs - 2) / (pairs - 2))
    assert 0 < lowest(10) <= lowest(pairs) < 1


def test_statistic_by_hand() -> None:
    sure = chi2.ppf(0.05, 38) / 38
    assert statistic(6.0, 0.3, 0.01, 40) == pytest.approx(6 * sure * np.log(30))
    assert statistic(6.0, 0.01, 0.3, 40) == 0  # a side that is commoner elsewhere is no trigger's
    assert statistic(6.0, 0.0, 0.3, 40) == 0


@pytest.mark.parametrize("prior", [0.1, 0.6])
def test_belief_is_the_posterior_of_two_gaussians_and_stays_beyond_their_means(prior: float) -> None:
    x = np.linspace(-1, 4, 21)
    upper, lower = prior * norm.pdf(x, 4, 0.5), (1 - prior) * norm.pdf(x, -1, 2)
    found = believe(x, prior, (-1.0, 4.0), (2.0, 0.5))
    np.testing.assert_allclose(found, upper / (upper + lower), rtol=1e-9)
    np.testing.assert_array_equal(believe(np.array([-50.0, 50.0]), prior, (-1.0, 4.0), (2.0, 0.5)), found[[0, -1]])


def test_two_gaussians_are_found_again_and_balance_where_either_is_as_likely() -> None:
    rng = np.random.default_rng(3)
    upper = np.arange(4000) < 1200
    positions = np.where(upper, rng.normal(5, 0.6, 4000), rng.normal(0, 1.5, 4000))
    prior, means, spreads, balance = two_gaussians(positions, positions > 2.0)  # a split that is somewhat off
    assert prior == pytest.approx(0.3, abs=0.01)
    assert means == pytest.approx((0, 5), abs=0.1)
    assert spreads == pytest.approx((1.5, 0.6), abs=0.06)
    fine = np.linspace(0, 5, 200_001)
    as_likely = np.abs(0.3 * norm.pdf(fine, 5, 0.6) - 0.7 * norm.pdf(fine, 0, 1.5))
    assert balance == pytest.approx(fine[as_likely.argmin()], abs=0.1)


def test_pairs_that_agree_are_no_needle() -> None:
    rng = np.random.default_rng(4)
    positions = np.concatenate([rng.normal(0, 1, 200), np.full(8, 6.0)])
    upper = positions > 5
    _, _, spreads, _ = two_gaussians(positions, upper)
    pooled = np.sqrt(((positions[~upper] - positions[~upper].mean()) ** 2).sum() / len(positions))
    assert spreads[1] == pytest.approx(0.2 * pooled)


@pytest.mark.parametrize("seed", range(4))
def test_no_side_is_swallowed(seed: int) -> None:
    single = np.sort(np.random.default_rng(seed).normal(size=400))
    # a fit to the outermost twentieth of one Gaussian would lose it; it stays with half of it at least
    prior, means, _, _ = two_gaussians(single, np.arange(400) >= 380)
    assert prior >= 0.025
    assert means[1] - means[0] > 1
