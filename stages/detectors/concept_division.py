"""Every concept divided in two, as each layer shows it and as all do together, and which of them a trigger divides."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from .concept_content import Content, draws_as_diverse, mean_diversity
from .discriminants import FINEST
from .false_discoveries import named_by_rate, tail_chances
from .separation import Cut, Pairs, separate
from .two_sides import TwoSides

Pictures = tuple[list[np.ndarray], list[np.ndarray]]
"""Of the foreign side and of the others, the layers in which content is read, `[n, P]` each."""
AT_ONCE = 16
"""Concepts that are looked at together: their directions are few, and the whole data set is gone through for all of them."""
MIN_SIDE = 3
"""Pairs that a variance is of."""


@dataclass(frozen=True, slots=True)
class Naming:
    """How concepts are divided, and from when on one is named."""

    least_pairs: int
    """A side has at least this many pairs."""
    directions: int
    """Principal axes that are tried."""
    rate: float
    """False discovery rate over the concepts."""
    least_spread: float
    """Of the foreign side of a concept that is named."""
    described: int
    """Concepts, by rising chance, that are told of."""


@dataclass(frozen=True, slots=True)
class Divided:
    """One concept."""

    concept: int
    sides: TwoSides
    """As the layers see it that show it most clearly; its direction spans all."""
    chance: float
    """Probability that a clean concept of this data set shows as much."""
    diversity: float
    """Of the pictures on the foreign side: 0 as within a concept, 1 as in the whole data set."""
    spread: float
    """Variance of the pictures on the foreign side over that of the others: 0 where they are one picture again and again."""
    named: bool


@dataclass(frozen=True, slots=True)
class Clearest:
    """How a concept is cut in the view that shows it most clearly."""

    cut: Cut
    view: slice
    chance: float
    """Probability that a clean concept of this data set shows as much in any view."""


Seen = dict[int, tuple[Cut | None, ...]]
"""By concept, how each view cuts it; without those that no view can divide."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The rest of the data, beside which concepts are looked at."""

    naming: Naming
    outside: np.ndarray
    """`[m, P] float32`: pairs of the whole data set, whitened layers side by side."""
    elsewhere: sp.csc_matrix
    """`[m, C]`: the concepts of those."""
    widths: Sequence[int]
    """Dimensions of each layer."""

    @property
    def views(self) -> list[slice]:
        """The columns of each layer, and of all of them where there are several."""
        ends = np.cumsum(self.widths).tolist()
        alone = [slice(end - width, end) for width, end in zip(self.widths, ends, strict=True)]
        return alone if len(alone) == 1 else [*alone, slice(0, ends[-1])]

    def look(self, concepts: Sequence[int], inside: Callable[[int], np.ndarray]) -> Seen:
        """Return how concepts are cut; `inside` gives the pairs of each, `[n, P]`, in an order that has nothing to do with them."""
        found: Seen = {}
        limits = {"least": self.naming.least_pairs, "directions": self.naming.directions}
        for start in range(0, len(concepts), AT_ONCE):
            some = concepts[start : start + AT_ONCE]
            pairs = [Pairs(inside(concept).astype(np.float32), self._away(concept)) for concept in some]
            for concept, seen in zip(some, separate(pairs, self.outside, self.views, **limits), strict=True):
                if any(cut is not None for cut in seen):
                    found[concept] = seen
        return found

    def _away(self, concept: int) -> np.ndarray:
        away = np.ones(len(self.outside), dtype=bool)
        away[column_rows(self.elsewhere, concept)] = False
        return away


