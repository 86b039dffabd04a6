"""Exact nearest neighbours inside a block: the one routine under all density detectors, on a CPU or a GPU."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch

TILE_ROWS = 1_024
"""Rows of the distance matrix held at once on a CPU: 1,024 x 4,096 float32 is 16 MiB. A GPU holds 4 times as
many."""
LEAST_GROUPS = 128
"""Groups of columns, at least, whose minima bound the k-th smallest of a row."""
GROUPS_A_NEIGHBOUR = 4
"""Groups for each neighbour: the bound then lets about 15 % more candidates through than there are neighbours."""
PAIRS_AT_ONCE = 1 << 14
"""Candidate pairs whose differences are held at once: 64 MiB of float64 at D = 512."""
UNIT_ROUNDOFF = 2.0**-24
"""Largest relative error of one float32 operation."""
NEAR = 2.0**-10
"""Share of the squared norms below which a squared distance is taken from differences: a product would leave fewer than 43
bits of it."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The k nearest other points of some points, nearest first."""

    index: np.ndarray
    """`[Q, k] int64`, rows of the full array of points: never of an array from which a row was removed."""
    distance: np.ndarray
    """`[Q, k] float64`, Euclidean, ascending."""


def nearest(
    points: np.ndarray,
    k: int,
    excluded: np.ndarray | None = None,
    *,
    queries: np.ndarray | None = None,
    device: torch.device | str = "cpu",
) -> Neighbours:
    """Return the k nearest neighbours of points (`[P, D] float32`), a point never being its own neighbour.

    A float32 matrix product proposes candidates: everything not farther than the k-th smallest proposal plus twice the bound of its
    rounding error, so no true neighbour is missed. The candidates' distances are then computed in float64, from products where these
    leave enough bits of the distance and from differences where they do not: relative error at most about 1e-10. For vectors that
    were float16 with norms of 1, as those of the cache, products and sums have at most 53 bits, so that every distance is the exact one,
    rounded once, on any device and whatever the order of summation. Points of equal distance come in the order of their rows.

    Memory is one tile of the distance matrix. Neighbour rows refer to the full array, also where `excluded` removes
    some: the reference implementation of DAO and SLOF takes them from a matrix that lacks the diagonal and so reads
    every row behind the query off by one.

    Args:
        points: all of them.
        k: how many neighbours.
        excluded: `[E, 2] int64`, further pairs (query row, forbidden neighbour row).
        queries: `[Q] int64`, ascending rows of the points whose neighbours are wanted; None: all.
        device: where the products are computed.

    Raises:
        ValueError: k is not positive, a point has fewer than k allowed neighbours, or a coordinate is not finite.
    """
    if k < 1:
        raise ValueError(f"k must be positive, not {k}")
    if not np.isfinite(points).all():
        raise ValueError("points must be finite")
    wanted = np.arange(len(points)) if queries is None else queries
    if not len(wanted):
        return Neighbours(np.empty((0, k), np.int64), np.empty((0, k), np.float64))
    search = _Search(points, k, wanted, excluded, torch.device(device))
    parts = [search.tile(start, min(start + search.size, len(wanted))) for start in range(0, len(wanted), search.size)]
    return Neighbours(*(np.concatenate(part) for part in zip(*parts, strict=True)))


