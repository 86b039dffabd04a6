"""Two-means splits against all cuts, and what share of a ratio is sure."""

import numpy as np
import pytest
from scipy.stats import chi2

from clipsan.stages.detectors.two_sides import lowest, split


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
