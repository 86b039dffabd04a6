"""Concept-whitened spectral scores: finds the pairs that make one concept's features bimodal, and names the concept."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from pydantic import Field

from ..captions import Concepts, Mined, Named, count_terms, merge_counts, mine_vocabulary, name_vocabulary
from ..stage import Count, Positive, Weight, config
from .concept_gap import Farthest, GapConfig, clearest_views, distance_histograms, find_gaps
from .concept_moments import (
    BINS,
    ConceptMoments,
    RegressionSums,
    bin_index,
    concept_moments,
    regression_sums,
    residual_covariance,
    residuals,
    shapes,
    solve_regression,
    top_directions,
    varies,
    whiten,
    whitening,
)
from .concept_state import (
    Layer,
    SideSums,
    SpectralState,
    concept_names,
    distances,
    evidence,
    histograms,
    member_rows,
    nonnull,
    side_sums,
)
from .detector import DetectorConfig, TrustedMoments
from .streaming import Column, Columns, StreamingDetector, image_files, layer_columns, vectors

MOST_CONCEPTS = 1_024
"""Concepts that moments of every layer can be kept of."""


@config
class ConceptSpectralConfig(DetectorConfig):
    """Settings of the concept-whitened spectral detector."""

    kind: Literal["concept_spectral"] = "concept_spectral"
    concepts: Concepts = Mined()
    """Where the groups come from: mined from the captions, or named."""
    directions: Annotated[int, Field(ge=1, le=16)] = 3
    """Directions of largest variance looked at in each concept and layer; the most skewed one is kept."""
    name_above: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """A concept is named when its gap (`concept_gap.Gaps.share`) is above this; then the pairs beyond the gap are accused."""
    least_pairs: Count = 5
    """The moments that choose and sign a direction take no heed of how far out fewer pairs than this lie."""
    least_excess: Weight = 2.0
    """Largest variance of a concept over the noise edge (Marchenko-Pastur), geometric mean over layers, below which it is not
    named: a word that says nothing of the picture ("a lone ...") gathers a few odd backgrounds, far out but barely above noise
    (1.4 in the demo's clean twin; targets of backdoors had 3.2 to 7.4)."""
    gap: GapConfig = field(default_factory=GapConfig)
    """What counts as a gap between poison and its concept."""
    least_spread: Weight = 0.5
    """Variance of the pictures beyond the gap over that of the others, below which their concept is not named, as in concept_sides:
    poison comes from everywhere; ten product shots that hardly differ stand beyond a gap, too."""
    ridge_pairs: Weight = 1.0
    """Ridge of the regression, in pairs: a concept's mean is shrunk as if it had one more pair without effect."""
    shrinkage: Positive = 1e-3
    """Share of the mean variance that is added to the covariance before it is inverted."""
    half_score: Positive = 100.0
    """Score s that the column shows as 0.5; the largest clean ones lie about there (measured)."""

    def __post_init__(self) -> None:
        if isinstance(self.concepts, Mined) and self.concepts.max_concepts > MOST_CONCEPTS:
            raise ValueError(f"concepts.max_concepts is at most {MOST_CONCEPTS} here; concept_sides looks at more")

    def build(self, pairs: int, trusted: TrustedMoments | None) -> "ConceptSpectral":
        return ConceptSpectral(self)


class ConceptSpectral(StreamingDetector):
    """Spectral scores of the features of each concept. Six passes; sums in float64.

    1. Concepts are mined from the captions; a pair may belong to several.
    2. Features of each layer are regressed on the concepts (the group mean, when there is one a pair), and what is
       left is whitened by its pooled covariance.
    3. In each concept: the few directions of largest variance of the whitened residuals.
    4. Histograms along them give median, MAD, the direction's sign, and the two moments of the robust scores r that
       matter: the inflation mean(r^2) and the third moment mean(r^3), of which the most skewed direction is kept.
    5. The distance of a pair is the mean of r over layers, or r in the one layer that shows a gap. A concept is named
       when its distances have a gap (concept_gap.py). A threshold on mean(r^3) would not do: diverse concepts
       (jellyfish, sport cars) have a third moment as large as 30 poisoned pairs give, and no clean concept has such a
       gap (measured by tests/benchmarks/naming.py).
    6. The same once more, where every pair that a named concept accuses is left out of its other concepts: else a
       colour or a template word that shares some poisoned captions would be named beside the target. And where pictures have several
       captions each counts once: two odd ones with five captions are no group of ten. Nor is a concept named
       whose accused pictures are all alike.

    Score of a pair in a concept: s = mean over layers of r x inflation. The eigenvalue over the
    Marchenko-Pastur edge would be another factor; measured, the inflation ranks better, because a concept that is merely
    diverse has a wide bulk as well. The column is the largest over the pair's concepts of s / (s + 100), which stays
    below 1, and of 2 - 100 / (s + 100) when the concept is named and the pair lies out: 1 is the threshold.

    Not done, after measurement: re-estimating the covariance without the pairs that score highest (SPECTRE) raises
    natural sub-modes as much as poison once concepts are fine-grained.
    Limits, measured. Distances are in the concept's own deviations, so that one about 40 % poisoned or more is no longer named, its
    poison being half the bulk; and a trigger word that is mined as a concept explains its trigger away. concept_sides, which has no
    scale of a concept's own and no regression, names both. name_above was set on the subsets that it was checked with.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"caption", "image_sha256", "layer.*"})
    columns: ClassVar[Mapping[str, Column]] = {"concept_spectral": Column(about="image", accuses_from=1.0)}
    """A pair is accused that lies out in a concept that is named."""
    rounds: ClassVar[int] = 6
    says: ClassVar[frozenset[str]] = frozenset({"concept"})

    def __init__(self, settings: ConceptSpectralConfig) -> None:
        self._settings = settings

    def start(self) -> SpectralState:
        return SpectralState()

    def summarise(self, state: SpectralState, table: pa.Table) -> Any:
        if state.round == 0:
            captions = table.column("caption").to_pylist()
            mine = isinstance(self._settings.concepts, Mined)
            return len(captions), count_terms(captions) if mine else Counter()
        members = self._members(state, table)
        if state.round == 1:
            names = layer_columns(table)
            if not names:
                raise ValueError("the embedding cache has no layer.* columns: embed with intermediate layers")
            return tuple(names), regression_sums(members, [vectors(table, name) for name in names])
        rows = member_rows(members)
        if state.round == 2:
            layers = ((vectors(table, x.name), x) for x in state.layers)
            return [concept_moments(rows, whiten(members, z, x.effect, x.white)) for z, x in layers]
        residual = self._residuals(state, members, table)
        if state.round == 3:
            return histograms(state, rows, residual), np.zeros(len(rows), dtype=np.int64)
        if state.round == 4:
            found = distances(state, rows, residual, table.num_rows)
            return np.stack([distance_histograms(d, rows) for d in found]), np.zeros(len(rows), dtype=np.int64)
        scores, distance = evidence(state, rows, residual, table.num_rows, nonnull(state.gaps).view)
        # Peeling: a pair accused in a named concept counts nowhere else.
        winner = scores.argmax(axis=1)
        out = distance[np.arange(len(winner)), winner] >= nonnull(state.gaps).cut[winner]
        accused = out & nonnull(state.named)[winner]
        kept = [members[~accused[members] | (winner[members] == c)] for c, members in enumerate(rows)]
        flagged = np.bincount(winner[out], minlength=len(rows))
        sides = []
        for c in np.flatnonzero(nonnull(state.named)):
            own = out[rows[c]] & (winner[rows[c]] == c)
            sides.append((rows[c][own], rows[c][~own]))
        return (
            distance_histograms(distance, kept),
            flagged,
            side_sums(state, sides, [vectors(table, x.name) for x in state.layers]),
            self._farthest(state, kept, distance, table),
        )

    def _farthest(
        self, state: SpectralState, kept: list[np.ndarray], distance: np.ndarray, table: pa.Table
    ) -> Farthest:
        """Return how far out the pictures of the named concepts lie, without the bulk, which no gap takes heed of."""
        named = np.flatnonzero(nonnull(state.named))
        concepts = np.repeat(named, [len(kept[c]) for c in named])
        rows = np.concatenate([np.zeros(0, np.int64), *(kept[c] for c in named)]).astype(np.int64)
        bins = bin_index(distance[rows, concepts])
        far = bins >= bin_index(np.array([self._settings.gap.nearest / 2]))
        return Farthest.of(concepts[far], image_files(table)[rows[far]], bins[far])

    def merge(self, left: Any, right: Any) -> Any:
        if isinstance(left, tuple) and isinstance(left[1], Counter):
            return left[0] + right[0], merge_counts(left[1], right[1])
        if isinstance(left, tuple) and isinstance(left[1], RegressionSums):
            if left[0] != right[0]:
                raise ValueError(f"parts of the embedding cache have different layers: {left[0]} and {right[0]}")
            return left[0], RegressionSums(
                gram=left[1].gram + right[1].gram,
                cross=[a + b for a, b in zip(left[1].cross, right[1].cross, strict=True)],
                second=[a + b for a, b in zip(left[1].second, right[1].second, strict=True)],
            )
        if isinstance(left, list):
            return [
                ConceptMoments(a.count + b.count, a.first + b.first, a.second + b.second)
                for a, b in zip(left, right, strict=True)
            ]
        return tuple(a + b for a, b in zip(left, right, strict=True))

    def update(self, state: SpectralState, summary: Any) -> SpectralState:
        steps = (
            self._learn_words,
            self._learn_regression,
            self._learn_directions,
            self._learn_shapes,
            self._learn_gaps,
            self._peel,
        )
        return replace(steps[state.round](state, summary), round=state.round + 1)

    def _learn_words(self, state: SpectralState, summary: tuple[int, Counter[str]]) -> SpectralState:
        pairs, counts = summary
        concepts = self._settings.concepts
        if isinstance(concepts, Named):
            return replace(state, vocabulary=name_vocabulary(concepts.names))
        return replace(state, vocabulary=mine_vocabulary(counts, pairs, concepts))

    def _learn_regression(self, state: SpectralState, summary: tuple[tuple[str, ...], RegressionSums]) -> SpectralState:
        names, sums = summary
        layers = []
        effects = solve_regression(sums, self._settings.ridge_pairs)
        covariances = [residual_covariance(sums, i, effect) for i, effect in enumerate(effects)]
        some = [varies(c, second / sums.gram[-1, -1]) for c, second in zip(covariances, sums.second, strict=True)]
        for name, effect, covariance, one_varies in zip(names, effects, covariances, some, strict=True):
            if not any(some):
                covariance = np.eye(len(covariance))  # one picture, once or again and again: each pair is as odd as any
            elif not one_varies:
                raise ValueError(
                    f"{name}: features do not vary, and those of other layers do; leave it out of embed.layers"
                )
            try:
                white = whitening(covariance, self._settings.shrinkage)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            none = np.zeros(0)
            layers.append(Layer(name, effect, white, none, none, none, none, none, none, none))
        return replace(state, layers=tuple(layers), count=np.diag(sums.gram)[:-1].astype(np.int64))

    def _learn_directions(self, state: SpectralState, summary: list[ConceptMoments]) -> SpectralState:
        layers = []
        for layer, moments in zip(state.layers, summary, strict=True):
            directions, offsets, excess = top_directions(moments, self._settings.directions)
            layers.append(replace(layer, directions=directions @ layer.white, offsets=offsets, excess=excess))
        return replace(state, layers=tuple(layers))

    def _learn_shapes(self, state: SpectralState, summary: tuple[np.ndarray, np.ndarray]) -> SpectralState:
        """Choose each concept's most skewed direction."""
        concepts = self._settings.concepts
        floor = concepts.min_pairs if isinstance(concepts, Mined) else 2 * self._settings.least_pairs
        judged = nonnull(state.count) >= floor
        layers = []
        for layer, histogram in zip(state.layers, summary[0], strict=True):
            c_count = len(histogram)
            centre, inflation, skew = np.zeros(c_count), np.ones(c_count), np.zeros(c_count)
            scale, chosen = np.full(c_count, np.inf), np.zeros(c_count, dtype=np.int64)
            some = np.flatnonzero(judged)
            found = shapes(histogram[some].reshape(-1, BINS), self._settings.least_pairs)
            best = found.skew.reshape(len(some), histogram.shape[1]).argmax(axis=1)
            chosen[some] = best
            places = np.arange(len(some)) * histogram.shape[1] + best
            centre[some], scale[some] = found.centre[places], found.scale[places]
            inflation[some], skew[some] = found.inflation[places], found.skew[places]
            rows = np.arange(c_count)
            layers.append(
                replace(
                    layer,
                    directions=layer.directions[rows, chosen][:, None],
                    offsets=layer.offsets[rows, chosen][:, None],
                    centre=centre,
                    scale=scale,
                    inflation=inflation,
                    skew=skew,
                )
            )
        return replace(state, layers=tuple(layers))

    def _learn_gaps(self, state: SpectralState, summary: tuple[np.ndarray, np.ndarray]) -> SpectralState:
        """Name the concepts with a gap."""
        gaps = clearest_views(summary[0], self._settings.name_above, self._settings.gap)
        excess = np.stack([*(layer.excess for layer in state.layers), geometric_mean([x.excess for x in state.layers])])
        wide = (
            excess[gaps.view, np.arange(excess.shape[1])] >= self._settings.least_excess
        )  # ALL_LAYERS is the last row
        return replace(state, gaps=gaps, named=(gaps.share > self._settings.name_above) & wide)

    def _peel(self, state: SpectralState, summary: tuple[np.ndarray, np.ndarray, SideSums, Farthest]) -> SpectralState:
        """Look for the gaps again without what other named concepts account for, and name for good."""
        histogram, flagged, sides, farthest = summary
        histogram = np.where(nonnull(state.named)[:, None], farthest.histograms(len(histogram)), histogram)
        gaps = find_gaps(histogram, self._settings.gap, nonnull(state.gaps).view)
        still = (gaps.share > self._settings.name_above) & (flagged >= self._settings.least_pairs)
        varied = np.zeros(len(still), dtype=bool)
        varied[np.flatnonzero(nonnull(state.named))] = sides.spread() >= self._settings.least_spread
        return replace(state, gaps=gaps, flagged=flagged, named=still & varied)

    def score(self, state: SpectralState, table: pa.Table) -> Columns:
        """Return `concept_spectral`; 1 and above is accused."""
        return self.tell(state, table)[0]

    def texts(self, state: SpectralState, table: pa.Table) -> dict[str, list[str]]:
        """Return `concept`: under which each pair scores highest."""
        return self.tell(state, table)[1]

    def tell(self, state: SpectralState, table: pa.Table) -> tuple[Columns, dict[str, list[str]]]:
        scores, names = self._scores(state, table), concept_names(state)
        highest = scores.max(axis=1).clip(min=-1.0).astype(np.float32)
        return {"concept_spectral": highest}, {"concept": [names[c] for c in scores.argmax(axis=1)]}

    def findings(self, state: SpectralState) -> Mapping[str, Any]:
        """Return the concepts by falling gap, with the numbers behind it."""
        names = concept_names(state)
        count, gaps = nonnull(state.count), nonnull(state.gaps)
        flagged, named = nonnull(state.flagged), nonnull(state.named)
        order = np.argsort(-gaps.share, kind="stable")
        return {
            "threshold": self._settings.name_above,
            "concepts": [
                {
                    "name": names[c],
                    "n": int(count[c]),
                    "statistic": round(float(gaps.share[c]), 3),
                    "beyond_gap": int(gaps.beyond[c]),
                    "cut": round(float(gaps.cut[c]), 3) if np.isfinite(gaps.cut[c]) else None,
                    "flagged": int(flagged[c]) if named[c] else 0,
                    "named": bool(named[c]),
                    "layers": {
                        x.name: {"skew": round(float(x.skew[c]), 3), "excess": round(float(x.excess[c]), 3)}
                        for x in state.layers
                    },
                }
                for c in order
            ],
        }

    def _members(self, state: SpectralState, table: pa.Table) -> sp.csr_matrix:
        """Return `[n, C] float32`, the last column for pairs without a concept."""
        members = nonnull(state.vocabulary).members(table.column("caption").to_pylist())
        none = np.asarray(members.sum(axis=1)).ravel() == 0
        return sp.hstack([members, sp.csr_matrix(none.astype(np.float32)[:, None])]).tocsr()

    def _residuals(self, state: SpectralState, members: sp.csr_matrix, table: pa.Table) -> list[np.ndarray]:
        return [residuals(members, vectors(table, x.name), x.effect) for x in state.layers]

    def _scores(self, state: SpectralState, table: pa.Table) -> np.ndarray:
        """Return `[n, C] float64` calibrated scores, -inf where the pair is not of the concept."""
        members = self._members(state, table)
        gaps, residual = nonnull(state.gaps), self._residuals(state, members, table)
        scores, distance = evidence(state, member_rows(members), residual, table.num_rows, gaps.view)
        accused = (distance >= gaps.cut) & nonnull(state.named)
        return calibrate(scores, accused, self._settings.half_score)


def calibrate(scores: np.ndarray, accused: np.ndarray, half_score: float) -> np.ndarray:
    """Map s to s / (|s| + half_score), in (-1, 1), plus 1 where the pair is accused; -inf stays."""
    with np.errstate(invalid="ignore"):
        squashed = scores / (np.abs(scores) + half_score)
    return np.where(np.isfinite(scores), squashed + accused, -np.inf)


def geometric_mean(moments: list[np.ndarray]) -> np.ndarray:
    """Return the geometric mean over layers, `[C]`; 0 as soon as it is 0 in one layer."""
    stacked = np.maximum(np.stack(moments), 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.log(stacked).mean(axis=0)))
