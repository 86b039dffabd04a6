"""The directions along which a group of pairs may divide: its principal axes, and Fisher's discriminants of divisions of it."""

import numpy as np
from scipy.linalg import eigh

FINEST = 1e-12
"""Variance below which rounding is all there is."""
RIDGE = 3.0
"""Of the covariance within the sides, in mean variances: their own is known of too few pairs to be inverted. Chosen on SIG in 65 % of
a concept and on a clean model: 1 sets the target further apart, and with it sub-modes of thirty pairs; the plain difference of the
means, neither."""
EXACT = 1e-10
"""Share of the right-hand side that a solution may leave."""
MOST_STEPS = 1_000
"""Of conjugate gradients. With the ridge the condition is at most 1 + P / RIDGE, and one step more is due to the gap between the sides:
some twenty steps are what it takes in 512 dimensions, and 160 where one direction had all of the variance."""


TINY = np.finfo(np.float64).tiny


class Scatter:
    """Pairs `[n, P]` about their mean, and the products of which all directions are made.

    Those are of the pairs where there are no more of them than dimensions, else of the dimensions.
    """

    def __init__(self, pairs: np.ndarray) -> None:
        self.middle = pairs.mean(axis=0)
        """`[P]`."""
        self._centred = pairs - self.middle
        self._few = len(pairs) <= pairs.shape[1]
        centred = self._centred
        self._products = centred @ centred.T if self._few else centred.T @ centred
        self._exact = self._products.astype(np.float64)

    def axes(self, count: int) -> np.ndarray:
        """Return where the pairs lie along the first principal axes, `[c, n]`, each up to a factor."""
        size = len(self._products)
        first = max(size - count, 0)
        _, axes = eigh(self._products, subset_by_index=[first, size - 1], driver="evr", check_finite=False)
        return np.asarray(axes.T[::-1] if self._few else axes.T[::-1] @ self._centred.T)

    def discriminants(self, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Fisher's linear discriminants of some divisions, and where the pairs lie along them, from their mean.

        (W + r I) d = g with the gap g between the means of the sides, the covariance W within them, and r as RIDGE says. W is
        the covariance T / n of all less a b g g', for shares a and b of the pairs on the sides. So d is (T / n + r I)^-1 g up to a factor
        (Sherman and Morrison 1950), and T is the same whatever the division.

        Args:
            upper: `[c, n] bool`, the sides of each division; neither is empty.

        Returns:
            `[c, P]` and `[c, n]`, both float64.
        """
        n, width = self._centred.shape
        share = upper.mean(axis=1)
        weights = np.where(upper, 1 / share[:, None], -1 / (1 - share)[:, None]) / n
        right = weights if self._few else (weights.astype(self._centred.dtype) @ self._centred).astype(np.float64)
        gap = np.vecdot(right, right @ self._exact) if self._few else np.vecdot(right, right)
        within = np.trace(self._exact) / n - share * (1 - share) * gap
        ridge = np.maximum(RIDGE * within / width, FINEST)
        found = solve(self._exact / n, ridge, right)
        along = found @ self._exact if self._few else found
        found /= np.maximum(1 - share * (1 - share) * np.vecdot(right, along), FINEST)[:, None]
        if self._few:
            return found.astype(self._centred.dtype) @ self._centred, found @ self._exact
        return found, (found.astype(self._centred.dtype) @ self._centred.T).astype(np.float64)


def solve(matrix: np.ndarray, ridge: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return x with (A + r I) x = b for several r and b at once, by conjugate gradients.

    Args:
        matrix: A, `[s, s] float64`, symmetric, no eigenvalue below 0.
        ridge: r, `[c]`.
        right: b, `[c, s]`.
    """
    found, rest = np.zeros_like(right), right.copy()
    step, left = rest.copy(), np.vecdot(right, right)
    enough = EXACT**2 * left
    for _ in range(MOST_STEPS):
        if (left <= enough).all():
            break
        image = step @ matrix + ridge[:, None] * step
        far = (left / np.maximum(np.vecdot(step, image), TINY))[:, None]
        found += far * step
        rest -= far * image
        before, left = left, np.vecdot(rest, rest)
        step *= (left / np.maximum(before, TINY))[:, None]
        step += rest
    return found
