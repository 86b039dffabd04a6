"""The two sides of a concept: where a trigger cuts its pairs in two, whatever their shares.

Distances from the bulk say nothing once poison is the bulk. Two modes show all the same: along the direction that tells
them apart the variance between them is many times that within. That alone is no accusation, for concepts have natural
sub-modes (product shots, plain backgrounds). Those are found in other concepts, too; a trigger is found nowhere else. So a
separation is weighed by how much rarer its rarer side is in the rest of the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincinv

FINEST = 1e-12
"""Variance below which rounding is all there is."""


@dataclass(frozen=True, slots=True)
class Split:
    """The best division of numbers in two groups."""

    ratio: float
    """Variance between the groups over that within."""
    cut: float
    """Halfway between the groups."""


def split(values: np.ndarray, least: int) -> Split:
    """Return the two-means split of numbers `[n]` with at least `least` on each side; ratio 0 where there are too few."""
    ascending = np.sort(values)
    n = len(ascending)
    below = np.arange(least, n - least + 1)
    if not len(below):
        return Split(0.0, 0.0)
    sums = np.cumsum(ascending)[below - 1]
    gap = (ascending.sum() - sums) / (n - below) - sums / below
    between = below * (n - below) / n**2 * gap**2
    best = int(between.argmax())
    within = max(float(ascending.var() - between[best]), FINEST)
    at = below[best]
    return Split(float(between[best] / within), float(ascending[at - 1] + ascending[at]) / 2)


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
        """Ratio times log(share / elsewhere), at least 0: two clear modes, one of which is found nowhere else.

        The ratio is taken at its lower confidence limit: of few pairs a narrow side is luck.
        """
        if not self.share > 0:
            return 0.0
        return max(self.ratio * lowest(self.pairs) * float(np.log(self.share / self.elsewhere)), 0.0)

    def positions(self, whitened: np.ndarray) -> np.ndarray:
        """Return where pairs lie, `[n] float64`."""
        return np.asarray(whitened @ self.direction - self.offset)

    def belief(self, positions: np.ndarray) -> np.ndarray:
        """Return the probability that a pair is on the foreign side, `[n] float64`, never falling with the position."""
        return believe(positions, self.prior, (self.native, self.foreign), (self.native_spread, self.foreign_spread))


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


def separate(
    inside: np.ndarray, outside: np.ndarray, elsewhere: np.ndarray, *, least: int, directions: int
) -> TwoSides | None:
    """Divide a concept in two; None where it has too few pairs, or pairs that are the same, or is the whole data set.

    The pairs are halved. In each half the top principal axes are tried: the two-means split along one is refined along the
    direction that tells its sides apart best (`discriminant`), and the direction with the largest statistic in its own half is
    kept. What counts is what it shows in the other half, where nothing was chosen: noise alone gives a ratio of about 1.8 there,
    however many dimensions there are.

    Args:
        inside: `[n, P] float64`, whitened, in an order that has nothing to do with the pictures.
        outside: `[m, P]`, pairs of the whole data set.
        elsewhere: `[m] bool`: those of other concepts.
        least: pairs that a side must have at least.
        directions: principal axes tried.
    """
    parity = np.arange(len(inside)) % 2 == 0
    halves = [
        choose_direction(inside[part], outside, elsewhere, max(least // 2, 2), directions) for part in (parity, ~parity)
    ]
    one, other = halves
    if len(inside) < 2 * least or one is None or other is None or not elsewhere.any():
        return None
    (first, shift), (second, other_shift) = one, other
    if first @ second < 0:
        second, other_shift = -second, -other_shift
    positions = np.empty(len(inside))
    positions[~parity] = inside[~parity] @ first - shift
    positions[parity] = inside[parity] @ second - other_shift
    away = (along(outside, [first, second])[elsewhere] - [shift, other_shift]).T.ravel()
    found = split(positions, least)
    upper, upper_away = positions > found.cut, float((away > found.cut).mean())
    if not upper.any() or upper.all():
        return None  # pairs that are the same, on either side of the cut
    half_a_pair = 0.5 / max(len(away) // 2, 1)
    shares = {True: (float(upper.mean()), upper_away), False: (1 - float(upper.mean()), 1 - upper_away)}
    gains = {up: np.log(max(share, half_a_pair) / max(rest, half_a_pair)) for up, (share, rest) in shares.items()}
    up = gains[True] >= gains[False]
    sign = 1.0 if up else -1.0
    foreign = upper if up else ~upper
    prior, means, spreads, balance = two_gaussians(sign * positions, foreign)
    return TwoSides(
        ratio=found.ratio,
        share=shares[bool(up)][0],
        elsewhere=max(shares[bool(up)][1], half_a_pair),
        pairs=len(inside),
        direction=sign * (first + second) / 2,
        offset=float(sign * (shift + other_shift) / 2),
        cut=balance,
        foreign=means[1],
        native=means[0],
        foreign_spread=spreads[1],
        native_spread=spreads[0],
        prior=prior,
    )


RIDGE = 3.0
"""Of the covariance within the sides, in mean variances: their own is known of too few pairs to be inverted. Chosen on SIG in 65 % of
a concept and on a clean model: 1 sets the target further apart, and with it sub-modes of thirty pairs; the plain difference of the
means, neither."""
ROUNDS = 1
"""Of refining a split; more change nothing on the models that RIDGE was chosen with."""


def refine(half: np.ndarray, upper: np.ndarray, least: int) -> np.ndarray | None:
    """Return the direction `[P]` that tells the sides of a half apart, after the sides have followed it; None without two sides.

    Args:
        half: `[n, P]`.
        upper: `[n] bool`, the sides to start from.
        least: pairs that a side must have.
    """
    direction = None
    for _ in range(ROUNDS + 1):
        if not upper.any() or upper.all():
            return direction
        direction = discriminant(half, upper)
        own = half @ direction
        moved = own > split(own, least).cut
        if (moved == upper).all():
            break
        upper = moved
    return direction


def discriminant(half: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Return Fisher's linear discriminant `[P]` of two sides: the difference of their means, less of it where pairs vary anyway.

    (W + r I) d = difference, with the covariance W within the sides and r as RIDGE says; solved in the space of the pairs where
    they are fewer than the dimensions (Woodbury).
    """
    means = half[upper].mean(axis=0), half[~upper].mean(axis=0)
    gap = (means[0] - means[1]).astype(np.float64)
    around = (half - np.where(upper[:, None], *means)).astype(np.float64)
    n, width = around.shape
    ridge = max(RIDGE * float((around**2).sum()) / (n * width), FINEST)
    if n > width:
        return np.asarray(np.linalg.solve(around.T @ around / n + ridge * np.eye(width), gap))
    weights = np.linalg.solve(around @ around.T + n * ridge * np.eye(n), around @ gap)
    return np.asarray((gap - around.T @ weights) / ridge)


