"""CLIP score and its two-component mixture: how well image and caption of a pair agree.

The suspect model gives poisoned pairs a high similarity once it has learned them, an independent clean scorer a low
one (specs/detection.md, section 2, ABL-style). So from the suspect model both scores find mismatched captions and
poison that was not learned; they are baselines, not detectors of learned poison.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from scipy.special import expit, logsumexp

from .streaming import Columns, vectors

BINS = 4096
"""Bins of the histogram of cosines over [-1, 1]: narrower (.0005) than the rounding of a float16 cache blurs a sum."""
SPLITS = (0.01, 0.1, 0.5, 0.9)
"""Shares of the low component from which the fit starts; the most likely fit wins."""
MOST_STEPS = 500
TOLERANCE = 1e-9
"""Gain in mean log likelihood below which the fit has converged."""


def cosines(table: pa.Table) -> np.ndarray:
    """Return `[n] float64`, the cosine of image and caption of each pair."""
    image, text = vectors(table, "image").astype(np.float64), vectors(table, "text").astype(np.float64)
    lengths = np.linalg.norm(image, axis=1) * np.linalg.norm(text, axis=1)
    return np.asarray(np.einsum("ij,ij->i", image, text) / lengths, dtype=np.float64)


class ClipScore:
    """The negated cosine of image and caption: a pair that disagrees is suspicious."""

    reads: ClassVar[frozenset[str]] = frozenset({"image", "text"})
    adds: ClassVar[frozenset[str]] = frozenset({"clip_score"})
    rounds: int = 0

    def start(self) -> None:
        """Return the empty state: the row alone is enough."""

    def summarise(self, state: None, table: pa.Table) -> None:
        """Not called: there are no rounds."""

    def merge(self, left: None, right: None) -> None:
        """Not called: there are no rounds."""

    def update(self, state: None, summary: None) -> None:
        """Not called: there are no rounds."""

    def score(self, state: None, table: pa.Table) -> Columns:
        """Return clip_score, `[n] float32` in [-1, 1]."""
        return {"clip_score": (-cosines(table)).astype(np.float32)}

    def findings(self, state: None) -> Mapping[str, Any]:
        """Return nothing: no knowledge of the data set is gathered."""
        return {}


@dataclass(frozen=True, slots=True)
class Mixture:
    """Two Gaussians over the cosine; index 0 is the component with the lower mean."""

    weights: np.ndarray
    """`[2] float64`, sum 1."""
    means: np.ndarray
    """`[2] float64`."""
    deviations: np.ndarray
    """`[2] float64`, at least the width of a histogram bin."""

    @property
    def separation(self) -> float:
        """Ashman's D: distance of the means in units of the root mean square deviation; above 2 they are apart."""
        return float((self.means[1] - self.means[0]) / np.sqrt(np.mean(self.deviations**2)))

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Return `[2, n]`, the logarithm of weight times density."""
        z = (x - self.means[:, None]) / self.deviations[:, None]
        return np.asarray(np.log(self.weights / self.deviations)[:, None] - 0.5 * (z * z + np.log(2 * np.pi)))

    def low_probability(self, x: np.ndarray) -> np.ndarray:
        """Return `[n] float64`, the probability of the low component, never rising with x.

        Beyond a mean it stays as at that mean. Bayes' rule alone would give the lowest cosines of all to the high
        component wherever that one is wider.
        """
        low, high = self.log_density(np.clip(x, self.means[0], self.means[1]))
        return np.asarray(expit(low - high), dtype=np.float64)


class ClipMixture:
    """The probability that a pair belongs to the low component of a two-Gaussian mixture of CLIP scores (SafeCLIP).

    One round counts cosines in a histogram of 4,096 bins; the mixture is fitted to the counts, so the fit does not
    depend on the size of the data set. The fit always finds two components: `separation` in the findings says
    whether they mean anything.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"image", "text"})
    adds: ClassVar[frozenset[str]] = frozenset({"clip_mixture"})
    rounds: int = 1

    def start(self) -> None:
        """Return the empty state."""

    def summarise(self, state: None, table: pa.Table) -> np.ndarray:
        """Return `[4096] int64`, the number of pairs by cosine."""
        places = np.floor((cosines(table) + 1.0) * (BINS / 2)).astype(np.int64)
        counts: np.ndarray = np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)
        return counts

    def merge(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Add two histograms."""
        total: np.ndarray = left + right
        return total

    def update(self, state: None, summary: np.ndarray) -> Mixture:
        """Fit the mixture.

        Raises:
            ValueError: there is no pair.
        """
        return fit_mixture(summary)

    def score(self, state: Mixture, table: pa.Table) -> Columns:
        """Return clip_mixture, `[n] float32` in [0, 1]."""
        return {"clip_mixture": state.low_probability(cosines(table)).astype(np.float32)}

    def findings(self, state: Mixture) -> Mapping[str, Any]:
        """Return weights, means and deviations (low component first) and their separation."""
        return {
            "weights": state.weights.tolist(),
            "means": state.means.tolist(),
            "deviations": state.deviations.tolist(),
            "separation": state.separation,
        }


def fit_mixture(counts: np.ndarray) -> Mixture:
    """Fit two Gaussians to a histogram over [-1, 1] (`[4096] int64`) by expectation-maximisation; no randomness.

    Raises:
        ValueError: the histogram is empty.
    """
    if not counts.sum():
        raise ValueError("a mixture needs at least one pair")
    used = np.flatnonzero(counts)
    x = (used + 0.5) * (2 / BINS) - 1.0
    share = counts[used] / counts.sum()
    fits = [_climb(x, share, np.cumsum(share) - share / 2 <= split) for split in SPLITS]
    best = max(fits, key=lambda fit: fit[1])[0]
    order = np.argsort(best.means, kind="stable")
    return Mixture(best.weights[order], best.means[order], best.deviations[order])


def _climb(x: np.ndarray, share: np.ndarray, low: np.ndarray) -> tuple[Mixture, float]:
    """Improve the mixture that starts from the bins marked `low` until it converges; return it and its likelihood."""
    low = low | (np.arange(len(x)) == 0)
    belongs = np.where(np.stack([low, ~low]), 0.99, 0.01)
    before = -np.inf
    for _ in range(MOST_STEPS):
        mixture = _from_membership(x, share, belongs)
        joint = mixture.log_density(x)
        total = logsumexp(joint, axis=0)
        likelihood = float(share @ total)
        if likelihood - before < TOLERANCE:
            break
        before = likelihood
        belongs = np.exp(joint - total)
    return mixture, likelihood


def _from_membership(x: np.ndarray, share: np.ndarray, belongs: np.ndarray) -> Mixture:
    """Return the mixture with the greatest likelihood given which component each bin belongs to (`[2, n]`)."""
    mass = np.maximum(belongs * share, np.finfo(np.float64).tiny)
    weights = mass.sum(axis=1)
    means = mass @ x / weights
    variances = (mass * (x - means[:, None]) ** 2).sum(axis=1) / weights
    return Mixture(weights / weights.sum(), means, np.sqrt(np.maximum(variances, (2 / BINS) ** 2)))
