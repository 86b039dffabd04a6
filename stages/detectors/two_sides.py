"""The two sides of a concept: where a trigger cuts its pairs in two, whatever their shares.

Distances from the bulk say nothing once poison is the bulk. Two modes show all the same: along the direction that tells
them apart the variance between them is many times that within. That alone is no accusation, for concepts have natural
sub-modes (product shots, plain backgrounds). Those are found in other concepts, too; a trigger is found nowhere else. So a
separation is weighed by how much rarer its rarer side is in the rest of the data.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincinv

from .discriminants import FINEST


@dataclass(frozen=True, slots=True)
class Splits:
    """The best division of numbers in two groups, a row each."""

    ratio: np.ndarray
    """`[c] float64`: variance between the groups over that within."""
    cut: np.ndarray
    """`[c] float64`: halfway between the groups."""


def split(values: np.ndarray, least: int) -> Splits:
    """Return the two-means split of every row of numbers `[c, n]` with at least `least` on each side; ratio 0 where there are too few."""
    ascending = np.sort(values.astype(np.float64), axis=1)
    rows, n = np.arange(len(ascending)), ascending.shape[1]
    below = np.arange(least, n - least + 1)
    if not len(below):
        return Splits(np.zeros(len(rows)), np.zeros(len(rows)))
    sums = np.cumsum(ascending, axis=1)
    lower = sums[:, below - 1]
    gap = (sums[:, -1:] - lower) / (n - below) - lower / below
    between = below * (n - below) / n**2 * gap**2
    best = between.argmax(axis=1)
    most, at = between[rows, best], below[best]
    within = np.maximum(ascending.var(axis=1) - most, FINEST)
    return Splits(most / within, (ascending[rows, at - 1] + ascending[rows, at]) / 2)


@dataclass(frozen=True, slots=True)
class TwoSides:
    """How a concept divides, and which side a trigger would be on.

    A pair x (whitened, as `separate` took it) lies at x . direction - offset, in robust deviations of the rest of the data from
    its median; from `cut` on it is on the foreign side, the one where the rest of the data is not.
    """

    ratio: float
    """Variance between the sides over that within, of pairs that had no part in choosing the direction."""
    share: float
    """Share of the concept on the foreign side."""
    elsewhere: float
    """Share of the rest of the data on that side; at least half a pair."""
    pairs: int
    """Pairs that it was divided by."""
    direction: np.ndarray
    """`[P] float64`."""
    offset: float
    cut: float
    foreign: float
    """Mean position of the pairs on the foreign side."""
    native: float
    """Mean position of the others."""
    foreign_spread: float
    native_spread: float
    prior: float
    """Share of the concept in the foreign one of two Gaussians, each with a spread of its own: a trigger gathers its pairs, or
    scatters them by how it meets their pictures."""

    @property
    def statistic(self) -> float:
        """See `statistic`."""
        return statistic(self.ratio, self.share, self.elsewhere, self.pairs)

    def positions(self, whitened: np.ndarray) -> np.ndarray:
        """Return where pairs lie, `[n] float64`."""
        return np.asarray(whitened @ self.direction - self.offset)

    def belief(self, positions: np.ndarray) -> np.ndarray:
        """Return the probability that a pair is on the foreign side, `[n] float64`, never falling with the position."""
        return believe(positions, self.prior, (self.native, self.foreign), (self.native_spread, self.foreign_spread))


def statistic(ratio: float, share: float, elsewhere: float, pairs: int) -> float:
    """Return the ratio times log(share / elsewhere), at least 0: two clear modes, one of which is found nowhere else.

    The ratio is taken at its lower confidence limit: of few pairs a narrow side is luck.
    """
    if not share > 0:
        return 0.0
    return max(ratio * lowest(pairs) * float(np.log(share / elsewhere)), 0.0)


CONFIDENCE = 0.95
"""Of the limit that a ratio is taken at."""


def lowest(pairs: int) -> float:
    """Return what share of a ratio is sure: the quantile of chi-square over its n - 2 degrees of freedom, which a variance within two
    sides has."""
    freedom = max(pairs - 2, 1)
    return float(2 * gammaincinv(freedom / 2, 1 - CONFIDENCE) / freedom)


STEPS = 30
"""Of expectation-maximisation."""
NARROWEST = 0.2
"""A side's spread is at least this share of the pooled one, so that a few pairs that agree do not become a side."""


def believe(
    positions: np.ndarray, prior: float, means: tuple[float, float], spreads: tuple[float, float]
) -> np.ndarray:
    """Return the probability of the upper of two Gaussians, `[n] float64`; beyond the means it stays as there."""
    x = np.clip(positions, *means)
    below, above = (
        -0.5 * ((x - mean) / spread) ** 2 - np.log(spread) for mean, spread in zip(means, spreads, strict=True)
    )
    return np.asarray(1 / (1 + np.exp(np.clip(below - above + np.log1p(-prior) - np.log(prior), -60, 60))))


def two_gaussians(
    positions: np.ndarray, upper: np.ndarray
) -> tuple[float, tuple[float, float], tuple[float, float], float]:
    """Fit two Gaussians that start from a split; return the upper one's share, both means and spreads, and where they balance.

    Stays with the split itself where the fit would swallow one side.
    """
    weights = np.where(upper, 1.0, 0.0)
    pooled = float(
        np.sqrt(np.mean((positions - np.where(upper, positions[upper].mean(), positions[~upper].mean())) ** 2))
    )
    floor = max(NARROWEST * pooled, 1e-6)
    kept = moments(positions, weights, floor)
    for _ in range(STEPS):
        weights = believe(positions, *kept)
        prior = float(weights.mean())
        fresh = moments(positions, weights, floor) if 0 < prior < 1 else kept
        if not 0.5 * upper.mean() <= fresh[0] <= 1 - 0.5 * (~upper).mean() or fresh[1][0] >= fresh[1][1]:
            break
        kept = fresh
    between = np.linspace(*kept[1], 512)
    balance = float(between[min(int((believe(between, *kept) < 0.5).sum()), len(between) - 1)])
    return *kept, balance


def moments(
    positions: np.ndarray, weights: np.ndarray, floor: float
) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """Return the share of the upper group, and the means and spreads of both; `weights` `[n]` say how far pairs are in it."""
    means, spreads = [], []
    for part in (1 - weights, weights):
        means.append(float(part @ positions / part.sum()))
        spreads.append(max(float(np.sqrt(part @ (positions - means[-1]) ** 2 / part.sum())), floor))
    return float(np.clip(weights.mean(), 1e-6, 1 - 1e-6)), (means[0], means[1]), (spreads[0], spreads[1])
