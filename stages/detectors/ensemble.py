"""One score from many detectors: whichever speaks is heard, and the silent ones do not drown it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from pydantic import Field

from ..captions import Vocabulary
from ..stage import Count, Positive, config
from .streaming import Column, Columns, StreamingDetector

CODE_SHIFT = 12
"""Bits of a float32 that a rank ignores; 11 of the significand are left, 0.05 %."""


Quiet = Annotated[float, Field(ge=0, lt=1)]


@config
class EnsembleConfig:
    """How the scores are combined."""

    silent_weight: Quiet = 0.5
    """Weight of an image column that does not speak, against 1 of one that does."""
    caption_weight: Quiet = 0.25
    """Weight of a column about captions, which never speaks."""
    speak_above: Positive = 2.2
    """A column speaks when its top holds one concept so often: Kullback-Leibler divergence in nats a pair."""
    least_pairs: Count = 20
    """The top must hold at least this many pairs of that concept; ten odd jellyfish once passed for poison."""
    follow_pairs: Count = 8
    """So many are enough for a column's ranks to be followed: nobody is accused by that, so less is at stake."""
    top_shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.0005, 0.001, 0.002, 0.005, 0.01)
    """Shares of the pairs that are looked at as the top of a column; for its ranks, every doubling of `follow_pairs` to the last."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """The distribution of one column: how many values have each leading 20 bits."""

    codes: np.ndarray
    """`[m] int32`, ascending."""
    counts: np.ndarray
    """`[m] int64`."""

    def survival(self, values: np.ndarray) -> np.ndarray:
        """Return `[n] float64`: the share of all values above, ties counted half; 1/2 everywhere for a constant."""
        total = self.counts.sum()
        above = total - np.cumsum(self.counts)
        middle = (above + self.counts / 2) / total
        return np.asarray(middle[np.searchsorted(self.codes, sortable(values))])


def sortable(values: np.ndarray) -> np.ndarray:
    """Return `[n] int32` in the order of the float32 values, with CODE_SHIFT bits dropped."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.int32)
    return np.asarray((bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> CODE_SHIFT)


def sketch(values: np.ndarray) -> Sketch:
    """Summarise one column of one chunk."""
    codes, counts = np.unique(sortable(values), return_counts=True)
    return Sketch(codes, counts.astype(np.int64))


def merge_sketches(left: Sketch, right: Sketch) -> Sketch:
    """Add two sketches; exact, in any order."""
    codes, inverse = np.unique(np.concatenate([left.codes, right.codes]), return_inverse=True)
    counts = np.zeros(len(codes), dtype=np.int64)
    np.add.at(counts, inverse, np.concatenate([left.counts, right.counts]))
    return Sketch(codes, counts)


@dataclass(frozen=True, slots=True)
class Voice:
    """Why a column without a threshold of its own is listened to: its top is all about one concept."""

    concept: int
    share: float
    """The top is the pairs with at most this survival."""
    found: int
    """Pairs of the concept in the top."""
    divergence: float
    """Kullback-Leibler divergence in nats a pair of the concept's share in the top from its share in all pairs."""


@dataclass(frozen=True, slots=True)
class EnsembleState:
    """Knowledge after `round` passes over the scores."""

    round: int = 0
    sketches: Mapping[str, Sketch] | None = None
    accusing: Mapping[str, int] | None = None
    """Pairs that each column accuses by a threshold of its own."""
    voices: Mapping[str, Voice] | None = None
    followed: frozenset[str] = frozenset()
    """Columns whose ranks are followed, those with a voice among them."""
    pairs: int = 0


class Ensemble(StreamingDetector):
    """Combines score columns. Two passes over the scores (with the captions beside them).

    Each column becomes evidence e = log(1 / survival) / log(2 N), in [0, 1]. The combined score is the largest w e over
    the columns, w being 1 for a column that is followed and less for the others, plus 1 for a pair that is accused; so
    1 is the threshold. An average of ranks, in contrast, lets eight detectors at chance bury the one that is right.

    So what separates is followed, whichever column it stands in, and no pair falls further than this. One whose survival is s in a
    column of weight w is overtaken by the accused, by at most 2 N s^(w / v) pairs for each column of weight v (N s^(w / v) but for
    ties), and by those that a calibrated column holds for surer than w e. Where m poisoned pairs are the top of a column that is
    followed, K silent ones of weight 1/2 so take at most K m / 2 N off its average precision: .014 of K = 9 at m = 45, N = 15,000.
    A column whose scores are themselves evidence (concept_sides) is heard as it is, at full weight: it is loud in so far as what it
    found is clear. A pair that it gives v is overtaken by at most (2 N)^(1 - v / w) pairs for each column of weight w: by none of the
    silent ones where v is above 1/2, and where x pairs overtake m poisoned ones, their average precision is at least that of the
    column times m / (m + x).

    Where no column is followed, one that another supports is followed together with it: the mean of it and, with
    `silent_weight`, the other counts at full weight. So k_distance is supported by concept_spectral: where poison is too little for
    anything to speak (5 of 10,000 pairs), a poisoned pair is far from everything and often odd in its concept, too; clean pairs are
    seldom both. It moves ranks only: nobody is accused by it. In the bound it is two columns of weight 1.

    What the columns are they declare (`Column`). One speaks, and a pair is accused, when
    - it has a threshold of its own (concept_spectral): a pair reaches it;
    - it may speak (density, whitening): its top (0.05 to 1 % of all pairs) is filled by the pairs of one concept, far beyond
      that concept's share, as it is when a sparse pocket of images shares a caption it should not. Accused are the pairs
      of that concept in that top. Ordinary outliers are spread over concepts.
    A column that speaks is followed, and so is one whose top would let it speak but for its size: a smaller top accuses nobody.
    On clean data nothing speaks and no pair reaches 1; the ranking for a review budget stays.
    """

    columns: ClassVar[Mapping[str, Column]] = {"ensemble": Column(about="image", accuses_from=1.0)}
    rounds: ClassVar[int] = 2
    threshold: ClassVar[float] = 1.0
    """A pair at or above it is accused."""

    def __init__(self, settings: EnsembleConfig, columns: Mapping[str, Column], vocabulary: Vocabulary) -> None:
        self._settings = settings
        self._columns = dict(sorted(columns.items()))
        self._vocabulary = vocabulary

    @property
    def reads(self) -> frozenset[str]:
        """The columns that it combines, and the captions."""
        return frozenset({"caption", *self._columns})

    def start(self) -> EnsembleState:
        return EnsembleState()

    def summarise(self, state: EnsembleState, table: pa.Table) -> Any:
        """Summarise one chunk: sketches first, then what the top of each voter is about.

        Raises:
            ValueError: a score is not a number.
        """
        if state.round == 0:
            values = {name: self._values(table, name) for name in self._columns}
            accusing = {name: int(self._accuses(name, v).sum()) for name, v in values.items()}
            return {name: sketch(v) for name, v in values.items()}, accusing
        members = self._vocabulary.members(table.column("caption").to_pylist())
        tops: dict[str, np.ndarray] = {}
        for name in (name for name, column in self._columns.items() if column.may_speak):
            survival = (state.sketches or {})[name].survival(self._values(table, name))
            tops[name] = np.stack([count_members(members[survival <= share]) for share in self._tops(state.pairs)])
        return count_members(members), tops

    def merge(self, left: Any, right: Any) -> Any:
        if isinstance(left[0], dict):
            sketches = {name: merge_sketches(left[0][name], right[0][name]) for name in left[0]}
            return sketches, {name: left[1][name] + right[1][name] for name in left[1]}
        return left[0] + right[0], {name: left[1][name] + right[1][name] for name in left[1]}

    def update(self, state: EnsembleState, summary: Any) -> EnsembleState:
        if state.round == 0:
            pairs = int(next(iter(summary[0].values())).counts.sum()) if summary[0] else 0
            return replace(state, round=1, sketches=summary[0], accusing=summary[1], pairs=pairs)
        totals, tops = summary
        settings, accusing = self._settings, len(self._settings.top_shares)
        heard = {name: self._hear(totals, counts[:accusing], settings.least_pairs) for name, counts in tops.items()}
        followed = {name for name, counts in tops.items() if self._hear(totals, counts, settings.follow_pairs)}
        voices = {name: voice for name, voice in heard.items() if voice is not None}
        return replace(state, round=2, voices=voices, followed=frozenset(followed))

    def score(self, state: EnsembleState, table: pa.Table) -> Columns:
        """Return `ensemble`: below 1 a rank, 1 and above accused."""
        sketches, voices, accusing = state.sketches or {}, state.voices or {}, state.accusing or {}
        best = np.zeros(table.num_rows)
        accused = np.zeros(table.num_rows, dtype=bool)
        members = self._vocabulary.members(table.column("caption").to_pylist()) if voices else None
        heard: dict[str, np.ndarray] = {}
        for name in self._columns:
            values = self._values(table, name)
            survival = sketches[name].survival(values)
            calibrated = self._columns[name].calibrated
            heard[name] = values - (values >= 1) if calibrated else evidence(survival, state.pairs)
            speaks = calibrated or name in state.followed or accusing[name] > 0
            np.maximum(best, self._weight(name, speaks) * heard[name], out=best)
            accused |= self._accuses(name, values)
            if name in voices and members is not None:
                of_concept = np.asarray(members[:, [voices[name].concept]].todense()).ravel() > 0
                accused |= of_concept & (survival <= voices[name].share)
        weight = self._settings.silent_weight
        alone = not state.followed and not any(accusing.values())
        for name, column in self._columns.items():
            if alone and column.supported_by in heard:
                np.maximum(best, (heard[name] + weight * heard[column.supported_by]) / (1 + weight), out=best)
        # A row below the threshold must stay below it whatever float32 rounds to.
        below = np.minimum(best, 1 - 2.0**-20)
        return {"ensemble": (below + accused).astype(np.float32)}

    def findings(self, state: EnsembleState) -> Mapping[str, Any]:
        """Return which columns spoke, and about what."""
        voices = state.voices or {}
        return {
            "threshold": self.threshold,
            "accusing": {name: count for name, count in (state.accusing or {}).items() if count},
            "followed": sorted(state.followed),
            "voices": {
                name: {
                    "concept": self._vocabulary.names[voice.concept],
                    "top_pct": 100 * voice.share,
                    "found": voice.found,
                    "divergence": round(voice.divergence, 3),
                }
                for name, voice in sorted(voices.items())
            },
        }

    def _weight(self, name: str, speaks: bool) -> float:
        if speaks:
            return 1.0
        about_image = self._columns[name].about == "image"
        return self._settings.silent_weight if about_image else self._settings.caption_weight

    def _accuses(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return `[n] bool`: the pairs at or above the column's own threshold; none where it has none."""
        threshold = self._columns[name].accuses_from
        return np.zeros(len(values), bool) if threshold is None else values >= threshold

    def _values(self, table: pa.Table, name: str) -> np.ndarray:
        values = table.column(name).to_numpy()
        if np.isnan(values).any():
            raise ValueError(f"score column {name} holds values that are not a number")
        return np.asarray(values, dtype=np.float32)

    def _tops(self, pairs: int) -> list[float]:
        """Return the shares of the pairs that are looked at: those that accuse, then those that are followed."""
        shares, few = self._settings.top_shares, self._settings.follow_pairs
        doublings = range(1 + int(np.log2(max(max(shares, default=0.0) * pairs / few, 1))))
        return [*shares, *(few * 2**k / max(pairs, 1) for k in doublings)]

    def _hear(self, totals: np.ndarray, counts: np.ndarray, least: int) -> Voice | None:
        """Return the loudest top of a column with at least so many pairs of one concept, or None.

        Args:
            totals: `[C+1]` pairs of each concept, last all pairs.
            counts: `[tops, C+1]`, the same of each top.
            least: pairs.
        """
        best: Voice | None = None
        for share, count in zip(self._tops(int(totals[-1])), counts, strict=False):
            if count[-1] < least:
                continue
            divergence = bernoulli_divergence(count[:-1] / count[-1], totals[:-1] / totals[-1])
            divergence[count[:-1] < least] = 0.0
            if not len(divergence):
                continue
            c = int(divergence.argmax())
            # Of the tops that are loud enough the widest holds the most poison.
            if divergence[c] >= self._settings.speak_above:
                best = Voice(c, share, int(count[c]), float(divergence[c]))
        return best


def count_members(members: sp.csr_matrix) -> np.ndarray:
    """Return `[C+1] int64`: pairs of each concept, then pairs in all."""
    by_concept = np.bincount(members.indices, minlength=members.shape[1])
    return np.append(by_concept, members.shape[0]).astype(np.int64)


def evidence(survival: np.ndarray, pairs: int) -> np.ndarray:
    """Return log(1 / survival) / log(2 N), `[n]` in [0, 1]: 1 for the single highest of N pairs, 0 for the lowest."""
    return np.asarray(np.log(1 / survival) / np.log(2 * max(pairs, 2)))


def bernoulli_divergence(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return `[C] float64`: Kullback-Leibler divergence of two shares in nats; 0 where `observed` is the smaller one."""
    p = np.clip(observed, 0, 1)
    q = np.clip(expected, 1e-12, 1 - 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.where(p > 0, p * np.log(p / q), 0.0)
        outside = np.where(p < 1, (1 - p) * np.log((1 - p) / (1 - q)), 0.0)
    return np.where(p > q, inside + outside, 0.0)
