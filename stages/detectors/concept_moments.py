"""The sums behind concept-whitened spectral scores: regression on concepts, whitening, directions, histograms."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.linalg import eigh

BINS = 1024
BIN_STEP = 0.02
"""Width of a bin in asinh(BIN_SHARPNESS * p): 2 % of p in the tails, 0.001 near zero."""
BIN_SHARPNESS = 20.0


@dataclass(slots=True)
class RegressionSums:
    """Sums over pairs of one chunk or of all. A is the membership with a last column of ones, Z the features."""

    gram: np.ndarray
    """`[C+1, C+1] float64`: A'A, the number of pairs two concepts share."""
    cross: list[np.ndarray]
    """A layer each: `[C+1, D] float64`, A'Z."""
    second: list[np.ndarray]
    """A layer each: `[D, D] float64`, Z'Z."""


def regression_sums(members: sp.csr_matrix, layers: list[np.ndarray]) -> RegressionSums:
    """Sum up one chunk: members `[n, C]`, each layer `[n, D]`."""
    design = with_intercept(members)
    wide = [z.astype(np.float64) for z in layers]
    return RegressionSums(
        gram=np.asarray((design.T @ design).todense(), dtype=np.float64),
        cross=[np.asarray(design.T @ z) for z in wide],
        second=[z.T @ z for z in wide],
    )


def with_intercept(members: sp.csr_matrix) -> sp.csr_matrix:
    """Return the membership as float64 with a last column of ones."""
    return sp.hstack([members.astype(np.float64), sp.csr_matrix(np.ones((members.shape[0], 1)))]).tocsr()


def solve_regression(sums: RegressionSums, ridge_pairs: float) -> list[np.ndarray]:
    """Return for each layer the effect of every concept on the features, `[C+1, D] float64`.

    With one concept a pair and no ridge this is the group mean; with several it explains a caption by the sum of its
    words, so that "black dog" is neither an odd dog nor an odd black thing.
    """
    gram = sums.gram.copy()
    gram[np.diag_indices(len(gram) - 1)] += ridge_pairs
    return [np.asarray(np.linalg.solve(gram, cross)) for cross in sums.cross]


def residual_covariance(sums: RegressionSums, layer: int, effect: np.ndarray) -> np.ndarray:
    """Return the pooled covariance `[D, D]` of what the concepts leave unexplained, from the sums alone.

    Z'Z - B'A'Z - Z'AB + B'A'AB over N, which is (Z - AB)'(Z - AB) / N.
    """
    half = effect.T @ sums.cross[layer]
    square = effect.T @ sums.gram @ effect
    covariance = (sums.second[layer] - half - half.T + square) / sums.gram[-1, -1]
    return np.asarray((covariance + covariance.T) / 2)


DUST = 1e-12
"""Share of the mean square below which a variance is the rounding of sums in float64: float16 tells apart what differs by 2e-7 of it."""


def varies(covariance: np.ndarray, mean_square: np.ndarray) -> bool:
    """Tell whether features vary, from their covariance and the mean of their outer products, both `[D, D]`; not finite ones do."""
    return not float(np.trace(covariance)) <= DUST * float(np.trace(mean_square))


def whitening(covariance: np.ndarray, shrinkage: float) -> np.ndarray:
    """Return `[D, D]`: (C + shrinkage tr(C)/D I)^(-1/2).

    Raises:
        ValueError: the features do not vary, or are not finite.
    """
    width = len(covariance)
    trace = float(np.trace(covariance))
    if not np.isfinite(covariance).all() or trace <= 0:
        raise ValueError("features do not vary or are not finite")
    values, basis = np.linalg.eigh(covariance + shrinkage * trace / width * np.eye(width))
    return np.asarray((basis / np.sqrt(np.maximum(values, shrinkage * trace / width * 1e-3))) @ basis.T)


