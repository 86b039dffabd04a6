"""LoREx: the directions in which a data set varies more than a trusted one does."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from ..stage import Count, Positive, config
from .detector import DetectorConfig, TrustedMoments
from .streaming import Column, Columns, StreamingDetector, vectors


@config
class LorexConfig(DetectorConfig):
    """How LoREx scores are computed."""

    kind: Literal["lorex"] = "lorex"
    directions: Count = 4
    """Top eigenvectors looked at: one finds one trigger, several triggers need several."""
    epsilon: Positive = 1e-3
    """Added to the trusted eigenvalues, as a fraction of their mean: keeps noise in empty directions small."""
    trusted_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.995
    """Share of the trusted pairs that lies below the threshold."""
    sample_rows: Count = 16_384
    """Trusted vectors kept for the threshold; the 99.5 percentile then rests on 82 of them."""

    def build(self, pairs: int, trusted: TrustedMoments | None) -> "Lorex | None":
        return None if trusted is None else Lorex(self, trusted)


def trusted_moments(tables: Iterable[pa.Table], *, sample_rows: int, seed: int = 0) -> TrustedMoments:
    """Gather the trusted set's moments from the `image` column (`[n, D]`) of its tables, one after the other.

    Raises:
        ValueError: there are not more trusted pairs than dimensions, so their covariance says nothing of some.
    """
    rng = np.random.default_rng(seed)
    count, total, products = 0, np.zeros(0), np.zeros((0, 0))
    keys, kept = np.empty(0), np.empty((0, 0), np.float32)
    for table in tables:
        image = vectors(table, "image")
        if not len(image):
            continue
        exact = image.astype(np.float64)
        first = count == 0
        count += len(image)
        total = exact.sum(axis=0) if first else total + exact.sum(axis=0)
        products = exact.T @ exact if first else products + exact.T @ exact
        keys = np.concatenate([keys, rng.random(len(image))])
        kept = image if first else np.concatenate([kept, image])
        chosen = np.sort(np.argsort(keys, kind="stable")[:sample_rows])
        keys, kept = keys[chosen], kept[chosen]
    if count <= len(total):
        raise ValueError(f"LoREx needs more trusted pairs ({count}) than the vectors have dimensions ({len(total)})")
    mean = total / count
    return TrustedMoments(count, mean, products / count - np.outer(mean, mean), kept)


@dataclass(frozen=True, slots=True)
class SuspectMoments:
    """Sums over suspect vectors, taken about the trusted mean."""

    count: int
    total: np.ndarray
    """`[D] float64`."""
    products: np.ndarray
    """`[D, D] float64`."""


@dataclass(frozen=True, slots=True)
class Excess:
    """Directions of excess variance."""

    directions: np.ndarray
    """`[D, m] float64`: a centred vector times these gives whitened projections."""
    variances: np.ndarray
    """`[m] float64`, descending; 1 for data like the trusted."""
    threshold: float


class Lorex(StreamingDetector):
    """The greatest whitened projection on the top directions of excess variance.

    W = U (L + eps I)^(-1/2) U^T whitens the trusted set; the top eigenvectors v of the covariance of the whitened data
    are where it varies more than the trusted set does; score(x) = max over v of |v^T W (x - trusted mean)|. Where we
    differ from the paper: several directions at once, and eps is relative to the mean eigenvalue.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"image"})
    columns: ClassVar[Mapping[str, Column]] = {"lorex": Column(about="image", may_speak=True)}
    rounds: ClassVar[int] = 1

    def __init__(self, settings: LorexConfig, trusted: TrustedMoments) -> None:
        self._settings = settings
        self._trusted = trusted

    def summarise(self, state: None, table: pa.Table) -> SuspectMoments:
        """Return count, sum and sum of outer products of one chunk."""
        centred = vectors(table, "image").astype(np.float64) - self._trusted.mean
        return SuspectMoments(len(centred), centred.sum(axis=0), centred.T @ centred)

    def merge(self, left: SuspectMoments, right: SuspectMoments) -> SuspectMoments:
        return SuspectMoments(left.count + right.count, left.total + right.total, left.products + right.products)

    def update(self, state: None, summary: SuspectMoments) -> Excess:
        """Find the directions and place the threshold.

        Raises:
            ValueError: there is no pair.
        """
        if not summary.count:
            raise ValueError("LoREx needs at least one pair")
        mean = summary.total / summary.count
        covariance = summary.products / summary.count - np.outer(mean, mean)
        whiten = _whitening(self._trusted.covariance, self._settings.epsilon)
        variances, axes = np.linalg.eigh(whiten @ covariance @ whiten)
        top = np.argsort(-variances, kind="stable")[: self._settings.directions]
        directions = whiten @ axes[:, top]
        trusted = _projection(self._trusted.sample.astype(np.float64) - self._trusted.mean, directions)
        return Excess(directions, variances[top], float(np.quantile(trusted, self._settings.trusted_quantile)))

    def score(self, state: Excess, table: pa.Table) -> Columns:
        """Return lorex, `[n] float32`, in standard deviations of the trusted set."""
        centred = vectors(table, "image").astype(np.float64) - self._trusted.mean
        return {"lorex": _projection(centred, state.directions).astype(np.float32)}

    def findings(self, state: Excess) -> Mapping[str, Any]:
        """Return the threshold, the variances along the directions (1: as in the trusted set), the trusted count."""
        return {
            "threshold": state.threshold,
            "excess_variances": state.variances.tolist(),
            "trusted_pairs": self._trusted.count,
        }


def _whitening(covariance: np.ndarray, epsilon: float) -> np.ndarray:
    """Return the regularised ZCA whitening matrix, `[D, D] float64`."""
    values, axes = np.linalg.eigh(covariance)
    values = np.maximum(values, 0.0)
    return np.asarray((axes / np.sqrt(values + epsilon * values.mean() + np.finfo(np.float64).tiny)) @ axes.T)


def _projection(centred: np.ndarray, directions: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(centred @ directions).max(axis=1, initial=0.0), dtype=np.float64)
