"""Cuts concepts in two: which line through their pairs shows two sides, one of which the rest of the data is not on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .discriminants import Scatter
from .two_sides import TwoSides, split, statistic, two_gaussians


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
