"""What divides concepts, by hand: the views, the chance over all of them, what lies elsewhere, and how much pictures vary."""

import numpy as np
import pytest
import scipy.sparse as sp

from clipsan.stages.detectors.concept_division import Division, Naming, Surroundings, spread, unit_variance
from clipsan.stages.detectors.false_discoveries import tail_chances
from clipsan.stages.detectors.separation import Cut, Pairs, separate

NAMING = Naming(least_pairs=5, directions=2, rate=0.05, least_spread=0.5, described=9)


def surroundings(outside: np.ndarray, elsewhere: np.ndarray, *widths: int) -> Surroundings:
    return Surroundings(NAMING, outside.astype(np.float32), sp.csc_matrix(elsewhere.astype(np.float32)), widths)


def test_a_layer_is_a_view_and_several_are_one_more() -> None:
    nothing = np.zeros((3, 10))
    assert surroundings(nothing, nothing, 4, 6).views == [slice(0, 4), slice(4, 10), slice(0, 10)]
    assert surroundings(nothing, nothing, 10).views == [slice(0, 10)]


def test_a_concept_is_held_against_the_pairs_of_others_alone() -> None:
    rng = np.random.default_rng(0)
    inside = rng.normal(size=(60, 10))
    inside[:25] += 4
    outside = np.concatenate([rng.normal(size=(300, 10)), inside])
    own = np.stack([np.zeros(360), np.arange(360) >= 300], axis=1)
    (found,) = surroundings(outside, own, 4, 6).look([1], lambda concept: inside).values()
    expected = separate(
        [Pairs(inside.astype(np.float32), np.arange(360) < 300)],
        outside.astype(np.float32),
        [slice(0, 4), slice(4, 10), slice(0, 10)],
        least=5,
        directions=2,
    )[0]
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        assert other is not None
        assert (one.ratio, one.share, one.elsewhere) == (other.ratio, other.share, other.elsewhere)
        assert one.elsewhere < 0.05


def cut(ratio: float) -> Cut:
    line = np.ones(2)
    return Cut(ratio=ratio, share=0.4, elsewhere=0.01, pairs=50, directions=(line, line), offsets=(0.0, 0.0), at=0.0)


def test_the_smallest_chance_of_the_views_counts_and_is_over_all_of_them() -> None:
    ratios = np.random.default_rng(1).gamma(2.0, size=(40, 3))
    seen = {3 * i: tuple(cut(ratio) for ratio in row) for i, row in enumerate(ratios)}
    seen[0] = (None, cut(9.0), None)
    around = surroundings(np.zeros((5, 4)), np.zeros((5, 120)), 2, 2)
    division = Division(around, np.arange(0), np.zeros(0, np.uint64), None, sp.csc_matrix((0, 120)), [], found=seen)  # type: ignore[arg-type]
    columns = [
        [-1.0 if one is None else one.statistic for one in column] for column in zip(*seen.values(), strict=True)
    ]
    alone = np.stack([tail_chances(np.array(column)) for column in columns], axis=1)
    best = division._best()
    assert list(best) == list(seen)
    for p, (concept, clearest) in zip(alone, best.items(), strict=True):
        assert clearest.chance == pytest.approx(1 - (1 - min(p)) ** 3)
        views = [view for view in range(3) if p[view] == min(p)]
        statistics = {view: getattr(seen[concept][view], "statistic", -1.0) for view in views}
        assert clearest.view == around.views[max(statistics, key=lambda view: statistics[view])]


def test_spread_is_the_mean_ratio_of_the_variances_and_nothing_is_said_of_two_pictures() -> None:
    rng = np.random.default_rng(2)
    foreign, native = ([scale * rng.normal(size=(n, width)) + 3 for width in (4, 7)] for scale, n in ((2, 9), (1, 30)))

    def summed(layer: np.ndarray) -> float:
        return sum(((column - column.mean()) ** 2).mean() for column in layer.T) / layer.shape[1]

    expected = np.mean([summed(one) / summed(other) for one, other in zip(foreign, native, strict=True)])
    assert spread(foreign, native) == pytest.approx(expected)
    for few, other in ((foreign, native), (native, foreign)):
        assert spread([layer[:2] for layer in few], other) == spread(other, [layer[:2] for layer in few]) == 0


def test_rows_of_mean_square_one_become_columns_of_it() -> None:
    rows = np.random.default_rng(3).normal(size=(500, 16)) / 4
    assert (rows**2).sum(axis=1).mean() == pytest.approx(1, abs=0.05)
    assert (unit_variance([rows])[0] ** 2).mean() == pytest.approx(1, abs=0.05)
