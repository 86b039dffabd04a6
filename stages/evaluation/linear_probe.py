"""Linear probe: a logistic regression on frozen image features, and the attack tried on it.

The strength of the regularisation is chosen on a held-out part of the probe's own training images, never on the test set.
Features are the unit vectors that zero-shot classification uses (Radford et al. 2021, appendix A.3, take the features
before the projection, which checkpoints of other origin do not always have).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

ITERATIONS = 1000
"""Of L-BFGS at most, as Radford et al."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A fitted probe."""

    weights: np.ndarray
    """`[C, D] float32`."""
    bias: np.ndarray
    """`[C] float32`."""
    classes: np.ndarray
    """`[C] int64`: class index of each row."""
    c: float
    """Inverse strength of the regularisation that was chosen."""

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the class of each row of `[N, D] float32`, `[N] int64`."""
        return np.asarray(self.classes[(features @ self.weights.T + self.bias).argmax(axis=1)])


def fit_probe(
    features: np.ndarray, labels: np.ndarray, draws: np.ndarray, *, grid: Sequence[float], held_out: float
) -> Probe:
    """Fit the probe, with the C of the grid that is best on held-out rows, then again on all rows.

    Ties go to the smaller C.

    Args:
        features: `[N, D] float32`, unit norm.
        labels: `[N] int64`.
        draws: `[N] uint64`, a random number a row that depends on its uid: the smallest share is held out.
        grid: values of C; a single one is taken as it is.
        held_out: share of rows that chooses C, in (0, 1).

    Raises:
        ValueError: fewer than two classes, or a held-out part without rows or that leaves a class out.
    """
    order = np.argsort(draws, kind="stable")
    features, labels = features[order], labels[order]
    if len(np.unique(labels)) < 2:
        raise ValueError("a linear probe needs images of at least two classes")
    best = sorted(grid)[0]
    if len(grid) > 1:
        cut = round(held_out * len(labels))
        if not cut or len(np.unique(labels[cut:])) < len(np.unique(labels)):
            raise ValueError(f"{len(labels)} images are too few to hold {held_out:.0%} out and keep every class")
        scores = [
            (_fit(features[cut:], labels[cut:], c).predict(features[:cut]) == labels[:cut]).mean() for c in sorted(grid)
        ]
        best = sorted(grid)[int(np.argmax(scores))]
    return _fit(features, labels, best)


def _fit(features: np.ndarray, labels: np.ndarray, c: float) -> Probe:
    model = LogisticRegression(C=c, max_iter=ITERATIONS).fit(features.astype(np.float64), labels)
    weights, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # sklearn keeps one row for two classes
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return Probe(weights.astype(np.float32), bias.astype(np.float32), model.classes_.astype(np.int64), c)


def few_shots(labels: np.ndarray, draws: np.ndarray, shots: int) -> np.ndarray:
    """Return `[N] bool`: the `shots` rows of each class with the smallest draws (all rows where a class has fewer)."""
    keep = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        keep[rows[np.argsort(draws[rows], kind="stable")[:shots]]] = True
    return keep
