"""Two sides of every concept: finds the pairs that a trigger sets apart, be they few or most of their concept."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from pydantic import Field

from ..captions import (
    Concepts,
    Mined,
    Named,
    Vocabulary,
    count_terms,
    merge_counts,
    mine_vocabulary,
    name_vocabulary,
    normalise,
)
from ..samples import seeded_hash
from ..stage import Count, Positive, Seed, Weight, config
from .concept_content import Content, find_content
from .concept_division import Divided, Division, Naming, Seen, Surroundings, column_rows
from .concept_draw import Chosen, Draw, share_rows, shares_of
from .concept_moments import varies, whitening
from .concept_state import nonnull
from .detector import DetectorConfig, TrustedMoments
from .ensemble import evidence
from .neighbourhoods import NO_NEIGHBOURHOODS, CaptionSample, Neighbourhoods, draw_captions, gather, wordless
from .streaming import Column, Columns, Shares, StreamingDetector, image_files, layer_columns, vectors

LEAST_SAMPLE = 256
"""Pairs of a concept that are looked at, however many concepts there are."""
WORST = 2.0**64
"""One above the largest hash."""
PROJECTION_SEED = 21
"""Of the projection to fewer dimensions; a constant, so that every run's agrees."""


@config
class ConceptSidesConfig(DetectorConfig):
    """Settings of the detector of two sides."""

    kind: Literal["concept_sides"] = "concept_sides"
    concepts: Concepts = Mined(min_pairs=16, max_concepts=20_000)
    """Where the groups come from: mined from the captions, or named."""
    sample: Annotated[int, Field(ge=32)] = 1_024
    """Pairs of a concept that are looked at; half as many, and again, down to 256, while those of all concepts do not fit in
    `memory_mib`."""
    rest: Annotated[int, Field(ge=256)] = 4_096
    """Pairs of the whole data set, drawn at random, that a concept's sides are looked for in."""
    neighbourhood: Annotated[int, Field(ge=16)] = 64
    """Pairs of a neighbourhood of captions, on average, where pairs hold none of the mined concepts. Patch and SIG are found alike with
    64, 128 and 192 (blend was tried with 64 alone) where no two captions share a word, beside 74 genuine pairs of their target; the
    smallest of these, as a rare target disappears in a large one."""
    least_pairs: Count = 5
    """A side has at least this many pairs of the sample."""
    directions: Annotated[int, Field(ge=1, le=16)] = 3
    """Principal axes of a concept that are tried."""
    false_discovery_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of wrong names among the concepts named, at most, in the long run (Benjamini and Hochberg 1995); and of draws from the
    data that would be refused as more diverse than a draw from the data is, which poison may be."""
    least_spread: Weight = 0.5
    """Variance of the pictures on the foreign side over that of the others, below which its concept is not named: half, which is what
    a dimming trigger may take. Poison comes from everywhere; product shots that hardly differ are no poison."""
    memory_mib: Positive = 512.0
    """Of the samples of all concepts; where those of 256 do not fit, features are projected to fewer dimensions."""
    kept: Count = 1_024
    """Concepts, by rising chance, whose pairs get a score."""
    shown: Count = 256
    """Pairs of each side that are handed over to whoever proves."""
    seed: Seed = 0
    """Of the draws."""
    shrinkage: Positive = 1e-3
    """Share of the mean variance that is added to the covariance before it is inverted."""

    def build(self, pairs: int, trusted: TrustedMoments | None) -> "ConceptSides":
        return ConceptSides(self)


@dataclass(frozen=True, slots=True)
class Rest:
    """Pairs drawn from the whole data set by the hash of their uid; the smallest hashes are kept."""

    hashes: np.ndarray
    """`[m] uint64`, ascending."""
    captions: np.ndarray
    """`[m] object`."""
    text: np.ndarray
    """`[m, T] float16`."""
    layers: np.ndarray
    """`[m, D] float16`: all layers side by side."""

    def __add__(self, other: "Rest") -> "Rest":
        both = zip(self._columns(), other._columns(), strict=True)
        return Rest(*(np.concatenate(column) for column in both)).first(len(self.hashes) + len(other.hashes))

    def first(self, count: int) -> "Rest":
        order = np.argsort(self.hashes, kind="stable")[:count]
        return Rest(*(column[order] for column in self._columns()))

    def _columns(self) -> tuple[np.ndarray, ...]:
        return self.hashes, self.captions, self.text, self.layers


@dataclass(slots=True)
class GroupSums:
    """Sums over pairs, each counted in the rarest of its concepts."""

    count: np.ndarray
    """`[C] int64`: pairs of each concept, a pair counting in every one of its own."""
    groups: np.ndarray
    """`[g] int64`, ascending: the rarest concepts that occur; C for pairs without one."""
    sizes: np.ndarray
    """`[g] float64`."""
    sums: np.ndarray
    """`[g, D] float64`."""
    second: list[np.ndarray]
    """A layer each: `[d, d] float64`, the sum of outer products."""

    def __add__(self, other: "GroupSums") -> "GroupSums":
        groups, place = np.unique(np.concatenate([self.groups, other.groups]), return_inverse=True)
        sizes, sums = np.zeros(len(groups)), np.zeros((len(groups), self.sums.shape[1]))
        np.add.at(sizes, place, np.concatenate([self.sizes, other.sizes]))
        np.add.at(sums, place, np.concatenate([self.sums, other.sums]))
        second = [a + b for a, b in zip(self.second, other.second, strict=True)]
        return GroupSums(self.count + other.count, groups, sizes, sums, second)


@dataclass(frozen=True, slots=True)
class Side:
    """Pairs on one side of a concept, drawn by the hash of their uid."""

    pairs: int
    hashes: np.ndarray
    """`[s] uint64`, ascending."""
    uids: tuple[str, ...]

    def __add__(self, other: "Side") -> "Side":
        hashes = np.concatenate([self.hashes, other.hashes])
        order = np.argsort(hashes, kind="stable")
        uids = (*self.uids, *other.uids)
        return Side(self.pairs + other.pairs, hashes[order], tuple(uids[i] for i in order))

    def first(self, count: int) -> "Side":
        return Side(self.pairs, self.hashes[:count], self.uids[:count])


@dataclass(frozen=True, slots=True)
class Shown:
    """What is handed over of the concepts that may be targets."""

    sides: list[tuple[Side, Side]]
    """The foreign and the native side of each."""
    captions: Mapping[str, int]
    """Of the neighbourhoods that are named: normalised caption -> concept, the first MOST_CAPTIONS."""

    def merged(self, other: "Shown", shown: int) -> "Shown":
        """Return both with at most so many pairs of each side."""
        pairs = zip(self.sides, other.sides, strict=True)
        sides = [((a + c).first(shown), (b + d).first(shown)) for (a, b), (c, d) in pairs]
        captions = dict(self.captions)
        for caption, concept in other.captions.items():
            captions.setdefault(caption, concept)
        return Shown(sides, dict(islice(captions.items(), MOST_CAPTIONS)))


@dataclass(frozen=True, slots=True)
class ConceptSplit:
    """What is handed over to whoever proves: both sides of a concept that may be the target of a backdoor."""

    concept: str
    statistic: float
    chance: float
    """Probability that a clean concept of this data set shows as much."""
    diversity: float
    """Of the side that the rest of the data is not on: 0 as within a concept, 1 as in the whole data set."""
    spread: float
    """Variance of that side's pictures over that of the others."""
    named: bool
    poison: Side
    """The side that the rest of the data is not on: what a trigger would look like."""
    genuine: Side


