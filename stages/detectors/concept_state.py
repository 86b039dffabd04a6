"""What concept-whitened spectral scores have learned so far, and how a pair's evidence is read off it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..captions import Vocabulary
from .concept_gap import ALL_LAYERS, Gaps
from .concept_moments import BINS, bin_index

NO_CONCEPT = "(no concept)"
"""The group of pairs whose caption holds none of the concepts."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What is known of one layer; C counts the concepts and the group without concept."""

    name: str
    effect: np.ndarray
    """`[C+1, D] float64`: the regression on the concepts, last row the intercept."""
    white: np.ndarray
    """`[D, D] float64`."""
    excess: np.ndarray
    """`[C] float64`: largest variance over the Marchenko-Pastur edge."""
    directions: np.ndarray
    """`[C, q, D] float64`, of the whitened residuals, times `white`: residuals are projected without being whitened, which would take
    most of the time of the later passes. q is 1 once the most skewed direction is chosen."""
    offsets: np.ndarray
    """`[C, q] float64`."""
    centre: np.ndarray
    """`[C] float64`: median of the projections."""
    scale: np.ndarray
    """`[C] float64`, signed: 1.4826 MAD; infinite where a concept is too small to judge."""
    inflation: np.ndarray
    """`[C] float64`: variance over that of the bulk."""
    skew: np.ndarray
    """`[C] float64`: third moment of the robust scores."""


@dataclass(frozen=True, slots=True)
class SpectralState:
    """Knowledge after `round` passes over the cache."""

    round: int = 0
    vocabulary: Vocabulary | None = None
    layers: tuple[Layer, ...] = ()
    count: np.ndarray | None = None
    """`[C] int64`: pairs of each concept."""
    gaps: Gaps | None = None
    """Of the pairs' mean distance over layers; peeled after the last round."""
    flagged: np.ndarray | None = None
    """`[C] int64`: pairs beyond the gap that no other concept accounts for better."""
    named: np.ndarray | None = None
    """`[C] bool`."""


LEAST_SIDE = 3
"""Pairs that a variance is of."""


@dataclass(slots=True)
class SideSums:
    """Sums over the pairs beyond the gap of each named concept, and over its others, in whitened coordinates; k concepts."""

    count: np.ndarray
    """`[k, 2] float64`."""
    first: list[np.ndarray]
    """A layer each: `[k, 2, D] float64`."""
    square: np.ndarray
    """`[L, k, 2] float64`: squared lengths."""

    def __add__(self, other: "SideSums") -> "SideSums":
        first = [a + b for a, b in zip(self.first, other.first, strict=True)]
        return SideSums(self.count + other.count, first, self.square + other.square)

    def spread(self) -> np.ndarray:
        """Return the variance of the pairs beyond over that of the others, mean over layers, `[k] float64`; 0 for too few pairs."""
        pairs = np.maximum(self.count, 1)
        layers = zip(self.first, self.square, strict=True)
        variances = np.stack(
            [square / pairs - ((first / pairs[..., None]) ** 2).sum(axis=2) for first, square in layers]
        )
        ratios = variances[..., 0] / np.maximum(variances[..., 1], np.finfo(np.float64).tiny)
        return np.where((self.count >= LEAST_SIDE).all(axis=1), ratios.mean(axis=0), 0.0)


def side_sums(state: SpectralState, sides: list[tuple[np.ndarray, np.ndarray]], features: list[np.ndarray]) -> SideSums:
    """Sum up one chunk, of the features as they are: what captions explain differs where pictures do not.

    The last layer is left out where there are several: a backdoor gathers its pictures there, whatever they show.

    Args:
        state: of the whitening.
        sides: of each named concept, the rows beyond the gap and the others.
        features: a layer each, `[n, D]`.
    """
    read = list(zip(features, state.layers, strict=True))
    whitened = [
        [[z[rows].astype(np.float64) @ x.white for rows in both] for both in sides] for z, x in read[:-1] or read
    ]
    return SideSums(
        count=np.array([[len(rows) for rows in both] for both in sides], dtype=np.float64).reshape(-1, 2),
        first=[
            np.array([[z.sum(axis=0) for z in both] for both in layer]).reshape(-1, 2, x.white.shape[0])
            for layer, (_, x) in zip(whitened, read, strict=False)
        ],
        square=np.array([[[(z**2).sum() for z in both] for both in layer] for layer in whitened]).reshape(
            len(whitened), -1, 2
        ),
    )


def evidence(
    state: SpectralState, rows: list[np.ndarray], residual: list[np.ndarray], n: int, view: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return `[n, C]` s (mean of r x inflation; -inf where no member) and `[n, C]` mean of r, over the layers of `view`."""
    scores = np.full((n, len(rows)), -np.inf)
    distance = np.full((n, len(rows)), -np.inf)
    for c, members in enumerate(rows):
        layers = range(len(residual)) if view[c] == ALL_LAYERS else [int(view[c])]
        r = {i: robust(state, residual, members, c, i) for i in layers}
        scores[members, c] = np.mean([part * state.layers[i].inflation[c] for i, part in r.items()], axis=0)
        distance[members, c] = np.mean(list(r.values()), axis=0)
    return scores, distance


def distances(state: SpectralState, rows: list[np.ndarray], residual: list[np.ndarray], n: int) -> np.ndarray:
    """Return `[1 + L, n, C]` the distances that `evidence` gives, of the mean over layers and then of each layer."""
    found = np.full((1 + len(residual), n, len(rows)), -np.inf)
    for c, members in enumerate(rows):
        r = [robust(state, residual, members, c, i) for i in range(len(residual))]
        found[0, members, c] = np.mean(r, axis=0)
        found[1:, members, c] = r
    return found


def robust(state: SpectralState, residual: list[np.ndarray], members: np.ndarray, c: int, layer: int) -> np.ndarray:
    """Return r of a concept's rows in one layer, `[m] float64`."""
    x = state.layers[layer]
    return np.asarray((residual[layer][members] @ x.directions[c, 0] - x.offsets[c, 0] - x.centre[c]) / x.scale[c])


def histograms(state: SpectralState, rows: list[np.ndarray], residual: list[np.ndarray]) -> np.ndarray:
    """Return `[L, C, q, BINS] int32` counts of the projections of each concept's rows."""
    q = state.layers[0].directions.shape[1]
    counts = np.zeros((len(residual), len(rows), q, BINS), dtype=np.int32)
    for i, (layer, w) in enumerate(zip(state.layers, residual, strict=True)):
        for c, members in enumerate(rows):
            index = bin_index(w[members] @ layer.directions[c].T - layer.offsets[c])
            for j in range(q):
                counts[i, c, j] = np.bincount(index[:, j], minlength=BINS)
    return counts


def member_rows(members: sp.csr_matrix) -> list[np.ndarray]:
    """Return for each concept the ascending row numbers of its pairs."""
    by_concept = members.tocsc()
    by_concept.sort_indices()
    return np.split(by_concept.indices, by_concept.indptr[1:-1])


def concept_names(state: SpectralState) -> list[str]:
    """Return the names of all groups, the one without concept last."""
    return [*nonnull(state.vocabulary).names, NO_CONCEPT]


def nonnull(value: Any) -> Any:
    """Return a part of the state that an earlier pass has filled.

    Raises:
        RuntimeError: the passes were not run in order.
    """
    if value is None:
        raise RuntimeError("the detector's state is asked for something that a later pass learns")
    return value
