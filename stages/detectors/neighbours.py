"""Exact nearest neighbours inside a block: the one routine under all density detectors."""

from dataclasses import dataclass

import numpy as np

TILE_ROWS = 256
"""Rows of the distance matrix held at once: 256 x 4,096 float32 is 4 MiB, which stays in a core's cache."""
PAIRS_AT_ONCE = 1 << 14
"""Candidate pairs whose differences are held at once: 64 MiB of float64 at D = 512."""
UNIT_ROUNDOFF = 2.0**-24
"""Largest relative error of one float32 operation."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The k nearest other points of every point, nearest first."""

    index: np.ndarray
    """`[P, k] int64`, rows of the full array of points: never of an array from which a row was removed."""
    distance: np.ndarray
    """`[P, k] float64`, Euclidean, ascending."""


def nearest(points: np.ndarray, k: int, excluded: np.ndarray | None = None) -> Neighbours:
    """Return the k nearest neighbours of each of `points` (`[P, D] float32`), a point never being its own neighbour.

    `excluded` (`[E, 2] int64`) lists further pairs (query row, forbidden neighbour row). Points of equal distance come
    in the order of their rows, so the answer is a function of the points alone, not of the linear algebra library or
    its threads.

    A float32 matrix product proposes candidates: everything not farther than the k-th smallest proposal plus twice
    the bound of its rounding error, so no true neighbour is missed. The candidates' distances are then computed
    from differences in float64: the form 2 - 2 cos cancels for near-duplicates, where it would leave noise.

    Memory is one tile of the distance matrix. Neighbour rows refer to the full array, also where `excluded` removes
    some: the reference implementation of DAO and SLOF takes them from a matrix that lacks the diagonal and so reads
    every row behind the query off by one.

    Raises:
        ValueError: k is not positive, a point has fewer than k allowed neighbours, or a coordinate is not finite.
    """
    if k < 1:
        raise ValueError(f"k must be positive, not {k}")
    if not np.isfinite(points).all():
        raise ValueError("points must be finite")
    # Distances do not move with the origin, but the rounding error of the product grows with the norms.
    centred = points - points.mean(axis=0, dtype=np.float64).astype(np.float32)
    squares = np.einsum("ij,ij->i", centred, centred)
    norms = np.sqrt(squares)
    slack = 4.0 * (points.shape[1] + 8) * UNIT_ROUNDOFF * (norms + norms.max(initial=0.0)) ** 2
    forbidden = _sorted_pairs(len(points), excluded)

    indices, distances = [], []
    for start in range(0, len(points), TILE_ROWS):
        stop = min(start + TILE_ROWS, len(points))
        tile = centred[start:stop] @ centred.T
        tile *= -2.0
        tile += squares
        tile += squares[start:stop, None]
        first, last = np.searchsorted(forbidden[:, 0], (start, stop))
        tile[forbidden[first:last, 0] - start, forbidden[first:last, 1]] = np.inf
        kth = np.partition(tile, k - 1, axis=1)[:, k - 1] if k <= tile.shape[1] else np.full(stop - start, np.inf)
        if not np.isfinite(kth).all():
            raise ValueError(f"k = {k} needs at least that many allowed neighbours for each of {len(points)} points")
        rows, columns = np.nonzero(tile <= (kth + slack[start:stop])[:, None])
        exact = _distances(points, rows + start, columns)
        chosen = _first_of_each_row(rows, columns, exact, k)
        indices.append(columns[chosen].reshape(-1, k))
        distances.append(exact[chosen].reshape(-1, k))
    if not indices:
        return Neighbours(np.empty((0, k), np.int64), np.empty((0, k), np.float64))
    return Neighbours(np.concatenate(indices), np.concatenate(distances))


def _sorted_pairs(count: int, excluded: np.ndarray | None) -> np.ndarray:
    """Return all forbidden (query, neighbour) pairs, the diagonal with them, in the order of the queries."""
    diagonal = np.repeat(np.arange(count)[:, None], 2, axis=1)
    pairs = diagonal if excluded is None else np.concatenate([diagonal, excluded])
    return pairs[np.argsort(pairs[:, 0], kind="stable")]


def _distances(points: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return `[M] float64` Euclidean distances between the rows `left` and `right` of `points`."""
    result = np.empty(len(left), np.float64)
    for start in range(0, len(left), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        difference = np.subtract(points[left[part]], points[right[part]], dtype=np.float64)
        result[part] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    return result


def _first_of_each_row(rows: np.ndarray, columns: np.ndarray, distance: np.ndarray, k: int) -> np.ndarray:
    """Return positions of the k smallest candidates of every row, by distance and then by column."""
    order = np.lexsort((columns, distance, rows))
    counts = np.bincount(rows)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[place < k]
