"""CLIP score and its two-component mixture: how well image and caption of a pair agree.

The suspect model gives poisoned pairs a high similarity once it has learned them, an independent clean scorer a low
one. So from the suspect model both scores find mismatched captions and
poison that was not learned; they are baselines, not detectors of learned poison.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field
from scipy.special import expit

from ..stage import config
from .detector import DetectorConfig, RowDetector, TrustedMoments
from .streaming import Column, Columns, StreamingDetector, vectors


def cosines(table: pa.Table) -> np.ndarray:
    """Return `[n] float64`, the cosine of image and caption of each pair."""
    image, text = vectors(table, "image").astype(np.float64), vectors(table, "text").astype(np.float64)
    lengths = np.linalg.norm(image, axis=1) * np.linalg.norm(text, axis=1)
    return np.asarray(np.einsum("ij,ij->i", image, text) / lengths, dtype=np.float64)


@config
class ClipScore(RowDetector):
    """The negated cosine of image and caption: a pair that disagrees is suspicious."""

    kind: Literal["clip_score"] = "clip_score"
    reads: ClassVar[frozenset[str]] = frozenset({"image", "text"})
    columns: ClassVar[Mapping[str, Column]] = {"clip_score": Column(about="caption")}

    def score(self, table: pa.Table) -> Columns:
        """Return clip_score, `[n] float32` in [-1, 1]."""
        return {"clip_score": (-cosines(table)).astype(np.float32)}


@config
class ClipMixtureConfig(DetectorConfig):
    """How the mixture of CLIP scores is fitted."""

    kind: Literal["clip_mixture"] = "clip_mixture"
    bins: Annotated[int, Field(ge=2)] = 4096
    """Bins of the histogram of cosines over [-1, 1]: narrower (.0005) than the rounding of a float16 cache blurs a sum."""
    splits: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.01, 0.1, 0.5, 0.9)
    """Shares of the low component from which the fit starts; the most likely fit wins."""
    most_steps: Annotated[int, Field(ge=1)] = 500
    """Steps of expectation-maximisation, at most."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-9
    """Gain in mean log likelihood below which the fit has converged."""
    separate_from: Annotated[float, Field(gt=0)] = 2.0
    """Distance of the two components, in deviations, from which the lower one is a group of its own (Ashman's D)."""

    def build(self, pairs: int, trusted: TrustedMoments | None) -> "ClipMixture":
        return ClipMixture(self)


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


class ClipMixture(StreamingDetector):
    """The probability that a pair belongs to the low component of a two-Gaussian mixture of CLIP scores (SafeCLIP).

    One round counts cosines in a histogram; the mixture is fitted to the counts, so the fit does not
    depend on the size of the data set. The fit always finds two components: `separation` in the findings says
    whether they mean anything.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"image", "text"})
    columns: ClassVar[Mapping[str, Column]] = {"clip_mixture": Column(about="caption")}
    rounds: ClassVar[int] = 1

    def __init__(self, settings: ClipMixtureConfig | None = None) -> None:
        self._settings = settings or ClipMixtureConfig()

    def summarise(self, state: None, table: pa.Table) -> np.ndarray:
        """Return `[bins] int64`, the number of pairs by cosine."""
        bins = self._settings.bins
        places = np.floor((cosines(table) + 1.0) * (bins / 2)).astype(np.int64)
        counts: np.ndarray = np.bincount(np.clip(places, 0, bins - 1), minlength=bins)
        return counts

    def merge(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        total: np.ndarray = left + right
        return total

    def update(self, state: None, summary: np.ndarray) -> Mixture:
        """Fit the mixture.

        Raises:
            ValueError: there is no pair.
        """
        return fit_mixture(summary, self._settings)

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


def fit_mixture(counts: np.ndarray, settings: ClipMixtureConfig) -> Mixture:
    """Fit two Gaussians to a histogram over [-1, 1] (`[bins] int64`) by expectation-maximisation; no randomness.

    Raises:
        ValueError: the histogram is empty.
    """
    if not counts.sum():
        raise ValueError("a mixture needs at least one pair")
    used = np.flatnonzero(counts)
    x = (used + 0.5) * (2 / settings.bins) - 1.0
    share = counts[used] / counts.sum()
    fits = [_climb(x, share, np.cumsum(share) - share / 2 <= split, settings) for split in settings.splits]
    best = max(fits, key=lambda fit: fit[1])[0]
    order = np.argsort(best.means, kind="stable")
    return Mixture(best.weights[order], best.means[order], best.deviations[order])


def _climb(x: np.ndarray, share: np.ndarray, low: np.ndarray, settings: ClipMixtureConfig) -> tuple[Mixture, float]:
    """Improve the mixture that starts from the bins marked `low` until it converges; return it and its likelihood."""
    low = low | (np.arange(len(x)) == 0)
    belongs = np.where(np.stack([low, ~low]), 0.99, 0.01)
    before = -np.inf
    for _ in range(settings.most_steps):
        mixture = _from_membership(x, share, belongs, settings.bins)
        joint = mixture.log_density(x)
        total = np.logaddexp(joint[0], joint[1])
        likelihood = float(share @ total)
        if likelihood - before < settings.tolerance:
            break
        before = likelihood
        belongs = np.exp(joint - total)
    return mixture, likelihood


def _from_membership(x: np.ndarray, share: np.ndarray, belongs: np.ndarray, bins: int) -> Mixture:
    """Return the mixture with the greatest likelihood given which component each bin belongs to (`[2, n]`)."""
    mass = np.maximum(belongs * share, np.finfo(np.float64).tiny)
    weights = mass.sum(axis=1)
    means = mass @ x / weights
    variances = (mass * (x - means[:, None]) ** 2).sum(axis=1) / weights
    return Mixture(weights / weights.sum(), means, np.sqrt(np.maximum(variances, (2 / bins) ** 2)))
