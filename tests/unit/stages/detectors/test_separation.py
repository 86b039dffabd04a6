"""Cuts of concepts against brute force, and on planted triggers of every share."""

import numpy as np
import pytest

from clipsan.stages.detectors.discriminants import RIDGE, Scatter
from clipsan.stages.detectors.separation import Cut, Pairs, refine, separate
from clipsan.stages.detectors.two_sides import TwoSides, split

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
    found = cut_of(inside, outside, np.ones(len(outside), dtype=bool))
    assert found is not None
    return found.sides(inside)


def cut_of(inside: np.ndarray, outside: np.ndarray, elsewhere: np.ndarray) -> Cut | None:
    """How a single view shows a concept."""
    (found,) = separate([Pairs(inside, elsewhere)], outside, [slice(None)], least=5, directions=3)
    return found[0]


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
    with_own = cut_of(inside, mixed, elsewhere)
    without = sides_of(inside, outside)
    assert with_own is not None
    assert with_own.statistic == pytest.approx(without.statistic)


def test_too_few_pairs_have_no_sides() -> None:
    inside, _, outside = planted(0.5, n=9)
    assert cut_of(inside, outside, np.ones(len(outside), dtype=bool)) is None


def test_a_concept_that_is_the_whole_data_set_has_no_sides() -> None:
    inside, _, outside = planted(0.5)
    assert cut_of(inside, outside, np.zeros(len(outside), dtype=bool)) is None


def test_refining_finds_the_sides_from_a_start_that_is_partly_wrong() -> None:
    inside, poison, _ = planted(0.4)
    start = poison.copy()
    start[::5] = ~start[::5]
    (found,) = refine([Scatter(inside)], [start[None]], least=5)
    along = inside @ found.directions[0]
    assert along[poison].min() > along[~poison].max()


@pytest.mark.parametrize("start", [True, False])
def test_there_is_no_direction_without_two_sides(start: bool) -> None:
    inside, _, _ = planted(0.4)
    (found,) = refine([Scatter(inside)], [np.full((1, len(inside)), start)], least=5)
    assert found.directions.shape == (0, WIDTH)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pairs", [31, 120, 300])
def test_cuts_are_those_of_one_step_after_the_other(pairs: int, seed: int) -> None:
    views = [slice(0, 16), slice(16, WIDTH), slice(0, WIDTH)]
    concepts = [planted(share, n=pairs, seed=seed)[0] for share in (0.3, 0.7)]
    outside = planted(0.0, seed=seed)[2]
    elsewhere = np.random.default_rng(seed).random(len(outside)) < 0.9
    found = separate([Pairs(one, elsewhere) for one in concepts], outside, views, least=5, directions=3)
    for inside, seen in zip(concepts, found, strict=True):
        for view, cut in zip(views, seen, strict=True):
            ratio, share, rest = by_the_book(inside[:, view], outside[elsewhere][:, view])
            assert cut is not None
            assert (cut.ratio, cut.share, cut.elsewhere) == pytest.approx(
                (ratio, share, max(rest, 0.5 / elsewhere.sum()))
            )


def by_the_book(inside: np.ndarray, away: np.ndarray) -> tuple[float, float, float]:
    """Ratio, share and share elsewhere, by full decompositions and a solution for every division by itself."""

    def cut_at(values: np.ndarray, least: int) -> tuple[float, float]:
        found = split(values[None], least)
        return float(found.ratio[0]), float(found.cut[0])

    def gain(share: float, rest: float) -> float:
        return float(np.log(max(share, 0.5 / len(away)) / max(rest, 0.5 / len(away))))

    def direction(half: np.ndarray) -> np.ndarray:
        best = (-np.inf, np.zeros(0))
        for axis in np.linalg.svd(half - half.mean(axis=0), full_matrices=False)[2][:3]:
            upper = half @ axis > cut_at(half @ axis, 2)[1]
            for _ in range(2):
                line = fisher(half, upper)
                upper = half @ line > cut_at(half @ line, 2)[1]
            ratio, at = cut_at(half @ line, 2)
            share, rest = (half @ line > at).mean(), (away @ line > at).mean()
            worth = ratio * max(gain(share, rest), gain(1 - share, 1 - rest))
            middle = np.median(away @ line)
            scale = 1.4826 * np.median(np.abs(away @ line - middle))
            best = max(best, (worth, np.append(line, -middle) / scale), key=lambda one: one[0])
        return best[1]

    first, second = direction(inside[::2]), direction(inside[1::2])
    second = second * np.sign(first[:-1] @ second[:-1])
    positions = np.concatenate([inside[1::2] @ first[:-1] + first[-1], inside[::2] @ second[:-1] + second[-1]])
    elsewhere = np.concatenate([away @ line[:-1] + line[-1] for line in (first, second)])
    ratio, at = cut_at(positions, 5)
    share, rest = float((positions > at).mean()), float((elsewhere > at).mean())
    return (ratio, share, rest) if gain(share, rest) >= gain(1 - share, 1 - rest) else (ratio, 1 - share, 1 - rest)


def fisher(half: np.ndarray, upper: np.ndarray) -> np.ndarray:
    around = half - np.where(upper[:, None], half[upper].mean(axis=0), half[~upper].mean(axis=0))
    within = around.T @ around / len(around)
    ridge = RIDGE * np.trace(within) / len(within)
    return np.asarray(
        np.linalg.solve(within + ridge * np.eye(len(within)), half[upper].mean(axis=0) - half[~upper].mean(axis=0))
    )
