import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from clipsan.stages.evaluation.linear_probe import few_shots, fit_probe


def blobs(classes: int, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, 6))
    labels = np.arange(rows) % classes
    features = centres[labels] + rng.normal(0, 1.5, (rows, 6))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype(np.float32), labels, rng.integers(0, 2**63, rows, dtype=np.uint64)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_probe_is_a_logistic_regression(classes: int) -> None:
    features, labels, draws = blobs(classes, 300)
    test, _, _ = blobs(classes, 200, seed=1)
    probe = fit_probe(features, labels + 5, draws, grid=(3.0,), held_out=0.2)
    direct = LogisticRegression(C=3.0, max_iter=1000).fit(features, labels + 5)
    assert probe.c == 3.0
    assert (probe.predict(test) == direct.predict(test)).mean() > 0.99


def test_c_is_chosen_on_held_out_rows_alone() -> None:
    features, labels, draws = blobs(4, 300)
    grid = (1e-4, 1.0, 1e4)
    order = np.argsort(draws)
    held, rest = order[:60], order[60:]
    scores = [
        (
            LogisticRegression(C=c, max_iter=1000).fit(features[rest], labels[rest]).predict(features[held])
            == labels[held]
        ).mean()
        for c in grid
    ]
    probe = fit_probe(features, labels, draws, grid=grid[::-1], held_out=0.2)
    assert probe.c == grid[int(np.argmax(scores))]
    mixed = np.random.default_rng(3).permutation(300)
    again = fit_probe(features[mixed], labels[mixed], draws[mixed], grid=grid, held_out=0.2)
    assert (again.weights == probe.weights).all()  # the order of reading plays no part


def test_a_c_that_learns_its_rows_by_heart_is_not_chosen() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(160) % 2
    features = rng.normal(size=(160, 60))
    features[:, 0] += 2 * labels
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    right = {}
    for c in (0.01, 1.0, 1e4):
        direct = LogisticRegression(C=c, max_iter=1000).fit(features[80:].astype(np.float64), labels[80:])
        right[c] = [
            (direct.predict(part) == truth).mean() for part, truth in zip(*halved(features, labels), strict=True)
        ]
    assert [max(right, key=lambda c: right[c][part]) for part in (0, 1)] == [1.0, 1e4]
    draws = np.arange(160, dtype=np.uint64)
    assert fit_probe(features, labels, draws, grid=tuple(right), held_out=0.5).c == 1.0


def halved(*columns: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(column[: len(column) // 2], column[len(column) // 2 :]) for column in columns]


def test_the_chosen_c_is_fitted_to_all_rows_and_ties_go_to_the_smaller_one() -> None:
    labels = np.arange(80) % 2
    features = (np.eye(2)[labels] + np.random.default_rng(0).normal(0, 0.01, (80, 2))).astype(np.float32)
    draws = np.arange(80, dtype=np.uint64)
    probe = fit_probe(features, labels, draws, grid=(100.0, 1.0, 10.0), held_out=0.25)
    assert probe.c == 1.0
    direct = LogisticRegression(C=1.0, max_iter=1000).fit(features.astype(np.float64), labels)
    np.testing.assert_allclose(probe.weights[1] - probe.weights[0], direct.coef_[0], rtol=1e-4)
    np.testing.assert_allclose(probe.bias[1] - probe.bias[0], direct.intercept_[0], rtol=1e-4)


def test_few_shots_of_each_class() -> None:
    labels = np.array([0, 1, 0, 0, 1, 2])
    draws = np.array([5, 9, 1, 3, 2, 7], np.uint64)
    assert few_shots(labels, draws, 2).tolist() == [False, True, True, True, True, True]


def test_unusable_training_sets_are_refused() -> None:
    features, labels, draws = blobs(4, 40)
    with pytest.raises(ValueError, match="two classes"):
        fit_probe(features, np.zeros(40, int), draws, grid=(1.0,), held_out=0.2)
    with pytest.raises(ValueError, match="too few"):
        fit_probe(features[:5], labels[:5], draws[:5], grid=(1.0, 2.0), held_out=0.4)
