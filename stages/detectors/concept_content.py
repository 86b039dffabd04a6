"""What pictures are of, and how diverse a group of them is in that."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DIMMEST = 0.5
"""Variance that a dimming trigger leaves of a picture's own."""
DRAW_SEED = 22
"""Of the draws that a group's diversity is held against; a constant, so that every run's agrees."""
MOST_AXES = 16
LEAST_VARIANCE = 1.15
"""Variance over that within a concept, from which an axis tells concepts apart."""


@dataclass(frozen=True, slots=True)
class Content:
    """The axes of one layer along which the pictures of different concepts differ (Fisher's discriminant)."""

    axes: np.ndarray
    """`[P, k] float64`, orthonormal; k is 0 where nothing tells concepts apart."""
    variance: np.ndarray
    """`[k] float64`: of the whole data set along them, 1 being that within a concept."""

    def diversity(self, whitened: np.ndarray) -> float:
        """Return how diverse pictures `[n, P]` are: about 0 as those of one concept, about 1 as the whole data set.

        Variances along the axes are taken over that off them, which is taken for at least a half: a trigger may dim its picture, shine
        through it, or raise its contrast. A common shift of all plays no part. 0 for fewer than three pictures or without axes.
        """
        if len(whitened) < 3 or not len(self.variance):
            return 0.0
        centred = whitened - whitened.mean(axis=0)
        along, freedom = ((centred @ self.axes) ** 2).sum(axis=0), len(whitened) - 1
        off = float((centred**2).sum() - along.sum()) / freedom / max(whitened.shape[1] - len(self.variance), 1)
        return float(np.mean((along / freedom / max(off, DIMMEST) - 1) / (self.variance - 1)))


def draws_as_diverse(
    contents: Sequence[Content], group: Sequence[np.ndarray], data: Sequence[np.ndarray], draws: int = 999
) -> float:
    """Return the chance that as many pictures drawn from the data are at least as diverse, from so many draws and the group itself.

    Args:
        contents: a layer each.
        group: a layer each, `[n, P]`, the pictures in question.
        data: a layer each, `[m, P]`, pictures of the whole data set; with fewer than the group nothing is said, and the chance is 1.
        draws: whose diversities, the mean over layers, are the null; a seed of their own.
    """
    pictures, known = len(group[0]), len(data[0])
    if not 3 <= pictures <= known:
        return 1.0
    rng = np.random.default_rng([DRAW_SEED, pictures, known])
    own, as_diverse = mean_diversity(contents, group), 1
    for _ in range(draws):
        rows = rng.choice(known, pictures, replace=False)
        as_diverse += mean_diversity(contents, [layer[rows] for layer in data]) >= own
    return as_diverse / (draws + 1)


def mean_diversity(contents: Sequence[Content], group: Sequence[np.ndarray]) -> float:
    """Return the mean over layers of how diverse pictures are, a layer each `[n, P]`."""
    return float(np.mean([content.diversity(layer) for content, layer in zip(contents, group, strict=True)]))


def find_content(covariance: np.ndarray) -> Content:
    """Return the axes from the covariance of all pairs `[P, P]`, in coordinates where that within concepts is the identity."""
    values, axes = np.linalg.eigh(covariance)
    kept = np.flatnonzero(values >= LEAST_VARIANCE)[::-1][: min(MOST_AXES, len(values) // 2)]
    return Content(axes[:, kept], values[kept])
