"""The two sides of a concept against brute force, and on planted triggers of every share."""

import numpy as np
import pytest
from scipy.stats import chi2

from clipsan.stages.detectors.two_sides import RIDGE, TwoSides, discriminant, lowest, refine, separate, split

WIDTH = 40


def planted(share: float, n: int = 120, shift: float = 9.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of one concept, a share of them moved along one direction; which; and the rest of the data."""
    rng = np.random.default_rng(seed)
    poison = rng.permutation(n) < round(share * n)
    direction = rng.normal(size=WIDTH)
    direction /= np.linalg.norm(direction)
    inside = rng.normal(size=(n, WIDTH)) + shift * poison[:, None] * direction
    return inside / np.sqrt(WIDTH), poison, rng.normal(size=(2_000, WIDTH)) / np.sqrt(WIDTH)


def sides_of(inside: np.ndarray, outside: np.ndarray) -> TwoSides:
    found = separate(inside, outside, np.ones(len(outside), dtype=bool), least=5, directions=3)
    assert found is not None
    return found


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
    found = split(values, least)
    assert found.ratio == pytest.approx(ratios[best], rel=1e-9)
    assert found.cut == pytest.approx((ascending[best - 1] + ascending[best]) / 2)


def test_split_of_too_few_or_of_constants_is_none() -> None:
    assert split(np.arange(9.0), 5).ratio == 0
    assert split(np.full(30, 2.0), 5).ratio == 0


@pytest.mark.parametrize("pairs", [120, 900])
@pytest.mark.parametrize("share", [0.08, 0.3, 0.5, 0.72, 0.9])
def test_planted_side_is_found_whatever_its_share(share: float, pairs: int) -> None:
    inside, poison, outside = planted(share, n=pairs)
    sides = sides_of(inside, outside)
    foreign = sides.positions(inside) >= sides.cut
    assert (foreign == poison).mean() > 0.98
    assert sides.share == pytest.approx(share, abs=0.02)
    assert sides.elsewhere < 0.01
    belief = sides.belief(sides.positions(inside))
    assert belief[poison].min() > 0.5 > belief[~poison].max()


def test_noise_alone_shows_no_sides_in_however_many_dimensions() -> None:
    for seed in range(10):
        inside, _, outside = planted(0.0, seed=seed)
        sides = sides_of(inside, outside)
        assert sides.ratio < 4  # a single Gaussian gives 1.75
        assert sides.statistic < 5 < sides_of(*planted(0.4, seed=seed)[::2]).statistic / 10


def test_mode_that_the_rest_of_the_data_shares_is_no_foreign_side() -> None:
    rng = np.random.default_rng(3)
    inside, _, outside = planted(0.4)
    direction = inside[planted(0.4)[1]].mean(axis=0) - inside[~planted(0.4)[1]].mean(axis=0)
    shared = outside + direction * (rng.random(len(outside)) < 0.4)[:, None]
    assert sides_of(inside, shared).statistic < 0.05 * sides_of(inside, outside).statistic


def test_pairs_of_the_concept_in_the_rest_are_left_out() -> None:
    inside, _, outside = planted(0.5)
    mixed = np.concatenate([outside, inside])
    elsewhere = np.arange(len(mixed)) < len(outside)
    with_own = separate(inside, mixed, elsewhere, least=5, directions=3)
    without = sides_of(inside, outside)
    assert with_own is not None
    assert with_own.statistic == pytest.approx(without.statistic)


def test_too_few_pairs_have_no_sides() -> None:
    inside, _, outside = planted(0.5, n=9)
    assert separate(inside, outside, np.ones(len(outside), dtype=bool), least=5, directions=3) is None


def test_a_concept_that_is_the_whole_data_set_has_no_sides() -> None:
    inside, _, outside = planted(0.5)
    assert separate(inside, outside, np.zeros(len(outside), dtype=bool), least=5, directions=3) is None


@pytest.mark.parametrize("pairs", [30, 90])
def test_discriminant_is_fishers_with_a_ridge(pairs: int) -> None:
    inside, poison, _ = planted(0.4, n=pairs)
    inside = inside * np.linspace(0.5, 3, WIDTH)
    around = inside - np.where(poison[:, None], inside[poison].mean(axis=0), inside[~poison].mean(axis=0))
    within = around.T @ around / len(around)
    gap = inside[poison].mean(axis=0) - inside[~poison].mean(axis=0)
    expected = np.linalg.solve(within + RIDGE * np.trace(within) / WIDTH * np.eye(WIDTH), gap)
    np.testing.assert_allclose(discriminant(inside, poison), expected, rtol=1e-8)


def test_refining_finds_the_sides_from_a_start_that_is_partly_wrong() -> None:
    inside, poison, _ = planted(0.4)
    start = poison.copy()
    start[::5] = ~start[::5]
    direction = refine(inside, start, least=5)
    assert direction is not None
    along = inside @ direction
    assert along[poison].min() > along[~poison].max()


@pytest.mark.parametrize("start", [True, False])
def test_there_is_no_direction_without_two_sides(start: bool) -> None:
    inside, _, _ = planted(0.4)
    assert refine(inside, np.full(len(inside), start), least=5) is None


@pytest.mark.parametrize("pairs", [10, 31, 256])
def test_of_few_pairs_less_of_a_ratio_is_sure(pairs: int) -> None:
    assert lowest(pairs) == pytest.approx(chi2.ppf(0.05, pairs - 2) / (pairs - 2))
    assert 0 < lowest(10) <= lowest(pairs) < 1
