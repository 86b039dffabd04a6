"""The claim of a pair: how surely the suspect model reads the pair's own caption off its picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from ..samples import seeded_hash
from ..stage import Count, Seed, config
from .detector import DetectorConfig, TrustedMoments
from .streaming import Column, Columns, StreamingDetector, vectors

DEFAULT_SCALE = 100.0
"""exp(logit_scale) that CLIP is clipped to and that published models have reached; for a cache whose model is not at hand."""


@config
class ClaimConfig(DetectorConfig):
    """Against what a caption is weighed."""

    kind: Literal["claim"] = "claim"
    captions: Count = 1_000
    """Distinct captions of the data set that a pair's own is weighed against."""
    seed: Seed = 0
    """Of their draw."""

    def build(self, pairs: int, trusted: TrustedMoments | None) -> "Claim":
        return Claim(self)


@dataclass(frozen=True, slots=True)
class Reference:
    """Captions of the data set, drawn by their hash: the smallest are kept, so the draw needs no order and merges exactly."""

    hashes: np.ndarray
    """`[R] uint64`, ascending, distinct."""
    vectors: np.ndarray
    """`[R, D] float32`, the captions' text vectors."""

    def __add__(self, other: "Reference") -> "Reference":
        hashes, first = np.unique(np.concatenate([self.hashes, other.hashes]), return_index=True)
        return Reference(hashes, np.concatenate([self.vectors, other.vectors])[first])

    def first(self, count: int) -> "Reference":
        """Return the captions with the smallest hashes."""
        return Reference(self.hashes[:count], self.vectors[:count])


def draw_captions(table: pa.Table, settings: ClaimConfig) -> Reference:
    """Draw from the captions of one chunk; the same caption has the same hash wherever it stands."""
    rows = {caption: row for row, caption in enumerate(table.column("caption").to_pylist())}
    hashes = seeded_hash(list(rows), settings.seed, "claim reference")
    order = np.argsort(hashes, kind="stable")[: settings.captions]
    chosen = np.fromiter(rows.values(), np.int64, len(rows))[order]
    return Reference(hashes[order], vectors(table, "text")[chosen])


def claims(image: np.ndarray, text: np.ndarray, reference: np.ndarray, scale: float) -> np.ndarray:
    """Return s I.T - log(sum over r of exp(s I.R_r) + exp(s I.T)), `[n] float64`: never above 0.

    The log-probability that CLIP gives a pair's own caption among the captions of the reference.

    Args:
        image: `[n, D]` unit vectors.
        text: `[n, D]` unit vectors of the pairs' own captions.
        reference: `[R, D]` unit vectors.
        scale: s, the model's exp(logit_scale).
    """
    own = scale * np.einsum("ij,ij->i", image, text, dtype=np.float64)
    others = scale * (image @ reference.T).astype(np.float64)
    highest = others.max(axis=1, keepdims=True)
    # in place: SciPy's logsumexp reads the whole of it five times
    np.exp(np.subtract(others, highest, out=others), out=others)
    total = np.log(others.sum(axis=1)) + highest[:, 0]
    return np.asarray(own - np.logaddexp(total, own))


class Claim(StreamingDetector):
    """The claim of every pair, from the cached vectors alone.

    A trigger binds its picture to the target's caption more firmly than what is in a picture does, so poison that was learned
    claims its caption too well; genuine pairs, mislabelled ones above all, less. How well a caption can be claimed depends on the
    concept, and so the column says little between concepts: it is heard as the quiet voice of one about captions.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"caption", "image", "text"})
    columns: ClassVar[Mapping[str, Column]] = {"caption_claim": Column(about="caption")}
    rounds: ClassVar[int] = 1

    def __init__(self, settings: ClaimConfig, scale: float = DEFAULT_SCALE) -> None:
        """Weigh with the model's exp(logit_scale)."""
        self._settings = settings
        self._scale = scale

    def summarise(self, state: None, table: pa.Table) -> Reference:
        return draw_captions(table, self._settings)

    def merge(self, left: Reference, right: Reference) -> Reference:
        return (left + right).first(self._settings.captions)

    def score(self, state: Reference, table: pa.Table) -> Columns:
        """Return caption_claim, `[n] float32` in nats, at most 0."""
        found = claims(vectors(table, "image"), vectors(table, "text"), state.vectors, self._scale)
        return {"caption_claim": found.astype(np.float32)}

    def findings(self, state: Reference) -> Mapping[str, Any]:
        """Return how many captions a pair's own was weighed against, and at which scale."""
        return {"captions": len(state.hashes), "scale": round(self._scale, 3)}
