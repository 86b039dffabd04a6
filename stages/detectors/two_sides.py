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

from .discriminants import FINEST, Scatter


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


@dataclass(frozen=True, slots=True)
class Cut:
    """A concept cut in two, as one view shows it: what its statistic is made of, and all that its sides can be told from again."""

    ratio: float
    share: float
    elsewhere: float
    pairs: int
    directions: tuple[np.ndarray, np.ndarray]
    """`[P] float64`, the choice of the even pairs, along which the odd ones are placed, and the reverse; both signed so that the
    foreign side is above."""
    offsets: tuple[float, float]
    at: float
    """The position that divides the pairs."""

    @property
    def statistic(self) -> float:
        """See `statistic`."""
        return statistic(self.ratio, self.share, self.elsewhere, self.pairs)

    def sides(self, inside: np.ndarray) -> TwoSides:
        """Return both sides, with two Gaussians fitted to the pairs that were cut, `[n, P]`."""
        positions = cross_positions(halves(inside), self.directions, self.offsets)
        prior, means, spreads, balance = two_gaussians(positions, positions > self.at)
        return TwoSides(
            ratio=self.ratio,
            share=self.share,
            elsewhere=self.elsewhere,
            pairs=self.pairs,
            direction=(self.directions[0] + self.directions[1]) / 2,
            offset=(self.offsets[0] + self.offsets[1]) / 2,
            cut=balance,
            foreign=means[1],
            native=means[0],
            foreign_spread=spreads[1],
            native_spread=spreads[0],
            prior=prior,
        )


Halves = tuple[np.ndarray, np.ndarray]
"""The even pairs and the odd ones, `[n, P]` each."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of a concept, and where the rest of the data is."""

    inside: np.ndarray
    """`[n, P]`, whitened, in an order that has nothing to do with the pictures."""
    elsewhere: np.ndarray
    """`[m] bool`: of the pairs of the whole data set those of other concepts."""


def separate(
    concepts: Sequence[Pairs], outside: np.ndarray, views: Sequence[slice], *, least: int, directions: int
) -> list[tuple["Cut | None", ...]]:
    """Cut concepts in two, each as every view shows it; None where it has too few pairs, or pairs that are the same, or is the whole
    data set.

    The pairs are halved. In each half the top principal axes are tried: the two-means split along one is refined along the
    direction that tells its sides apart best (Fisher's discriminant), and the direction with the largest statistic in its own half is
    kept. What counts is what it shows in the other half, where nothing was chosen: noise alone gives a ratio of about 1.8 there,
    however many dimensions there are.

    Args:
        concepts: several at once, as a product of few directions with the whole data set costs as much as one of many.
        outside: `[m, P]`, pairs of the whole data set.
        views: columns of either that are looked at together.
        least: pairs that a side must have at least.
        directions: principal axes tried.
    """
    offers = [offered(concept, views, least, directions) for concept in concepts]
    chosen: list[list[Lines | None]] = [[] for _ in concepts]
    for number, view in enumerate(views):
        ours = [() if offer is None else (offer[0][number], offer[1][number]) for offer in offers]
        ends = np.cumsum([sum(len(half.ratio) for half in own) for own in ours])[:-1]
        every = [half.directions for own in ours for half in own]
        stacked = np.concatenate(every) if every else np.zeros((0, outside[:, view].shape[1]))
        away = np.split(stacked.astype(outside.dtype) @ outside[:, view].T, ends)
        for lines, own, concept, rest in zip(chosen, ours, concepts, away, strict=True):
            lines.append(choose(own, rest.compress(concept.elsewhere, axis=1)) if own else None)
    return [cuts(concept.inside, lines, views, least) for concept, lines in zip(concepts, chosen, strict=True)]