class _Search:
    """One search: what every tile of the distance matrix needs."""

    def __init__(
        self, points: np.ndarray, k: int, queries: np.ndarray, excluded: np.ndarray | None, device: torch.device
    ) -> None:
        self.device = device
        self._k = k
        self._points = torch.from_numpy(np.ascontiguousarray(points)).to(device)
        self._exact = self._points.double()
        self._exact_squares = torch.einsum("ij,ij->i", self._exact, self._exact)
        # Distances do not move with the origin, but the rounding error of the product grows with the norms.
        self._centred = (self._exact - self._exact.mean(0)).float()
        self._squares = torch.einsum("ij,ij->i", self._centred, self._centred)
        self._with_squares = torch.cat([self._centred, self._squares[:, None]], dim=1)
        norms = self._squares.sqrt()
        factor = 4.0 * (points.shape[1] + 8) * UNIT_ROUNDOFF
        self._slack = factor * (norms + norms.max()) ** 2
        self._queries = torch.from_numpy(queries).to(device)
        self._forbidden = _forbidden_places(queries, excluded)
        self.size = min(len(queries), TILE_ROWS * (1 if device.type == "cpu" else 4))
        self._tile = torch.empty(self.size, len(points), device=device)

    def tile(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return index `[stop - start, k]` and distance of the neighbours of some of the queries."""
        own = self._queries[start:stop]
        proposed = self._proposals(own, start, stop)
        bound = self._kth_bound(proposed)
        rows, columns = _at_most(proposed, bound + self._slack[own, None])
        squared = self._squared_distances(own, rows, columns)
        index, nearest_squared = _first_of_each_row(rows, columns, squared, stop - start, self._k)
        return index, np.sqrt(nearest_squared)

    def _proposals(self, own: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Return `[n, P] float32`, squared distances less the squared norm of the query; infinite where forbidden."""
        tile = self._tile[: stop - start]
        if self.device.type == "cpu":  # the squares as one more dimension: NumPy's product has no sum to begin with
            queries = torch.cat([-2.0 * self._centred[own], torch.ones(len(own), 1)], dim=1)
            np.matmul(queries.numpy(), self._with_squares.numpy().T, out=tile.numpy())
        else:
            torch.addmm(self._squares, self._centred[own], self._centred.T, alpha=-2.0, out=tile)
        first, last = np.searchsorted(self._forbidden[:, 0], (start, stop))
        rows, columns = torch.from_numpy(self._forbidden[first:last]).to(self.device).unbind(1)
        tile[rows - start, columns] = torch.inf
        return tile

    def _kth_bound(self, proposed: torch.Tensor) -> torch.Tensor:
        """Return `[n, 1]`: a bound of the k-th smallest of every row, as tight as it is cheap.

        The k smallest minima of disjoint groups of columns are k values of the row.

        Raises:
            ValueError: a row has fewer than k finite values.
        """
        groups = max(LEAST_GROUPS, 1 << (GROUPS_A_NEIGHBOUR * self._k - 1).bit_length())
        many = proposed.shape[1] // groups
        if many >= 2:
            groups = proposed.shape[1] // many  # as many as there are, so that few columns are left over
            whole = many * groups
            minima = proposed[:, :whole].reshape(len(proposed), many, groups).amin(1)
            if whole < proposed.shape[1]:
                minima = torch.cat([minima, proposed[:, whole:]], dim=1)
            bound = _kth_smallest(minima, self._k)
            if torch.isfinite(bound).all():
                return bound
        if self._k <= proposed.shape[1]:
            bound = _kth_smallest(proposed, self._k)
            if torch.isfinite(bound).all():
                return bound
        raise ValueError(
            f"k = {self._k} needs at least that many allowed neighbours for each of {proposed.shape[1]} points"
        )

    def _squared_distances(self, own: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return `[M] float64`, between queries (`rows` of `own`) and points (`columns`)."""
        queries = own[rows]
        norms = self._exact_squares[queries] + self._exact_squares[columns]
        squared = norms - 2.0 * self._products(own, rows, columns)
        near = torch.nonzero(squared < NEAR * norms).ravel()
        for some in torch.split(near, PAIRS_AT_ONCE):
            difference = self._exact[queries[some]] - self._exact[columns[some]]
            squared[some] = torch.einsum("ij,ij->i", difference, difference)
        return squared

    def _products(self, own: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return `[M] float64`: the inner products of the same; `rows` ascend."""
        if self.device.type != "cpu":
            queries, size = own[rows], 16 * PAIRS_AT_ONCE
            pairs = zip(torch.split(queries, size), torch.split(columns, size), strict=True)
            return torch.cat([torch.einsum("ij,ij->i", self._exact[a], self._exact[b]) for a, b in pairs])
        starts = torch.zeros(len(own) + 1, dtype=torch.int64)
        starts[1:] = torch.bincount(rows, minlength=len(own)).cumsum(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
            wanted = torch.sparse_csr_tensor(
                starts,
                columns,
                torch.zeros(len(columns), dtype=torch.float64),
                size=(len(own), len(self._exact)),
                check_invariants=False,
            )
        # the products at the wanted places alone, without a copy of either side
        found: torch.Tensor = torch.sparse.sampled_addmm(wanted, self._exact[own], self._exact.T, beta=0.0)
        return found.values()


def _forbidden_places(queries: np.ndarray, excluded: np.ndarray | None) -> np.ndarray:
    """Return all forbidden (place among the queries, neighbour row) pairs, the queries themselves with them, by place."""
    diagonal = np.stack([np.arange(len(queries)), queries], axis=1)
    if excluded is None or not len(excluded):
        return diagonal
    place = np.minimum(np.searchsorted(queries, excluded[:, 0]), len(queries) - 1)
    asked = queries[place] == excluded[:, 0]
    pairs = np.concatenate([diagonal, np.stack([place[asked], excluded[asked, 1]], axis=1)])
    return pairs[np.argsort(pairs[:, 0], kind="stable")]


def _kth_smallest(values: torch.Tensor, k: int) -> torch.Tensor:
    """Return `[n, 1]`, the k-th smallest of every row."""
    if values.device.type == "cpu":  # NumPy's selection takes a tenth of the time
        return torch.from_numpy(np.partition(values.numpy(), k - 1, axis=1)[:, k - 1 : k])
    return torch.topk(values, k, dim=1, largest=False, sorted=True).values[:, -1:]


def _at_most(values: torch.Tensor, bound: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows and columns of the values that are not above the bound of their row, row by row."""
    if values.device.type != "cpu":
        rows, columns = (values <= bound).nonzero(as_tuple=True)
        return rows, columns
    places = torch.from_numpy(np.flatnonzero(values.numpy() <= bound.numpy()))
    rows = torch.div(places, values.shape[1], rounding_mode="floor")
    return rows, places - rows * values.shape[1]


def _first_of_each_row(
    rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, count: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return columns and values `[count, k]` of the k smallest of every row, by value and then by column.

    `rows` ascend, and the columns of a row, too.
    """
    sizes = torch.bincount(rows, minlength=count)
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(len(rows), device=rows.device) - starts[rows]
    table = torch.full((count, int(sizes.max())), torch.inf, dtype=torch.float64, device=rows.device)
    table[rows, place] = values
    order, ascending = _argsort(table)
    found = columns[(starts[:, None] + order[:, :k]).ravel()].view(count, k)
    return found.cpu().numpy(), ascending[:, :k].cpu().numpy()


def _argsort(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the order of the values of every row, equal ones as they stand, and the values in it."""
    if table.device.type != "cpu":
        ascending, order = table.sort(dim=1, stable=True)
        return order, ascending
    values = table.numpy()
    places = np.argsort(values, axis=1)  # vectorised where it need not be stable, which ties alone can tell
    sorted_values = np.take_along_axis(values, places, axis=1)
    if ((sorted_values[:, 1:] == sorted_values[:, :-1]) & np.isfinite(sorted_values[:, 1:])).any():
        places = np.argsort(values, axis=1, kind="stable")
    return torch.from_numpy(places), torch.from_numpy(sorted_values)
