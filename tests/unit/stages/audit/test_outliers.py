"""Which label stands out: how often one does by chance, and that one which does is seen."""

import numpy as np
import pytest
from scipy.stats import combine_pvalues, t

from clipsan.stages.audit.outliers import LEAST_LABELS, combined, joined, lead, tail


def test_labels_of_a_clean_model_stand_out_as_often_as_is_stated() -> None:
    rng = np.random.default_rng(0)
    least = np.array([combined(tail(row)).min() for row in rng.standard_normal((1200, 20))])
    assert (least <= 0.05).mean() < 0.08
    assert (least <= 0.01).mean() < 0.025


def test_a_label_far_from_all_others_is_seen() -> None:
    values = np.random.default_rng(1).standard_normal(20)
    values[7] = 12.0
    p = tail(values)
    assert p.argmin() == 7
    assert p[7] < 1e-6


def test_a_label_that_is_harder_than_all_others_is_no_outlier() -> None:
    values = np.random.default_rng(1).standard_normal(20)
    values[7] = -12.0
    assert tail(values)[7] > 0.99


def test_a_handful_of_labels_says_nothing() -> None:
    assert (tail(np.arange(LEAST_LABELS, dtype=float)) == 1).all()


def test_a_lead_is_taken_from_the_median_label() -> None:
    assert lead(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 9.0])).tolist() == [-2.5, -1.5, -0.5, 0.5, 1.5, 5.5]
    assert not lead(np.arange(LEAST_LABELS, dtype=float)).any()


def test_equal_labels_make_no_outlier_of_a_rounding_error() -> None:
    values = np.zeros(20)
    values[4] = 1e-6
    assert tail(values).min() > 0.4


def test_a_p_value_over_all_labels_is_a_p_value() -> None:
    np.testing.assert_allclose(combined(np.array([0.001, 0.2, 0.9])), [0.003, 0.6, 1.0])


@pytest.mark.parametrize("labels", [LEAST_LABELS + 1, 9])
def test_each_label_is_the_next_draw_of_the_others_by_hand(labels: int) -> None:
    values = np.random.default_rng(labels).gamma(2.0, size=labels)
    for i, p in enumerate(tail(values)):
        others = [float(one) for j, one in enumerate(values) if j != i]
        mean = sum(others) / len(others)
        variance = sum((one - mean) ** 2 for one in others) / (len(others) - 1)
        score = (values[i] - mean) / (variance * (1 + 1 / len(others))) ** 0.5
        assert p == pytest.approx(t.sf(score, len(others) - 1), rel=1e-9)


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        tail(np.array([0.0, np.nan]))


def test_two_p_values_are_joined_as_scipy_does_and_one_stands_alone() -> None:
    first, second = np.array([0.01, 0.5, 1.0, 0.3]), np.array([0.02, 0.5, 1.0, np.nan])
    expected = [combine_pvalues(pair, method="fisher").pvalue for pair in zip(first[:3], second[:3], strict=True)]
    np.testing.assert_allclose(joined(first, second), [*expected, 0.3])