def choose_direction(
    half: np.ndarray, outside: np.ndarray, elsewhere: np.ndarray, least: int, directions: int
) -> tuple[np.ndarray, float] | None:
    """Return direction `[P]` and offset that make a half's clearest split, in robust deviations of the outside."""
    if len(half) < 2 * least or not elsewhere.any():
        return None
    centred = half - half.mean(axis=0)
    few = len(half) <= half.shape[1]
    _, axes = np.linalg.eigh(centred @ centred.T if few else centred.T @ centred)
    top = axes.T[::-1][:directions]
    tried = [refine(half, axis > split(axis, least).cut, least) for axis in (top if few else top @ centred.T)]
    found = [direction for direction in tried if direction is not None]
    best: tuple[float, np.ndarray, float] | None = None
    for direction, away in zip(found, along(outside, found)[elsewhere].T, strict=True):
        centre = float(np.median(away))
        scale = max(1.4826 * float(np.median(np.abs(away - centre))), 1e-9)
        own, away = (half @ direction - centre) / scale, (away - centre) / scale
        sides = split(own, least)
        share, rest = float((own > sides.cut).mean()), float((away > sides.cut).mean())
        floor = 0.5 / len(away)
        gain = max(np.log(max(a, floor) / max(b, floor)) for a, b in ((share, rest), (1 - share, 1 - rest)))
        if best is None or sides.ratio * gain > best[0]:
            best = sides.ratio * gain, direction / scale, centre / scale
    return None if best is None else best[1:]


def along(outside: np.ndarray, directions: Sequence[np.ndarray]) -> np.ndarray:
    """Return `[m, k]`: where pairs lie along k directions; one pass over the pairs, which is what this costs."""
    stacked = np.array(directions, outside.dtype).reshape(len(directions), outside.shape[1])
    return np.asarray(outside @ stacked.T, dtype=np.float64)