class Rows(Protocol):
    """Whitened pairs that are not all in one array."""

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Return some of them, `[n, P] float16`."""


@dataclass(slots=True)
class Division:
    """The pairs drawn from every concept, beside the rest of the data.

    A trigger shows where it shows: a wave in the first layer, a patch in the middle ones, and there the other layers only add noise.
    So each concept is divided in each layer alone and in all together (a view each). What a view shows is weighed against what the
    same view shows of the other concepts, and the smallest chance p of v views counts, as 1 - (1 - p)^v (Sidak 1967).
    """

    around: Surroundings
    ranks: np.ndarray
    """`[k] int64`: the place of each pair in an order that has nothing to do with the pictures; in it those of a concept are halved."""
    files: np.ndarray
    """`[k] uint64`: the same where the image file is the same."""
    draw: Rows
    """Their whitened layers side by side, by their rows."""
    members: sp.csc_matrix
    """`[k, C]`: which pairs were drawn for which concept."""
    contents: Sequence[Content]
    """Of the layers in which content is read, the first ones."""
    found: Seen = field(default_factory=dict)
    """Of the concepts that were looked at already; the others are when it runs."""
    taken: np.ndarray = field(init=False)
    """`[k] bool`: pairs that a named concept accounts for; they are left out of the others."""

    def __post_init__(self) -> None:
        self.taken = np.zeros(len(self.ranks), dtype=bool)

    @property
    def concepts(self) -> list[int]:
        """Those of which there are pairs."""
        return np.flatnonzero(np.diff(self.members.indptr)).tolist()

    def inside(self, concept: int) -> np.ndarray:
        """Return the pairs of a concept, `[n, P] float16`, one a picture, without those that a named one accounts for."""
        return self.draw.rows(self._rows(concept))

    def run(self) -> list[Divided]:
        """Divide every concept and name those that stand out, leaving out what a named one accounts for; the named first, then
        by rising chance, as many as are told of."""
        if not self.found:
            self.found = self.around.look(self.concepts, self.inside)
        settled: dict[int, Divided] = {}
        while True:
            best = self._best()
            named = named_by_rate(np.array([one.chance for one in best.values()]), self.around.naming.rate)
            striking = [c for c, yes in zip(best, named, strict=True) if yes and c not in settled]
            sides = {c: self._sides(c, best[c]) for c in striking}
            pictures = {c: self._content(c, sides[c]) for c in striking}
            new = [(best[c].chance, c) for c in striking if self._may_be_drawn_from_the_data(pictures[c])]
            if not new:
                break
            chance, leader = min(new)
            settled[leader] = self._describe(leader, sides[leader], chance, pictures[leader], named=True)
            self._settle(leader, sides[leader], settled)
        clean = sorted((c for c in best if c not in settled), key=lambda c: (best[c].chance, -best[c].cut.statistic, c))
        told = sorted(settled.values(), key=lambda one: one.chance)[: self.around.naming.described]
        for concept in clean[: self.around.naming.described - len(told)]:
            own = self._sides(concept, best[concept])
            told.append(self._describe(concept, own, best[concept].chance, self._content(concept, own), named=False))
        return told

    def _rows(self, concept: int) -> np.ndarray:
        rows = column_rows(self.members, concept)
        return each_picture(rows[~self.taken[rows]], self.ranks, self.files)

    def _best(self) -> dict[int, Clearest]:
        """Return how each concept is cut in the view that shows it most clearly."""
        views = self.around.views
        statistics = np.array(
            [[-1.0 if cut is None else cut.statistic for cut in seen] for seen in self.found.values()]
        ).reshape(len(self.found), len(views))
        chances = np.stack([tail_chances(column) for column in statistics.T], axis=1)
        clearest = np.lexsort((-statistics, chances), axis=1)[:, :1].ravel()
        best = {}
        for row, (concept, seen) in enumerate(self.found.items()):
            view = int(clearest[row])
            cut = seen[view]
            assert cut is not None
            chance = -float(np.expm1(len(views) * np.log1p(-min(chances[row, view], 1 - 1e-12))))
            best[concept] = Clearest(cut, views[view], chance)
        return best

    def _sides(self, concept: int, clearest: Clearest) -> TwoSides:
        """Return both sides of a concept, with a direction in all layers."""
        sides = clearest.cut.sides(self.inside(concept)[:, clearest.view].astype(np.float32))
        direction = np.zeros(self.around.outside.shape[1])
        direction[clearest.view] = sides.direction
        return replace(sides, direction=direction)

    def _describe(self, concept: int, sides: TwoSides, chance: float, pictures: Pictures, *, named: bool) -> Divided:
        diversity = mean_diversity(self.contents, unit_variance(pictures[0]))
        return Divided(concept, sides, chance, diversity, spread(*pictures), named)

    def _may_be_drawn_from_the_data(self, pictures: Pictures) -> bool:
        """Return whether the pictures of the foreign side may come from everywhere, as poison does.

        Those of a natural sub-mode may not vary enough, as product shots, or more than the data do, as jellyfish of all colours.
        No more pictures drawn from the data are refused for the second than concepts are named wrongly.
        """
        if spread(*pictures) < self.around.naming.least_spread:
            return False
        whole = np.split(self.around.outside.astype(np.float64), np.cumsum(self.around.widths)[:-1], axis=1)[
            : len(self.contents)
        ]
        return (
            draws_as_diverse(self.contents, unit_variance(pictures[0]), unit_variance(whole)) > self.around.naming.rate
        )

    def _content(self, concept: int, sides: TwoSides) -> Pictures:
        """Return the layers in which content is read, of the pairs on the foreign side and of the others."""
        inside = self.inside(concept).astype(np.float64)
        foreign = sides.positions(inside) >= sides.cut
        ends = np.cumsum(self.around.widths)[:-1]
        parts = (np.split(inside[side], ends, axis=1)[: len(self.contents)] for side in (foreign, ~foreign))
        first, second = parts
        return first, second

    def _settle(self, leader: int, sides: TwoSides, settled: Collection[int]) -> None:
        """Leave the pairs on a named concept's foreign side out of the others."""
        rows = column_rows(self.members, leader)
        foreign = rows[sides.positions(self.draw.rows(rows)) >= sides.cut]
        self.taken[foreign] = True
        touched = np.unique(self.members[foreign].tocsr().indices).tolist()
        again = [concept for concept in touched if concept not in settled]
        for concept in again:
            self.found.pop(concept, None)
        self.found |= self.around.look(again, self.inside)


def unit_variance(layers: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return whitened layers `[n, P]`, of mean square about 1 a row, as of about 1 a column."""
    return [layer * np.sqrt(layer.shape[1]) for layer in layers]


def spread(foreign: Sequence[np.ndarray], native: Sequence[np.ndarray]) -> float:
    """Return the variance of the pictures on the foreign side over that of the others, a mean over the layers `[n, P]` of each."""
    if len(foreign[0]) < MIN_SIDE or len(native[0]) < MIN_SIDE:
        return 0.0
    pairs = zip(foreign, native, strict=True)
    return float(np.mean([variance(z) / max(variance(rest), FINEST) for z, rest in pairs]))


def variance(values: np.ndarray) -> float:
    """Return the mean variance of the columns of `[n, P]`."""
    return float(values.var(axis=0).mean())


def each_picture(rows: np.ndarray, ranks: np.ndarray, files: np.ndarray) -> np.ndarray:
    """Return some rows by rising rank, of each picture the first alone: what one half of a concept learns of a picture the other
    half would find again in its copies, and call it a side."""
    rows = rows[np.argsort(ranks[rows])]
    return np.asarray(rows[np.sort(np.unique(files[rows], return_index=True)[1])])


def column_rows(members: sp.csc_matrix, concept: int) -> np.ndarray:
    """Return the rows of one concept's pairs."""
    return np.asarray(members.indices[members.indptr[concept] : members.indptr[concept + 1]])
