import numpy as np
import pytest

from stages.evaluation.intervals import bootstrap_interval, wilson


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