@dataclass(frozen=True, slots=True)
class SidesState:
    """Knowledge after `round` passes over the cache."""

    round: int = 0
    pairs: int = 0
    vocabulary: Vocabulary | None = None
    neighbourhoods: Neighbourhoods = NO_NEIGHBOURHOODS
    layers: tuple[str, ...] = ()
    rest: Rest | None = None
    sample: int = 0
    """Pairs of a concept that are looked at."""
    count: np.ndarray | None = None
    """`[C] int64`."""
    centre: np.ndarray | None = None
    """`[D] float64`."""
    whites: tuple[np.ndarray, ...] = ()
    """A layer each: `[d, p] float64`."""
    contents: tuple[Content, ...] = ()
    """A layer each, the last left out where there are several: a backdoor gathers its pictures there."""
    divided: int = 0
    """Concepts that could be divided."""
    found: tuple[Divided, ...] = ()
    """The first `kept` of them, the named ones first, then by rising chance."""
    shown: tuple[tuple[Side, Side], ...] = ()
    """The foreign and the native side of each named concept and of the next few."""
    captions: Mapping[str, int] = field(default_factory=dict)
    """Normalised captions of the neighbourhoods that are named -> concept."""


SHOWN_BEYOND = 8
"""Concepts beyond the named ones whose sides are handed over."""
MOST_CAPTIONS = 65_536
"""Captions of named neighbourhoods that are remembered."""


