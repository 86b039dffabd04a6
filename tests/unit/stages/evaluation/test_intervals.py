import numpy as np
import pytest

from clipsan.stages.evaluation.intervals import bootstrap_interval, rate_interval, wilson


def test_wilson_matches_hand_numbers() -> None:
    # Newcombe 1998, table I (method 3, without continuity correction).
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(29, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)


def test_wilson_covers_the_true_rate() -> None:
    rng = np.random.default_rng(0)
    intervals = [wilson(int(rng.binomial(60, 0.03)), 60) for _ in range(2000)]
    covered = np.mean([low <= 0.03 <= high for low, high in intervals])
    assert 0.92 < covered < 0.99


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, trials)


def test_a_rate_interval_is_the_bootstrap_over_images() -> None:
    hits = np.arange(200) % 5 == 0
    ones = np.ones(200, int)
    assert rate_interval(hits, ones) == pytest.approx(
        bootstrap_interval(np.mean, hits, seed=1, resamples=4000), abs=0.0051
    )
    assert rate_interval(hits, ones) == rate_interval(hits[::-1], ones)


def test_trials_of_one_image_are_not_independent() -> None:
    # each image succeeds under all ten triggers or under none: 100 images, not 1,000 trials
    hits, ones = np.repeat([10, 0], 50), np.full(100, 10)
    assert rate_interval(hits, ones) == pytest.approx((0.40, 0.60), abs=0.01)
    # independent trials are told apart from that
    low, high = rate_interval(np.random.default_rng(0).binomial(10, 0.5, 100), ones)
    assert high - low < 0.08


def test_images_without_a_trial_play_no_part() -> None:
    hits, trials = np.array([1, 0] * 30 + [0] * 40), np.array([1, 1] * 30 + [0] * 40)
    assert rate_interval(hits, trials) == rate_interval(hits[:60], trials[:60])


def test_few_hits_or_misses_get_wilsons() -> None:
    ones = np.ones(500, int)
    assert rate_interval(np.zeros(500, int), ones) == wilson(0, 500)
    assert rate_interval(np.arange(500) < 9, ones) == wilson(9, 500)
    assert rate_interval(np.arange(500) < 491, ones) == wilson(491, 500)
    for hits in (10, 40, 490):  # from ten of either on the bootstrap holds
        assert rate_interval(np.arange(500) < hits, ones) != wilson(hits, 500)
    assert rate_interval(np.full(500, 1), np.full(500, 2)) == wilson(250, 500)


@pytest.mark.parametrize(("truth", "images"), [(0.004, 500), (0.03, 500), (0.3, 200), (0.97, 1000)])
def test_rate_intervals_cover_the_truth(truth: float, images: int) -> None:
    rng = np.random.default_rng(2)
    drawn, times = np.unique(rng.binomial(images, truth, 2000), return_counts=True)
    ones = np.ones(images, int)
    intervals = [rate_interval(np.arange(images) < hits, ones) for hits in drawn]
    covered = np.array([low <= truth <= high for low, high in intervals])
    assert 0.925 < (covered * times).sum() / times.sum() < 0.985


def test_the_bare_bootstrap_does_not_cover_a_rare_truth() -> None:
    rng = np.random.default_rng(2)
    hits = rng.binomial(500, 0.004, 1000)
    bounds = np.quantile(rng.binomial(500, hits / 500, (1000, 1000)) / 500, [0.025, 0.975], axis=0)
    assert 0.84 < ((bounds[0] <= 0.004) & (bounds[1] >= 0.004)).mean() < 0.88


@pytest.mark.parametrize(("hits", "trials"), [([], []), ([0], [0]), ([2], [1]), ([-1], [1])])
def test_impossible_rates_are_refused(hits: list[int], trials: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        rate_interval(np.array(hits, int), np.array(trials, int))


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    low, high = bootstrap_interval(lambda v: float(v.mean()), values, seed=3)
    half = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_is_seeded_and_draws_rows_jointly() -> None:
    values = np.arange(50.0)

    def difference(left: np.ndarray, right: np.ndarray) -> float:
        return float((left - right).mean())

    assert bootstrap_interval(difference, values, values - 1.0, seed=5) == (1.0, 1.0)
    first = bootstrap_interval(np.mean, values, seed=5)
    assert first == bootstrap_interval(np.mean, values, seed=5)
    assert first != bootstrap_interval(np.mean, values, seed=6)


def test_strata_keep_their_size() -> None:
    poisoned = np.zeros(300, bool)
    poisoned[7] = True
    assert bootstrap_interval(np.sum, poisoned, seed=0, strata=poisoned) == (1.0, 1.0)
    assert bootstrap_interval(np.sum, poisoned, seed=0)[0] == 0.0


def test_bootstrap_refuses_columns_of_different_length() -> None:
    with pytest.raises(ValueError, match="one length"):
        bootstrap_interval(np.mean, np.ones(3), np.ones(4), seed=0)
