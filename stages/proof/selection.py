"""Which pairs the oracle looks at: the budget is spent concept by concept, the most accused first."""

import numpy as np

from ..stage import Count, Share, config


@config
class ChoiceLimits:
    """Which pairs are examined, and in which groups."""

    leading: Count = 8
    """Concepts, by their statistic, that share half of what the flagged pairs leave of the budget, however low it is."""
    other_side: Share = 0.25
    """Part of such a concept's share that goes to its least suspicious pairs: where most of a concept is poison, what stands
    out of it and is accused is what is genuine."""
    least_flagged: Count = 20
    """Of a concept with fewer flagged pairs, its most suspicious ones are compared."""
    unnamed_share: Share = 0.1
    """Of a concept that stands out and is not named, this share of its pairs is taken for its flagged group."""
    followed: Count = 64
    """Pairs of a claim that the oracle looks at next where its regions have been proven, and again while that pays."""
    paying_share: Share = 0.1
    """Least share of proven pairs, of a claim in a round, with which it is followed."""


def select(
    ensemble: np.ndarray,
    spectral: np.ndarray,
    concept: np.ndarray,
    *,
    statistics: np.ndarray,
    named: np.ndarray,
    cut: float,
    count: int,
    leading: int,
    other_side: float,
) -> np.ndarray:
    """Return the rows to examine, ascending.

    First the flagged pairs of the concepts that the statistics name. Half of what is left of the budget goes in equal shares
    to the leading concepts, those with the highest statistic, to each one's most suspicious pairs, for poison that is a large part of
    its concept ranks high there and low in the data set as a whole, and to its least suspicious ones. The rest goes to the
    highest ensemble scores.

    Args:
        ensemble: `[N] float32`.
        spectral: `[N] float32`, the score within the accused concept.
        concept: `[N] int`, position of the accused concept, -1 where a pair has none; those have no claim to test.
        statistics: `[C] float`, of each concept.
        named: `[C] bool`.
        cut: ensemble score from which a pair is flagged.
        count: rows to return at most.
        leading: concepts that share.
        other_side: part of each one's share that its least suspicious pairs get, a fraction.
    """
    eligible = np.flatnonzero(concept >= 0)
    chosen = np.zeros(len(ensemble), bool)

    def take(rows: np.ndarray, by: np.ndarray, room: int) -> None:
        rows = rows[~chosen[rows]]
        # a stable sort keeps the order of the data set where scores are equal
        chosen[rows[np.argsort(-by[rows], kind="stable")][: max(0, room)]] = True

    flagged = eligible[(ensemble[eligible] >= cut) & named[concept[eligible]]]
    take(flagged, ensemble, count)
    leaders = np.argsort(-statistics, kind="stable")[:leading]
    share = (count - int(chosen.sum())) // (2 * max(1, len(leaders)))
    for leader in leaders:
        members, other = eligible[concept[eligible] == leader], round(other_side * share)
        take(members, spectral, share - other)
        take(members, -spectral, other)
    take(eligible, ensemble, count - int(chosen.sum()))
    return np.flatnonzero(chosen)
