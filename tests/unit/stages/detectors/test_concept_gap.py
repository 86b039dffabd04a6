"""The gap against counting on the values themselves, on tails of known shape, and its edges."""

import numpy as np
import pytest
from scipy.stats import norm

from clipsan.stages.detectors.concept_gap import ALL_LAYERS, Farthest, GapConfig, clearest_views, find_gaps, wilson_low
from clipsan.stages.detectors.concept_moments import BINS, bin_index
from clipsan.stages.evaluation.intervals import wilson

GAP = GapConfig()


def gaps_of(*distances: np.ndarray):
    return find_gaps(np.stack([np.bincount(bin_index(d), minlength=BINS) for d in distances]), GAP)


def by_counting(values: np.ndarray) -> float:
    """The clearest gap, from its definition, on the values."""
    best = 0.0
    for cut in GAP.cuts:
        beyond, half = int((values >= cut).sum()), int((values >= cut / 2).sum())
        if beyond:
            best = max(best, wilson(beyond, half)[0])
    return best


@pytest.mark.parametrize("seed", range(3))
def test_share_is_that_of_counting_on_the_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(size=400), rng.exponential(3, size=60), rng.normal(14, 1, size=30)])
    # a bin is 2 % wide, so a value near a cut may fall on its other side
    assert gaps_of(values).share[0] == pytest.approx(by_counting(values), abs=0.04)


def test_wilson_low_is_the_formula_of_the_intervals() -> None:
    for successes, trials in [(1, 1), (9, 9), (40, 54), (100, 101)]:
        got = wilson_low(np.array([successes]), np.array([trials]), GAP.z)[0]
        assert got == pytest.approx(wilson(successes, trials)[0], abs=1e-4)
    assert wilson_low(np.array([0, 0]), np.array([0, 50]), GAP.z).tolist() == [0, 0]


def test_trailing_distributions_have_no_gap() -> None:
    u = (np.arange(2000) + 0.5) / 2000
    shapes = [norm.ppf(u), -np.log(u), u ** (-1 / 2), u ** (-1 / 1.2), np.exp(1.5 * norm.ppf(u))]
    robust = [(v - np.median(v)) / (1.4826 * np.median(np.abs(v - np.median(v)))) for v in shapes]
    assert gaps_of(*robust).share.max() < 0.65


def test_a_group_apart_is_a_gap_and_the_cut_lies_in_it() -> None:
    rng = np.random.default_rng(1)
    bulk, group = rng.normal(size=500), rng.normal(15, 0.7, size=30)
    gaps = gaps_of(np.concatenate([bulk, group]))
    assert gaps.share[0] > 0.85
    assert gaps.beyond[0] == 30
    assert bulk.max() < gaps.cut[0] < group.min()


def test_few_pairs_apart_are_no_evidence() -> None:
    bulk = np.random.default_rng(2).normal(size=500)
    eight, nine = (np.concatenate([bulk, np.full(k, 20.0)]) for k in (8, 9))
    shares = gaps_of(eight, nine).share
    assert shares[0] < 0.7 < shares[1]


def test_a_concept_without_pairs_has_no_gap() -> None:
    gaps = gaps_of(np.zeros(0), np.zeros(50))
    assert gaps.share.tolist() == [0, 0]
    assert np.isinf(gaps.cut).all()
    assert gaps.beyond.tolist() == [0, 0]


def test_a_single_layer_is_heard_only_where_its_gap_is_plain() -> None:
    rng = np.random.default_rng(3)
    bulk = rng.normal(size=500)
    plain, faint = np.concatenate([bulk, rng.normal(15, 1, 60)]), np.concatenate([bulk, rng.normal(9, 2.5, 12)])
    count = [np.bincount(bin_index(values), minlength=BINS) for values in (bulk, plain, faint)]
    # two concepts: the mean shows nothing, the second layer one plain and one faint gap
    views = clearest_views(np.array([[count[0], count[0]], [count[0], count[0]], [count[1], count[2]]]), 0.7, GAP)
    assert views.view.tolist() == [1, ALL_LAYERS]
    assert views.share[0] == pytest.approx(find_gaps(count[1][None], GAP).share[0] - GAP.single_layer)
    assert views.beyond[0] == 60


def test_all_layers_are_preferred_when_they_show_the_gap_too() -> None:
    values = np.concatenate([np.random.default_rng(4).normal(size=500), np.full(40, 15.0)])
    count = np.bincount(bin_index(values), minlength=BINS)
    assert clearest_views(np.array([[count], [count], [count]]), 0.7, GAP).view.tolist() == [ALL_LAYERS]


def test_a_picture_counts_once_in_a_concept_where_it_lies_farthest() -> None:
    rng = np.random.default_rng(3)
    concepts, pictures, bins = (rng.integers(high, size=400) for high in (4, 60, BINS))
    pictures = pictures.astype(np.uint64) + np.uint64(2**63)
    farthest: dict[tuple[int, int], int] = {}
    for concept, picture, at in zip(concepts.tolist(), pictures.tolist(), bins.tolist(), strict=True):
        farthest[concept, picture] = max(at, farthest.get((concept, picture), 0))
    expected = np.zeros((5, BINS), np.int64)
    for (concept, _), at in farthest.items():
        expected[concept, at] += 1
    parts = [
        Farthest.of(*(column[rows] for column in (concepts, pictures, bins)))
        for rows in np.split(np.arange(400), [150, 150])
    ]
    np.testing.assert_array_equal((parts[0] + parts[1] + parts[2]).histograms(5), expected)
