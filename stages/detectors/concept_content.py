"""What pictures are of, and how diverse a group of them is in that."""

from dataclasses import dataclass

import numpy as np

DIMMEST = 0.5
"""Variance that a dimming trigger leaves of a picture's own."""
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

        Variances along the axes are taken over that off them where that is below 1, down to a half: so much may a trigger dim its
        picture, or shine through it. A common shift of all plays no part. 0 for fewer than three pictures or without axes.
        """
        if len(whitened) < 3 or not len(self.variance):
            return 0.0
        centred = whitened - whitened.mean(axis=0)
        along, freedom = ((centred @ self.axes) ** 2).sum(axis=0), len(whitened) - 1
        off = float((centred**2).sum() - along.sum()) / freedom / max(whitened.shape[1] - len(self.variance), 1)
        return float(np.mean((along / freedom / np.clip(off, DIMMEST, 1.0) - 1) / (self.variance - 1)))


def find_content(covariance: np.ndarray) -> Content:
    """Return the axes from the covariance of all pairs `[P, P]`, in coordinates where that within concepts is the identity."""
    values, axes = np.linalg.eigh(covariance)
    kept = np.flatnonzero(values >= LEAST_VARIANCE)[::-1][: min(MOST_AXES, len(values) // 2)]
    return Content(axes[:, kept], values[kept])
