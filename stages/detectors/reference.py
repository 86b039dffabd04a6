"""Disagreement with a second encoder: pairs whose picture, in other eyes, is of another concept than their caption."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from ..captions import Concepts, Mined, Named, Vocabulary, count_terms, merge_counts, mine_vocabulary, name_vocabulary
from ..stage import Positive, config
from .concept_moments import varies, whitening
from .concept_sides import GroupSums, group_sums
from .concept_state import nonnull
from .detector import DetectorConfig, TrustedMoments
from .streaming import Column, Columns, StreamingDetector, vectors

VECTORS = "reference"
"""Column of the cache."""


@config
class ReferenceReaderConfig(DetectorConfig):
    """Settings of the disagreement with a second encoder; plays no part without `embed.reference`."""

    kind: Literal["reference_disagreement"] = "reference_disagreement"
    concepts: Concepts = Mined(min_pairs=16, max_concepts=1024)
    """Concepts that are told apart: mined from the captions, or named."""
    shrinkage: Positive = 1e-3
    """Share of the mean variance that is added to the covariance before it is inverted."""

    def build(self, pairs: int, trusted: TrustedMoments | None) -> "ReferenceReader":
        return ReferenceReader(self)


@dataclass(frozen=True, slots=True)
class ReaderState:
    """Knowledge after `round` passes over the cache."""

    round: int = 0
    vocabulary: Vocabulary | None = None
    white: np.ndarray | None = None
    """`[P, P] float64`."""
    means: np.ndarray | None = None
    """`[C, P] float64`: whitened means of the pairs whose rarest concept it is."""
    sizes: np.ndarray | None = None
    """`[C] float64`: how many they are."""


class ReferenceReader(StreamingDetector):
    """Fisher's discriminant over the concepts of the captions, in the features of an encoder that no trigger was taught to.

    Score of a pair: l / (1 + |l|), in (-1, 1), with l half of d(own)^2 - d(other)^2: d(own) is the distance of its picture from the
    nearest mean of its caption's concepts, the pair itself being left out of its rarest concept's mean, and d(other) from the
    nearest mean of any other, both whitened by the covariance within concepts. Above 0 the picture is read as something that the
    caption does not say. -1 where a caption names no concept.

    A dirty label shows whatever the trigger and whatever its share, for poison comes from all concepts and stands about none of them;
    clean-label attacks do not show, and honest mislabelling does: so it accuses nobody by itself.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"caption", VECTORS})
    columns: ClassVar[Mapping[str, Column]] = {"reference_disagreement": Column(about="image")}
    rounds: ClassVar[int] = 2

    def __init__(self, settings: ReferenceReaderConfig) -> None:
        self._settings = settings

    def start(self) -> ReaderState:
        return ReaderState()

    def summarise(self, state: ReaderState, table: pa.Table) -> Any:
        captions = table.column("caption").to_pylist()
        if state.round == 0:
            return len(captions), count_terms(captions) if isinstance(self._settings.concepts, Mined) else Counter()
        return group_sums(nonnull(state.vocabulary).members(captions), [vectors(table, VECTORS)])

    def merge(self, left: Any, right: Any) -> Any:
        if isinstance(left, tuple):
            return left[0] + right[0], merge_counts(left[1], right[1])
        return left + right

    def update(self, state: ReaderState, summary: Any) -> ReaderState:
        learnt = self._learn_words(summary) if state.round == 0 else self._learn_means(state, summary)
        return replace(learnt, round=state.round + 1)

    def _learn_words(self, summary: tuple[int, Counter[str]]) -> ReaderState:
        concepts = self._settings.concepts
        if isinstance(concepts, Named):
            return ReaderState(vocabulary=name_vocabulary(concepts.names))
        return ReaderState(vocabulary=mine_vocabulary(summary[1], summary[0], concepts))

    def _learn_means(self, state: ReaderState, sums: GroupSums) -> ReaderState:
        explained, pairs = (sums.sums / sums.sizes[:, None]).T @ sums.sums, sums.sizes.sum()
        within = (sums.second[0] - explained) / max(pairs - len(sums.groups), 1.0)
        if not np.isfinite(within).all() or not varies((sums.second[0] - explained) / pairs, sums.second[0] / pairs):
            within = np.eye(len(within))  # pictures that are all the same are read as nothing in particular
        white = whitening(within, self._settings.shrinkage)
        concepts = len(nonnull(state.vocabulary).names)
        own = sums.groups < concepts
        means, sizes = np.zeros((concepts, len(white))), np.zeros(concepts)
        means[sums.groups[own]] = sums.sums[own] / sums.sizes[own][:, None] @ white
        sizes[sums.groups[own]] = sums.sizes[own]
        return replace(state, white=white, means=means, sizes=sizes)

    def score(self, state: ReaderState, table: pa.Table) -> Columns:
        """Return reference_disagreement, `[n] float32` in (-1, 1)."""
        members = nonnull(state.vocabulary).members(table.column("caption").to_pylist())
        distance = self._distances(state, members, vectors(table, VECTORS).astype(np.float64) @ nonnull(state.white))
        said = members.toarray() > 0
        own = np.where(said, distance, np.inf).min(axis=1, initial=np.inf)
        other = np.where(said, np.inf, distance).min(axis=1, initial=np.inf)
        known = np.isfinite(own) & np.isfinite(other)
        odds = (own[known] - other[known]) / 2
        scores = np.full(table.num_rows, -1.0)
        scores[known] = odds / (1 + np.abs(odds))
        return {"reference_disagreement": scores.astype(np.float32)}

    def _distances(self, state: ReaderState, members: sp.csr_matrix, whitened: np.ndarray) -> np.ndarray:
        """Return squared distances from all means, `[n, C]`; infinite where a mean is of no other pair."""
        means, sizes = nonnull(state.means), nonnull(state.sizes)
        squares = (whitened**2).sum(axis=1)[:, None] - 2 * whitened @ means.T + (means**2).sum(axis=1)
        distance = np.where(sizes > 0, np.maximum(squares, 0.0), np.inf)
        members.sort_indices()
        some = np.flatnonzero(np.diff(members.indptr))
        rarest = members.indices[members.indptr[some + 1] - 1]
        # without the pair itself a mean m of n lies n / (n - 1) times as far from it
        with np.errstate(divide="ignore", invalid="ignore"):
            farther = np.where(sizes[rarest] > 1, (sizes[rarest] / (sizes[rarest] - 1)) ** 2, np.inf)
            distance[some, rarest] = np.where(sizes[rarest] > 1, distance[some, rarest] * farther, np.inf)
        return distance

    def findings(self, state: ReaderState) -> Mapping[str, Any]:
        """Return how many concepts were told apart."""
        return {"concepts": int((nonnull(state.sizes) > 1).sum())}