def offered(
    concept: Pairs, views: Sequence[slice], least: int, directions: int
) -> "tuple[list[Candidates], list[Candidates]] | None":
    """Return what each half of a concept offers in each view; None where there are too few pairs."""
    even, odd = halves(concept.inside)
    fewest = max(least // 2, 2)
    if len(concept.inside) < 2 * least or len(odd) < 2 * fewest or not concept.elsewhere.any():
        return None
    return refined(even, views, fewest, directions), refined(odd, views, fewest, directions)


def cuts(
    inside: np.ndarray, chosen: Sequence["Lines | None"], views: Sequence[slice], least: int
) -> tuple["Cut | None", ...]:
    """Return how a concept `[n, P]` divides along the lines that were chosen in each view."""
    known = [number for number, lines in enumerate(chosen) if lines is not None]
    lines = [line for line in chosen if line is not None]
    positions = [
        cross_positions(halves(inside[:, views[number]]), line.directions, line.offsets)
        for number, line in zip(known, lines, strict=True)
    ]
    found = split(np.array(positions).reshape(len(known), len(inside)), least)
    told: list[Cut | None] = [None] * len(views)
    for number, line, own, ratio, at in zip(known, lines, positions, found.ratio, found.cut, strict=True):
        told[number] = cut(line, own, float(ratio), float(at))
    return tuple(told)


def halves(inside: np.ndarray) -> Halves:
    """Return every other pair, and the others."""
    return inside[::2], inside[1::2]


def cross_positions(
    parts: Halves, directions: tuple[np.ndarray, np.ndarray], offsets: tuple[float, float]
) -> np.ndarray:
    """Return where pairs lie along the direction that the other half has chosen, in their order, `[n] float64`."""
    even, odd = parts
    positions = np.empty(len(even) + len(odd))
    positions[1::2] = odd @ directions[0].astype(odd.dtype) - offsets[0]
    positions[::2] = even @ directions[1].astype(even.dtype) - offsets[1]
    return positions


@dataclass(frozen=True, slots=True)
class Candidates:
    """Directions that one half offers in one view, and how they split it."""

    directions: np.ndarray
    """`[c, P] float64`."""
    ratio: np.ndarray
    """`[c]`."""
    cut: np.ndarray
    """`[c]`, along the direction."""
    share: np.ndarray
    """`[c]`: of the half that lies above."""


@dataclass(frozen=True, slots=True)
class Lines:
    """The directions that both halves have chosen, of the same sense, in robust deviations of the rest of the data from its median."""

    directions: tuple[np.ndarray, np.ndarray]
    offsets: tuple[float, float]
    away: np.ndarray
    """`[2 m] float64`: where the pairs of other concepts lie along both."""


ROUNDS = 1
"""Of refining a split; more change nothing on the models that RIDGE was chosen with."""


def refined(half: np.ndarray, views: Sequence[slice], least: int, directions: int) -> list[Candidates]:
    """Return what a half `[n, P]` offers in each view: the splits along its principal axes, refined."""
    scatters = [Scatter(half[:, view]) for view in views]
    starts = [scatter.axes(directions) for scatter in scatters]
    positions = np.concatenate(starts).astype(np.float64)
    upper = positions > split(positions, least).cut[:, None]
    ends = np.cumsum([len(start) for start in starts])[:-1]
    return refine(scatters, np.split(upper, ends), least)


def refine(scatters: Sequence[Scatter], upper: Sequence[np.ndarray], least: int) -> list[Candidates]:
    """Return the directions that tell the sides of divisions apart, after the sides have followed them.

    A division that has no pair on one side offers no direction.

    Args:
        scatters: of the same pairs in several views.
        upper: of each view, the sides to start from, `[c, n] bool`.
        least: pairs that a side must have.
    """
    ends = np.cumsum([len(rows) for rows in upper])
    view = np.repeat(np.arange(len(upper)), [len(rows) for rows in upper])
    sides = np.concatenate(upper)
    offered = moving = two_sided(sides)
    own, ratio, cut = np.zeros(sides.shape), np.zeros(len(sides)), np.zeros(len(sides))
    directions: list[np.ndarray] = [np.zeros(0)] * len(sides)
    for _ in range(ROUNDS + 1):
        for number, scatter in enumerate(scatters):
            rows = np.flatnonzero(moving & (view == number))
            if len(rows):
                fresh, own[rows] = scatter.discriminants(sides[rows])
                for row, direction in zip(rows.tolist(), fresh, strict=True):
                    directions[row] = direction
        rows = np.flatnonzero(moving)
        found = split(own[rows], least)
        ratio[rows], cut[rows] = found.ratio, found.cut
        moved = sides.copy()
        moved[rows] = own[rows] > found.cut[:, None]
        moving = moving & (moved != sides).any(axis=1) & two_sided(moved)
        sides = moved
        if not moving.any():
            break
    share = (own > cut[:, None]).mean(axis=1)
    candidates = []
    for scatter, rows in zip(scatters, np.split(np.arange(len(sides)), ends[:-1]), strict=True):
        kept = rows[offered[rows]]
        stacked = np.array([directions[row] for row in kept], dtype=np.float64).reshape(len(kept), len(scatter.middle))
        candidates.append(Candidates(stacked, ratio[kept], cut[kept] + stacked @ scatter.middle, share[kept]))
    return candidates


def two_sided(upper: np.ndarray) -> np.ndarray:
    """Return which divisions `[c, n]` have a pair on either side, `[c] bool`."""
    return np.asarray(upper.any(axis=1) & ~upper.all(axis=1))


def choose(offers: Sequence[Candidates], away: np.ndarray) -> Lines | None:
    """Return of each half's directions the one with the clearest split, or None where a half has none.

    Args:
        offers: of the two halves, in one view.
        away: `[c, m]`: where the pairs of other concepts lie along all of their directions.
    """
    if not all(len(offer.ratio) for offer in offers):
        return None
    at = np.concatenate([offer.cut for offer in offers]).astype(away.dtype)
    rest = (away > at[:, None]).mean(axis=1)
    share = np.concatenate([offer.share for offer in offers])
    floor = 0.5 / away.shape[1]
    gain = np.maximum(
        *(np.log(np.maximum(a, floor) / np.maximum(b, floor)) for a, b in ((share, rest), (1 - share, 1 - rest)))
    )
    worth = np.concatenate([offer.ratio for offer in offers]) * gain
    first = len(offers[0].ratio)
    best = [int(worth[:first].argmax()), first + int(worth[first:].argmax())]
    lines = away[best].astype(np.float64)
    centre = np.median(lines, axis=1, keepdims=True)
    lines -= centre
    scale = np.maximum(1.4826 * np.median(np.abs(lines), axis=1, keepdims=True), 1e-9)
    one, other = np.concatenate([offer.directions for offer in offers])[best] / scale
    offset, other_offset = (centre / scale).ravel().tolist()
    lines /= scale
    if one @ other < 0:
        other, other_offset, lines[1] = -other, -other_offset, -lines[1]
    return Lines((one, other), (offset, other_offset), lines.ravel())


def cut(lines: Lines, positions: np.ndarray, ratio: float, at: float) -> Cut | None:
    """Return how a concept divides; None where its pairs are the same, on either side of the cut.

    Args:
        lines: along which.
        positions: `[n]` of its pairs.
        ratio: of their best split.
        at: where that is.
    """
    above = float((positions > at).mean())
    if above in (0.0, 1.0):
        return None
    away = float((lines.away > at).mean())
    half_a_pair = 0.5 / max(len(lines.away) // 2, 1)
    sides = ((above, away, 1.0), (1 - above, 1 - away, -1.0))
    share, rest, sign = max(sides, key=lambda side: np.log(max(side[0], half_a_pair) / max(side[1], half_a_pair)))
    return Cut(
        ratio=ratio,
        share=share,
        elsewhere=max(rest, half_a_pair),
        pairs=len(positions),
        directions=(sign * lines.directions[0], sign * lines.directions[1]),
        offsets=(sign * lines.offsets[0], sign * lines.offsets[1]),
        at=sign * at,
    )
