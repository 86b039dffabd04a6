import itertools

import numpy as np
import pytest

from clipsan.stages.evaluation.detection import (
    auroc,
    average_precision,
    detection_figures,
    fpr_at_95_tpr,
    pr_points,
    precision_at,
    recall_at,
    roc_points,
)


def drawn(seed: int, n: int = 60, levels: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Few levels, hence many ties."""
    rng = np.random.default_rng(seed)
    poisoned = rng.random(n) < 0.25
    poisoned[:2] = True, False
    return rng.integers(0, levels, n) / levels + 0.2 * poisoned, poisoned


@pytest.mark.parametrize("seed", range(5))
def test_auroc_counts_ordered_pairs(seed: int) -> None:
    scores, poisoned = drawn(seed)
    wins = [(p > c) + 0.5 * (p == c) for p in scores[poisoned] for c in scores[~poisoned]]
    assert auroc(scores, poisoned) == pytest.approx(np.mean(wins))


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_sums_over_thresholds(seed: int) -> None:
    scores, poisoned = drawn(seed)
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = scores >= threshold
        recall = poisoned[taken].sum() / poisoned.sum()
        total += (recall - recall_before) * poisoned[taken].mean()
        recall_before = recall
    assert average_precision(scores, poisoned) == pytest.approx(total)


def test_recall_with_ties_is_the_mean_over_every_order() -> None:
    scores = np.array([3.0, 2.0, 2.0, 2.0, 2.0, 1.0])
    poisoned = np.array([False, True, True, False, False, True])
    for budget, reviewed in ((0.2, 1), (0.34, 2), (0.5, 3), (1.0, 6)):
        hits = []
        for tie_order in itertools.permutations(range(1, 5)):
            order = [0, *tie_order, 5]
            hits.append(poisoned[order[:reviewed]].sum())
        assert recall_at(scores, poisoned, budget) == pytest.approx(np.mean(hits) / 3)
        assert precision_at(scores, poisoned, budget) == pytest.approx(np.mean(hits) / reviewed)


def test_budget_is_rounded_down_but_pays_for_one_pair() -> None:
    scores, poisoned = np.arange(250.0), np.arange(250) >= 245
    assert recall_at(scores, poisoned, 0.01) == pytest.approx(2 / 5)
    assert recall_at(scores, poisoned, 0.001) == pytest.approx(1 / 5)
    assert precision_at(scores, poisoned, 0.1) == pytest.approx(5 / 25)
    assert recall_at(np.arange(3000.0), np.arange(3000) >= 2995, 0.001) == pytest.approx(3 / 5)
    assert int(0.29 * 100) == 28  # and is 29 pairs all the same
    assert precision_at(np.arange(100.0), np.arange(100) >= 50, 0.29) == 1
    assert recall_at(np.arange(100.0), np.arange(100) >= 50, 0.29) == pytest.approx(29 / 50)


@pytest.mark.parametrize("seed", range(5))
def test_fpr_at_95_tpr_tries_every_threshold(seed: int) -> None:
    scores, poisoned = drawn(seed, 200)
    rates = [
        (scores[~poisoned] >= threshold).mean()
        for threshold in set(scores)
        if (scores[poisoned] >= threshold).mean() >= 0.95
    ]
    assert fpr_at_95_tpr(scores, poisoned) == pytest.approx(min(rates))


def test_ninety_five_percent_of_twenty_is_nineteen() -> None:
    scores = np.concatenate([np.full(19, 2.0), [0.0], np.ones(10)])
    poisoned = np.arange(30) < 20
    assert fpr_at_95_tpr(scores, poisoned) == 0.0


def test_curves_are_thin_and_keep_ends_and_area() -> None:
    rng = np.random.default_rng(0)
    poisoned = rng.random(20_000) < 0.02
    scores = rng.normal(size=20_000) + 2.0 * poisoned
    roc = roc_points(scores, poisoned)
    assert len(roc) <= 200
    assert roc[0].tolist() == [0.0, 0.0]
    assert roc[-1].tolist() == [1.0, 1.0]
    assert (np.diff(roc, axis=0) >= 0).all()
    assert np.trapezoid(roc[:, 1], roc[:, 0]) == pytest.approx(auroc(scores, poisoned), abs=0.005)
    assert (roc[:, 0] < 0.01).sum() > 20, "the low end of a logarithmic axis must not be empty"
    recall = pr_points(scores, poisoned)
    assert len(recall) <= 200
    assert (np.diff(recall[:, 0]) >= 0).all()
    assert recall[-1].tolist() == [1.0, pytest.approx(poisoned.mean())]
    assert np.trapezoid(recall[:, 1], recall[:, 0]) == pytest.approx(average_precision(scores, poisoned), abs=0.02)


def test_figures_have_the_shape_of_the_summary() -> None:
    scores, poisoned = np.arange(2000.0), np.arange(2000) >= 1990
    assert detection_figures(scores, poisoned) == {
        "auroc": 1.0,
        "average_precision": pytest.approx(1.0),
        "recall_at": {"0.001": 0.2, "0.01": 1.0, "0.1": 1.0},
        "precision_at": {"0.001": 1.0, "0.01": 0.5, "0.1": 0.05},
        "fpr95": 0.0,
    }
    assert detection_figures(-scores, poisoned)["auroc"] == 0.0


@pytest.mark.parametrize(
    ("scores", "poisoned", "message"),
    [
        ([1.0, 2.0], [True, True], "both poisoned and clean"),
        ([1.0, 2.0], [False, False], "both poisoned and clean"),
        ([1.0, np.nan], [True, False], "finite"),
        ([1.0, 2.0, 3.0], [True, False], "one length"),
    ],
)
def test_undefined_figures_are_refused(scores: list[float], poisoned: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detection_figures(np.array(scores), np.array(poisoned))


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.5])
def test_impossible_budget_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match="budget"):
        recall_at(np.arange(4.0), np.arange(4) > 2, budget)
