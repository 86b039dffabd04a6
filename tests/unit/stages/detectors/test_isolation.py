import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

from clipsan.stages.detectors.isolation import isolation_forest


def test_outliers_score_highest_and_seeds_repeat() -> None:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((300, 8)).astype(np.float32)
    image[:3] += 8
    scores = isolation_forest(image, 1, 100)
    assert scores.dtype == np.float64
    assert set(np.argsort(-scores)[:3]) == {0, 1, 2}
    np.testing.assert_array_equal(scores, isolation_forest(image, 1, 100))
    assert (scores != isolation_forest(image, 2, 100)).any()


@pytest.mark.parametrize("shape", [(700, 24), (60, 3), (3, 2), (2, 1), (1, 4)])
def test_trees_and_scores_are_those_of_scikit_learn(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    image[-1, 0] = 5
    forest = IsolationForest(n_estimators=30, random_state=7).fit(image)
    np.testing.assert_allclose(isolation_forest(image, 7, 30), -forest.score_samples(image), rtol=1e-14)
    equal = np.repeat(image[:1], len(image), axis=0)
    forest = IsolationForest(n_estimators=30, random_state=7).fit(equal)
    np.testing.assert_allclose(isolation_forest(equal, 7, 30), -forest.score_samples(equal), rtol=1e-14)


def test_score_is_the_published_formula() -> None:
    """Two points: every tree cuts between them, so the path is 1; c(2) = 1; the score is 2^-1."""
    scores = isolation_forest(np.array([[0.0], [1.0]], np.float32), 0, 100)
    np.testing.assert_allclose(scores, 0.5)
    # One far point among eight equal ones is isolated by the first cut: 2^-(1 / c(9)), Euler's constant in c.
    far = np.zeros((9, 1), np.float32)
    far[4] = 1
    normal = 2 * (np.log(8) + 0.5772156649) - 2 * 8 / 9
    assert isolation_forest(far, 0, 100)[4] == pytest.approx(2 ** (-1 / normal), abs=1e-6)