class ConceptSides(StreamingDetector):
    """Divides every concept in two and names those that a trigger divides. Four passes; no word list, no clean model.

    1. Concepts are mined from the captions (or named), and a sample of all pairs is drawn: the rest of the data. Pairs whose caption
       holds none of the mined ones are grouped by their text vectors (neighbourhoods.py): a pair without a word is of one
       neighbourhood, and a neighbourhood is a concept like any other, named by its most typical caption.
    2. Layers are whitened by the covariance within concepts, each pair counting in the rarest of its own.
    3. A sample of every concept is drawn, and of a picture with several captions one pair: what one half of a concept learns of a
       picture the other half would find again in its copies. Each is divided as concept_division says, in each layer alone and in all
       together. A concept is named by its statistic against what the other concepts of the same data set show, at a false discovery
       rate, if the pictures of its foreign side may come from everywhere: not all alike, nor more diverse than the data are. Pairs on
       the foreign side of a named concept are then left out of the others, which are looked at again, so that a colour that shares some
       captions is not named beside the target.
    4. Both sides of the named concepts, and of the next few, are drawn, for the proof.

    Score of a pair: the largest over its concepts of the probability that it is on the foreign side, times the evidence of that,
    log(1 / s) / log(2 N) of N pairs, s being the share of clean pairs that lie on the foreign side of a concept as striking: the
    concept's chance, times the share of it on that side, times the concepts of a pair. 1 more where the concept is named and the pair is
    on the foreign side. So a concept that is not named counts for as much as a rank among the pairs does, and for more than any where
    nothing clean is so striking.

    Memory is bounded by the samples: 20,000 concepts of 256 pairs with 64 dimensions are within `memory_mib`.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"uid", "caption", "image_sha256", "text", "layer.*"})
    columns: ClassVar[Mapping[str, Column]] = {
        "concept_sides": Column(about="image", accuses_from=1.0, calibrated=True)
    }
    rounds: ClassVar[int] = 4

    def __init__(self, settings: ConceptSidesConfig) -> None:
        self._settings = settings

    def start(self) -> SidesState:
        return SidesState()

    def summarise(self, state: SidesState, table: pa.Table) -> Any:
        if state.round == 0:
            captions = table.column("caption").to_pylist()
            mine = isinstance(self._settings.concepts, Mined)
            counts = count_terms(captions) if mine else Counter()
            said = seeded_hash(captions, self._settings.seed, "captions")
            sample = draw_captions(said, np.array(captions, dtype=object), vectors(table, "text"))
            return len(captions), counts, tuple(layer_columns(table)), self._draw_rest(table), sample
        members = self._members(state, table)
        if state.round == 1:
            return group_sums(members, [vectors(table, name) for name in state.layers])
        hashes = self._hashes(table)
        if state.round == 2:
            return self._draw_members(state, members, hashes, table)
        return self._draw_sides(state, members, hashes, table)

    def merge(self, left: Any, right: Any) -> Any:
        if isinstance(left, tuple):
            if left[2] != right[2]:
                raise ValueError(f"parts of the embedding cache have different layers: {left[2]} and {right[2]}")
            rest = (left[3] + right[3]).first(self._settings.rest)
            return left[0] + right[0], merge_counts(left[1], right[1]), left[2], rest, left[4] + right[4]
        if isinstance(left, Shown):
            return left.merged(right, self._settings.shown)
        return left + right

    def update(self, state: SidesState, summary: Any) -> SidesState:
        steps = (self._learn_words, self._learn_whitening, self._divide, self._show)
        return replace(steps[state.round](state, summary), round=state.round + 1)

    def _hashes(self, table: pa.Table) -> np.ndarray:
        return seeded_hash(table.column("uid").to_pylist(), self._settings.seed, "concept sides")

    def _draw_rest(self, table: pa.Table) -> Rest:
        names = layer_columns(table)
        if not names:
            raise ValueError("the embedding cache has no layer.* columns: embed with intermediate layers")
        hashes = self._hashes(table)
        order = np.argsort(hashes, kind="stable")[: self._settings.rest]
        layers = np.hstack([vectors(table, name)[order].astype(np.float16) for name in names])
        captions = np.array(table.column("caption").to_pylist(), dtype=object)[order]
        return Rest(hashes[order], captions, vectors(table, "text")[order].astype(np.float16), layers)

    def _learn_words(
        self, state: SidesState, summary: tuple[int, Counter[str], tuple[str, ...], Rest, CaptionSample]
    ) -> SidesState:
        pairs, counts, layers, rest, sample = summary
        concepts = self._settings.concepts
        vocabulary = (
            name_vocabulary(concepts.names) if isinstance(concepts, Named) else mine_vocabulary(counts, pairs, concepts)
        )
        learned = replace(state, pairs=pairs, vocabulary=vocabulary, layers=layers, rest=rest)
        if isinstance(concepts, Named):
            return learned
        left = pairs * float(wordless(vocabulary.members(rest.captions.tolist())).mean()) if pairs else 0.0
        count = max(round(left / self._settings.neighbourhood), int(left >= concepts.min_pairs))
        return replace(learned, neighbourhoods=gather(sample.without(vocabulary), count, vocabulary.names))

    def _members(self, state: SidesState, table: pa.Table) -> sp.csr_matrix:
        """Return `[n, C + K]`: which pair is of which concept, and of a pair without one its neighbourhood."""
        words = nonnull(state.vocabulary).members(table.column("caption").to_pylist())
        return state.neighbourhoods.members(words, vectors(table, "text")) if state.neighbourhoods.names else words

    def _learn_whitening(self, state: SidesState, summary: GroupSums) -> SidesState:
        settings = self._settings
        pairs = summary.sizes.sum()
        sample, drawn = self._fitting(summary, pairs)
        dims = settings.memory_mib * 2**20 / max(2 * drawn * len(summary.second), 1)
        mean = summary.sums.sum(axis=0) / pairs
        whites, contents, start = [], [], 0
        for second in summary.second:
            width = len(second)
            sums = summary.sums[:, start : start + width]
            centre = mean[start : start + width]
            start += width
            explained = (sums / summary.sizes[:, None]).T @ sums
            within = (second - explained) / max(pairs - len(summary.groups), 1.0)
            if not np.isfinite(within).all() or not varies((second - explained) / pairs, second / pairs):
                within = np.eye(width)  # nothing varies within the concepts, so nothing divides them
            white = whitening(within, settings.shrinkage)
            narrow = min(width, max(int(dims), 8))
            whites.append(white @ orthonormal(width, narrow) / np.sqrt(narrow))
            contents.append(
                find_content(whites[-1].T @ (second / pairs - np.outer(centre, centre)) @ whites[-1] * narrow)
            )
        return replace(
            state,
            sample=sample,
            count=summary.count,
            centre=mean,
            whites=tuple(whites),
            contents=tuple(contents[:-1] or contents),
        )

    def _fitting(self, summary: GroupSums, pairs: float) -> tuple[int, float]:
        """Return the pairs that are looked at of a concept, and about how many those of all concepts are."""
        sample, room = self._settings.sample, self._settings.memory_mib * 2**20 / (2 * summary.sums.shape[1])
        while True:
            drawn = min(pairs, float(np.minimum(summary.count, sample).sum()))
            if drawn <= room or sample // 2 < LEAST_SAMPLE:
                return sample, drawn
            sample //= 2

    def _whiten(self, state: SidesState, layers: Sequence[np.ndarray]) -> np.ndarray:
        """Return the whitened layers side by side, each of mean square about 1, `[n, P] float64`."""
        parts, start = [], 0
        for values, white in zip(layers, state.whites, strict=True):
            parts.append((values - nonnull(state.centre)[start : start + len(white)]) @ white)
            start += len(white)
        return np.hstack(parts)

    def _whitened(self, state: SidesState, table: pa.Table) -> np.ndarray:
        return self._whiten(state, [vectors(table, name) for name in state.layers])

    def _draw_members(self, state: SidesState, members: sp.csr_matrix, hashes: np.ndarray, table: pa.Table) -> Draw:
        """Draw of each concept about as many pairs as are looked at, by the hashes alone."""
        below = np.minimum(state.sample / np.maximum(nonnull(state.count), 1), 1.0)
        entries = members.tocoo()
        kept = hashes[entries.row].astype(np.float64) / WORST <= below[entries.col]
        drawn = sp.csr_matrix((entries.data[kept], (entries.row[kept], entries.col[kept])), shape=members.shape)
        rows = np.flatnonzero(np.diff(drawn.indptr))
        whitened = self._whitened(state, table.take(pa.array(rows))).astype(np.float16)
        return Draw((Chosen(hashes[rows], image_files(table)[rows], whitened, drawn[rows]),))

    def _around(self, state: SidesState) -> Surroundings:
        """Return the rest of the data as the divided concepts are held against it."""
        settings, rest = self._settings, nonnull(state.rest)
        layers = np.cumsum([len(white) for white in state.whites])[:-1]
        words = nonnull(state.vocabulary).members(rest.captions.tolist())
        return Surroundings(
            naming=Naming(
                least_pairs=settings.least_pairs,
                directions=settings.directions,
                rate=settings.false_discovery_rate,
                least_spread=settings.least_spread,
                described=settings.kept,
            ),
            outside=self._whiten(state, np.split(rest.layers.astype(np.float32), layers, axis=1)).astype(np.float32),
            elsewhere=state.neighbourhoods.members(words, rest.text).tocsc(),
            widths=[white.shape[1] for white in state.whites],
        )

    def shares(self, state: SidesState, summary: Any) -> Shares | None:
        """Return the drawn pairs concept by concept, to be cut apart; in the round that divides."""
        return Shares(self._around(state), shares_of(summary)) if isinstance(summary, Draw) else None

    def work_out(self, common: Surroundings, share: pa.Table) -> Seen:
        """Return how the concepts of a share are cut."""
        concepts, starts = np.unique(share.column("concept").to_numpy(), return_index=True)
        inside = dict(zip(concepts.tolist(), np.split(share_rows(share), starts[1:]), strict=True))
        return common.look(concepts.tolist(), inside.__getitem__)

    def update_with(self, state: SidesState, summary: Any, shared: Sequence[Seen]) -> SidesState:
        found = {concept: cuts for seen in shared for concept, cuts in seen.items()}
        return replace(self._divide(state, summary, found), round=state.round + 1)

    def _divide(self, state: SidesState, summary: Draw, found: Seen | None = None) -> SidesState:
        division = Division(
            around=self._around(state),
            ranks=summary.ranks,
            files=summary.files,
            draw=summary,
            members=summary.members,
            contents=state.contents,
            found=found or {},
        )
        told = division.run()
        return replace(state, rest=None, divided=len(division.found), found=tuple(told))

    def _draw_sides(self, state: SidesState, members: sp.csr_matrix, hashes: np.ndarray, table: pa.Table) -> Shown:
        """Draw from both sides of the concepts that are handed over, and learn which captions the named neighbourhoods have."""
        by_concept, uids = members.tocsc(), table.column("uid").to_pylist()
        captions, known = table.column("caption").to_pylist(), len(nonnull(state.vocabulary).names)
        said: dict[int, int] = {}
        whitened = self._whitened(state, table)
        drawn = []
        wanted = sum(one.named for one in state.found) + SHOWN_BEYOND
        for one in state.found[:wanted]:
            rows = column_rows(by_concept, one.concept)
            foreign = one.sides.positions(whitened[rows]) >= one.sides.cut
            poison, genuine = (draw_side(rows[part], hashes, uids) for part in (foreign, ~foreign))
            drawn.append((poison.first(self._settings.shown), genuine.first(self._settings.shown)))
            if one.named and one.concept >= known:
                said |= dict.fromkeys(rows.tolist(), one.concept)
        return Shown(drawn, first_captions(captions, said))

    def _show(self, state: SidesState, summary: Shown) -> SidesState:
        return replace(state, shown=tuple(summary.sides), captions=summary.captions)

    def score(self, state: SidesState, table: pa.Table) -> Columns:
        """Return `concept_sides`, `[n] float32` in [0, 2); 1 and above is accused."""
        members = self._members(state, table).tocsc()
        whitened = self._whitened(state, table)
        each = nonnull(state.count).sum() / max(state.pairs, 1)
        clean = np.array([one.chance * one.sides.share * each for one in state.found])
        weights = evidence(np.clip(clean, 0.5 / max(state.pairs, 1), 1), state.pairs)
        scores = np.zeros(table.num_rows)
        for weight, one in zip(weights, state.found, strict=True):
            rows = column_rows(members, one.concept)
            positions = one.sides.positions(whitened[rows])
            accused = one.named & (positions >= one.sides.cut)
            scores[rows] = np.maximum(
                scores[rows], np.minimum(weight * one.sides.belief(positions), 1 - 2.0**-20) + accused
            )
        return {"concept_sides": scores.astype(np.float32)}

    def splits(self, state: SidesState) -> tuple[ConceptSplit, ...]:
        """Return both sides of the named concepts, and of the next few by their chance."""
        names = concept_names(state)
        return tuple(
            ConceptSplit(
                names[one.concept], one.sides.statistic, one.chance, one.diversity, one.spread, one.named, *sides
            )
            for one, sides in zip(state.found, state.shown, strict=False)
        )

    def vocabulary(self, state: SidesState) -> Vocabulary:
        """Return which concepts a caption tells, the neighbourhoods last: a named one by all of its captions, the others by their
        most typical one, which makes them labels beside it."""
        words, groups = nonnull(state.vocabulary), state.neighbourhoods
        typical = {caption: len(words.names) + i for i, caption in enumerate(groups.captions)}
        return Vocabulary(concept_names(state), words.terms, words.longest, typical | dict(state.captions))

    def findings(self, state: SidesState) -> Mapping[str, Any]:
        """Return how many concepts were looked at, at which rate they are named, and the most striking."""
        return {
            "false_discovery_rate": self._settings.false_discovery_rate,
            "neighbourhoods": len(state.neighbourhoods.names),
            "concepts_divided": state.divided,
            "sample": state.sample,
            "dimensions": int(sum(white.shape[1] for white in state.whites)),
            "concepts": [
                {
                    "name": split.concept,
                    "statistic": round(split.statistic, 3),
                    "chance": float(f"{split.chance:.3g}"),
                    "diversity": round(split.diversity, 3),
                    "spread": round(split.spread, 3),
                    "named": split.named,
                    "poison_side": split.poison.pairs,
                    "genuine_side": split.genuine.pairs,
                    "ratio": round(one.sides.ratio, 3),
                    "elsewhere": float(f"{one.sides.elsewhere:.3g}"),
                }
                for split, one in zip(self.splits(state), state.found, strict=False)
            ],
        }


def group_sums(members: sp.csr_matrix, layers: list[np.ndarray]) -> GroupSums:
    """Sum up one chunk: members `[n, C]`, the rarest concepts last, and each layer `[n, d]`."""
    n, concepts = members.shape
    rarest = np.full(n, concepts)
    some = np.flatnonzero(np.diff(members.indptr))
    members.sort_indices()
    rarest[some] = members.indices[members.indptr[some + 1] - 1]
    wide = np.hstack([z.astype(np.float64) for z in layers])
    groups, place, sizes = np.unique(rarest, return_inverse=True, return_counts=True)
    sums = np.zeros((len(groups), wide.shape[1]))
    np.add.at(sums, place, wide)
    count = np.bincount(members.indices, minlength=concepts).astype(np.int64)
    second = [z.astype(np.float64).T @ z.astype(np.float64) for z in layers]
    return GroupSums(count, groups, sizes.astype(np.float64), sums, second)


def concept_names(state: SidesState) -> tuple[str, ...]:
    """Return the names of all concepts, the neighbourhoods last."""
    return (*nonnull(state.vocabulary).names, *state.neighbourhoods.names)


def first_captions(captions: Sequence[str], concepts: Mapping[int, int]) -> dict[str, int]:
    """Return normalised caption -> concept of the rows that have one, the first row of a caption deciding."""
    found: dict[str, int] = {}
    for row in sorted(concepts):
        found.setdefault(normalise(captions[row]), concepts[row])
    return dict(islice(found.items(), MOST_CAPTIONS))


def draw_side(rows: np.ndarray, hashes: np.ndarray, uids: list[str]) -> Side:
    """Return the pairs of a side in one chunk."""
    order = rows[np.argsort(hashes[rows], kind="stable")]
    return Side(len(rows), hashes[order], tuple(uids[i] for i in order))


def orthonormal(rows: int, columns: int) -> np.ndarray:
    """Return `[rows, columns]`: the identity where nothing is dropped, else orthonormal columns from PROJECTION_SEED."""
    if rows == columns:
        return np.eye(rows)
    gaussian = np.random.default_rng([PROJECTION_SEED, rows]).standard_normal((rows, columns))
    basis, triangle = np.linalg.qr(gaussian)
    return np.asarray(basis * np.sign(np.diag(triangle)))
