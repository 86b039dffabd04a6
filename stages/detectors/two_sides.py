"""The two sides of a concept: where a trigger cuts its pairs in two, whatever their shares.

Distances from the bulk say nothing once poison is the bulk. Two modes show all the same: along the direction that tells
them apart the variance between them is many times that within. That alone is no accusation, for concepts have natural
sub-modes (product shots, plain backgrounds). Those are found in other concepts, too; a trigger is found nowhere else. So a
separation is weighed by how much rarer its rarer side is in the rest of the data.
"""

from dataclasses import dataclass

import numpy as np

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
    direction: np.ndarray
    """`[P] float64`."""
    offset: float
    cut: float
    foreign: float
    """Mean position of the pairs on the foreign side."""
    native: float
    """Mean position of the others."""
    spread: float
    """Deviation within the sides, pooled."""

    @property
    def statistic(self) -> float:
        """Ratio times log(share / elsewhere), at least 0: two clear modes, one of which is found nowhere else."""
        return max(self.ratio * float(np.log(self.share / self.elsewhere)), 0.0) if self.share > 0 else 0.0

    def positions(self, whitened: np.ndarray) -> np.ndarray:
        """Return where pairs lie, `[n] float64`."""
        return np.asarray(whitened @ self.direction - self.offset)

    def belief(self, positions: np.ndarray) -> np.ndarray:
        """Return the probability that a pair is on the foreign side, `[n] float64`, for two groups of one spread."""
        width = (self.foreign - self.native) / self.spread**2
        return np.asarray(1 / (1 + np.exp(-np.clip(width * (positions - self.cut), -60, 60))))


def separate(
    inside: np.ndarray, outside: np.ndarray, elsewhere: np.ndarray, *, least: int, directions: int
) -> TwoSides | None:
    """Divide a concept in two; None where it has too few pairs.

    The pairs are halved. In each half the top principal axes are tried: along each the two-means split is sought, the difference
    of its sides' means is the direction, and the one with the largest statistic in its own half is kept. What counts is
    what it shows in the other half, where nothing was chosen: noise alone gives a ratio of about 1.8 there, however many
    dimensions there are.

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
    if len(inside) < 2 * least or one is None or other is None:
        return None
    (first, shift), (second, other_shift) = one, other
    if first @ second < 0:
        second, other_shift = -second, -other_shift
    positions = np.empty(len(inside))
    positions[~parity] = inside[~parity] @ first - shift
    positions[parity] = inside[parity] @ second - other_shift
    away = np.concatenate([(outside @ first)[elsewhere] - shift, (outside @ second)[elsewhere] - other_shift])
    found = split(positions, least)
    upper, upper_away = positions > found.cut, float((away > found.cut).mean())
    half_a_pair = 0.5 / max(len(away) // 2, 1)
    shares = {True: (float(upper.mean()), upper_away), False: (1 - float(upper.mean()), 1 - upper_away)}
    gains = {up: np.log(max(share, half_a_pair) / max(rest, half_a_pair)) for up, (share, rest) in shares.items()}
    up = gains[True] >= gains[False]
    sign = 1.0 if up else -1.0
    foreign = upper if up else ~upper
    mean = {side: float(sign * positions[rows].mean()) for side, rows in ((True, foreign), (False, ~foreign))}
    within = np.where(foreign, mean[True], mean[False])
    return TwoSides(
        ratio=found.ratio,
        share=shares[bool(up)][0],
        elsewhere=max(shares[bool(up)][1], half_a_pair),
        direction=sign * (first + second) / 2,
        offset=float(sign * (shift + other_shift) / 2),
        cut=sign * found.cut,
        foreign=mean[True],
        native=mean[False],
        spread=max(float(np.sqrt(np.mean((sign * positions - within) ** 2))), 1e-6),
    )


def choose_direction(
    half: np.ndarray, outside: np.ndarray, elsewhere: np.ndarray, least: int, directions: int
) -> tuple[np.ndarray, float] | None:
    """Return direction `[P]` and offset that make a half's clearest split, in robust deviations of the outside."""
    if len(half) < 2 * least:
        return None
    centred = half - half.mean(axis=0)
    _, axes = np.linalg.eigh(centred @ centred.T)
    best: tuple[float, np.ndarray, float] | None = None
    for axis in axes.T[::-1][:directions]:
        upper = axis > split(axis, least).cut
        if not upper.any() or upper.all():
            continue
        direction = half[upper].mean(axis=0) - half[~upper].mean(axis=0)
        away = (outside @ direction)[elsewhere]
        centre = float(np.median(away))
        scale = max(1.4826 * float(np.median(np.abs(away - centre))), 1e-9)
        own, away = (half @ direction - centre) / scale, (away - centre) / scale
        found = split(own, least)
        share, rest = float((own > found.cut).mean()), float((away > found.cut).mean())
        floor = 0.5 / len(away)
        gain = max(np.log(max(a, floor) / max(b, floor)) for a, b in ((share, rest), (1 - share, 1 - rest)))
        if best is None or found.ratio * gain > best[0]:
            best = found.ratio * gain, direction / scale, centre / scale
    return None if best is None else best[1:]