def whiten(members: sp.csr_matrix, features: np.ndarray, effect: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Return `[n, D] float64`: features less what the concepts explain, in whitened coordinates."""
    return np.asarray(residuals(members, features, effect) @ white)


def residuals(members: sp.csr_matrix, features: np.ndarray, effect: np.ndarray) -> np.ndarray:
    """Return `[n, D] float64`: features less what the concepts explain, the intercept, the last row of `effect`, among it."""
    return np.asarray(features.astype(np.float64) - (members @ effect[:-1] + effect[-1]))


@dataclass(slots=True)
class ConceptMoments:
    """First and second moments of the whitened residuals in every concept of one layer."""

    count: np.ndarray
    """`[C] float64`."""
    first: np.ndarray
    """`[C, D] float64`."""
    second: np.ndarray
    """`[C, D (D + 1) / 2] float64`: upper triangle."""


def concept_moments(rows: list[np.ndarray], whitened: np.ndarray) -> ConceptMoments:
    """Sum up one chunk; rows[c] are the row numbers of concept c."""
    width = whitened.shape[1]
    upper = np.triu_indices(width)
    second = np.zeros((len(rows), len(upper[0])))
    first = np.zeros((len(rows), width))
    for c, members in enumerate(rows):
        part = whitened[members]
        first[c] = part.sum(axis=0)
        second[c] = (part.T @ part)[upper]
    return ConceptMoments(np.array([len(members) for members in rows], dtype=np.float64), first, second)


def top_directions(moments: ConceptMoments, how_many: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the directions of largest variance in each concept; the sign of each is LAPACK's, and nothing may depend on it.

    Returns:
        directions `[C, q, D]`, unit norm, largest variance first; their offsets `[C, q]` (the concept's mean along
        them); and the variance of the first over the Marchenko-Pastur edge (1 + sqrt(D/n))^2, `[C]`, about 1 or
        less when the concept has no structure of its own. Zeros for an empty concept.
    """
    concepts, width = moments.first.shape
    how_many = min(how_many, width)
    directions = np.zeros((concepts, how_many, width))
    offsets = np.zeros((concepts, how_many))
    excess = np.zeros(concepts)
    upper = np.triu_indices(width)
    for c in np.flatnonzero(moments.count > 1):
        n = moments.count[c]
        mean = moments.first[c] / n
        covariance = np.zeros((width, width))
        covariance[upper] = moments.second[c] / n
        covariance = covariance + np.triu(covariance, 1).T - np.outer(mean, mean)
        values, basis = eigh(
            covariance, subset_by_index=(width - how_many, width - 1), overwrite_a=True, check_finite=False
        )
        directions[c] = basis[:, ::-1].T
        offsets[c] = directions[c] @ mean
        excess[c] = values[-1] / (1 + np.sqrt(width / n)) ** 2
    return directions, offsets, excess


def bin_index(projections: np.ndarray) -> np.ndarray:
    """Return the histogram bin of each projection: symmetric about 0, fine near it, relative in the tails."""
    scaled = np.arcsinh(BIN_SHARPNESS * projections) / BIN_STEP
    return np.asarray(np.clip(np.floor(scaled) + BINS // 2, 0, BINS - 1).astype(np.int64))


BIN_CENTRES = np.sinh((np.arange(BINS) - BINS // 2 + 0.5) * BIN_STEP) / BIN_SHARPNESS
"""`[BINS] float64`: projection that stands for a bin."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """What histograms of projections say about their directions, `[m] float64` each."""

    centre: np.ndarray
    """Median."""
    scale: np.ndarray
    """1.4826 MAD, with the sign that puts the heavy tail on the positive side."""
    inflation: np.ndarray
    """Mean of r^2: the variance over that of the bulk."""
    skew: np.ndarray
    """Mean of r^3."""


def first_reached(counts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return of every row of counts `[m, b]` the first place up to which there are as many as wanted `[m]`."""
    return np.asarray((np.cumsum(counts, axis=1) < wanted[:, None]).sum(axis=1))


def shapes(histograms: np.ndarray, least: int) -> Shapes:
    """Return the robust shapes of histograms `[m, BINS]`, none of them empty; r = (p - centre) / scale.

    The median is the mean of the two middle values where there are two, so that a histogram turned round has the same shape. The
    moments take every value beyond the `least`-th largest as that one, so fewer than `least` pairs cannot make a concept stand out.
    Of the two signs the one with the larger third moment wins.
    """
    rows, n = np.arange(len(histograms)), histograms.sum(axis=1)
    middle = (first_reached(histograms, n / 2), BINS - 1 - first_reached(histograms[:, ::-1], n / 2))
    centre = BIN_CENTRES[np.stack(middle)].mean(axis=0)
    mad = np.zeros(len(histograms))
    for value in np.unique(centre):
        own = np.flatnonzero(centre == value)
        distance = np.abs(BIN_CENTRES - value)
        order = np.argsort(distance, kind="stable")
        mad[own] = distance[order][first_reached(histograms[own][:, order], n[own] / 2)]
    scale = np.maximum(1.4826 * mad, BIN_STEP / BIN_SHARPNESS)
    r = (BIN_CENTRES - centre[:, None]) / scale[:, None]
    below = n - np.minimum(least, n) + 1
    highest = r[rows, first_reached(histograms, below)]
    lowest = r[rows, BINS - 1 - first_reached(histograms[:, ::-1], below)]
    moments = []
    for capped in (np.minimum(r, highest[:, None]), -np.maximum(r, lowest[:, None])):
        square = capped * capped
        moments.append(((square * capped * histograms).sum(axis=1) / n, (square * histograms).sum(axis=1) / n))
    (skew, inflation), (other_skew, other_inflation) = moments
    turned = other_skew > skew
    return Shapes(
        centre=centre,
        scale=np.where(turned, -scale, scale),
        inflation=np.where(turned, other_inflation, inflation),
        skew=np.where(turned, other_skew, skew),
    )
