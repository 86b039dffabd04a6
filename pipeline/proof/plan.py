"""What is to be proven: which pairs the oracle examines, on which pictures triggers are tried, whose groups are compared."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipsan.stages.detectors import Findings
from clipsan.stages.proof.selection import ChoiceLimits, select

from ..core.parts import Parts
from .inquiry import ProofConfig

HELD_OUT_DRAW, GROUP_DRAW = 1, 2
"""Keep the draws of different purposes apart."""

Picked = dict[int, list[str]]
"""Uids by index of their unit."""
Claims = dict[int, dict[str, str]]
"""Index of a unit -> uid -> the concept that the statistics accuse the pair of."""


@dataclass(frozen=True, slots=True)
class Group:
    """Pairs of one concept, to be compared with pictures of others."""

    concept: str
    flagged: Picked
    rest: Picked

    @staticmethod
    def uids(side: Picked) -> list[str]:
        """Return all uids of one side, in the order of the data set."""
        return [uid for index in sorted(side) for uid in side[index]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What the passes after the statistics work on."""

    claims: Claims
    held_out: Picked
    """Inconspicuous pairs on whose pictures triggers are tried."""
    groups: tuple[Group, ...]

    @property
    def examined(self) -> int:
        """Number of pairs that the oracle examines."""
        return sum(len(claims) for claims in self.claims.values())

    @property
    def pictures(self) -> dict[int, set[str]]:
        """Unit -> uids whose pixels the passes need."""
        wanted: dict[int, set[str]] = {}
        for picked in (self.held_out, *(side for g in self.groups for side in (g.flagged, g.rest))):
            for index, uids in picked.items():
                wanted.setdefault(index, set()).update(uids)
        return wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The columns that decide, of all pairs in the order of the data set: 10 bytes a pair."""

    parts: Parts
    names: tuple[str, ...]
    """The concepts that the captions name, by falling statistic."""
    statistics: np.ndarray
    """Of each, `[C] float64`."""
    ensemble: np.ndarray
    spectral: np.ndarray
    concept: np.ndarray
    """`[N] int16`, position in `names`; -1: none."""

    @classmethod
    def read(cls, parts: Parts, findings: Findings) -> "Scores":
        """Read `ensemble`, `concept_spectral` and `concept` of all parts."""
        known = set(findings.vocabulary.names)
        concepts = [concept for concept in findings.concepts if concept["name"] in known]
        names = tuple(concept["name"] for concept in concepts)
        position = {name: i for i, name in enumerate(names)}
        ensemble, spectral, concept = [np.empty(0, np.float32)], [np.empty(0, np.float32)], [np.empty(0, np.int16)]
        for table in parts.tables(["ensemble", "concept_spectral", "concept"]):
            ensemble.append(table.column("ensemble").to_numpy())
            spectral.append(table.column("concept_spectral").to_numpy())
            accused = (position.get(name, -1) for name in table.column("concept").to_pylist())
            concept.append(np.fromiter(accused, np.int16, table.num_rows))
        return cls(
            parts=parts,
            names=names,
            statistics=np.array([concept["statistic"] for concept in concepts], np.float64),
            ensemble=np.concatenate(ensemble),
            spectral=np.concatenate(spectral),
            concept=np.concatenate(concept),
        )

    def members(self, concept: int) -> np.ndarray:
        """Return the rows of a concept, the most suspicious first."""
        rows = np.flatnonzero(self.concept == concept)
        by_score: np.ndarray = rows[np.argsort(-self.spectral[rows], kind="stable")]
        return by_score

    def uids(self, rows: np.ndarray) -> list[tuple[int, list[str], np.ndarray]]:
        """Return (part, uids, rows) of ascending rows, for each part that holds any."""
        ends = np.cumsum(list(self.parts.rows.values()), dtype=np.int64)
        blocks = np.split(rows, np.searchsorted(rows, ends[:-1]))
        found = []
        for index, end, own in zip(self.parts.rows, ends.tolist(), blocks, strict=True):
            if len(own):
                column = self.parts.read(index, ["uid"]).column("uid")
                first = end - self.parts.rows[index]
                found.append((index, column.take(own - first).to_pylist(), own))
        return found

    def rows_of(self, wanted: Collection[str]) -> dict[str, int]:
        """Return the row of each wanted uid."""
        found: dict[str, int] = {}
        start = 0
        for table in self.parts.tables(["uid"]) if wanted else ():
            there = pc.is_in(table.column("uid"), value_set=pa.array(sorted(wanted), pa.string())).to_numpy()
            places = np.flatnonzero(there)
            uids = table.column("uid").take(pa.array(places)).to_pylist()
            found |= dict(zip(uids, (start + places).tolist(), strict=True))
            start += table.num_rows
        return found

    def picked(self, rows: np.ndarray) -> Picked:
        """Return the uids of some rows, in any order, by their unit."""
        return {index: uids for index, uids, _ in self.uids(np.sort(rows))}

    def claims(self, rows: np.ndarray) -> Claims:
        """Return what some rows, in any order, are accused of."""
        return {
            index: dict(zip(uids, [self.names[c] for c in self.concept[own]], strict=True))
            for index, uids, own in self.uids(np.sort(rows))
        }


def plan_proof(parts: Parts, findings: Findings, cut: float, settings: ProofConfig, seed: int) -> Selection:
    """Choose from the scores.

    Of concepts that a detector has divided both sides are examined, whatever it takes for poison and whatever their statistic, with
    half of the budget at most; the rest is chosen by `select`.

    Args:
        parts: of the scores: `uid`, `ensemble`, `concept_spectral` and `concept`.
        findings: the concepts with their statistics.
        cut: ensemble score from which a pair is flagged.
        settings: how many of each.
        seed: of the held-out pictures and of the unflagged sides.
    """
    scores = Scores.read(parts, findings)
    names = scores.names
    targets = set(findings.targets)
    named = np.array([name in targets for name in names], bool)
    count = max(1, round(settings.budget * len(scores.ensemble)))
    sides = _handed_over(scores, findings, settings)
    own = _both_sides(sides, count // 2, settings.limits.choice.leading)
    rows = select(
        scores.ensemble,
        scores.spectral,
        scores.concept,
        statistics=scores.statistics,
        named=named,
        cut=cut,
        count=count - len(own),
        leading=settings.limits.choice.leading,
        other_side=settings.limits.choice.other_side,
    )
    median = float(np.median(scores.ensemble)) if len(scores.ensemble) else 0.0
    calm = np.flatnonzero(scores.ensemble <= median)
    calm = calm[~np.isin(calm, [*rows, *own])]
    order = _order(names, findings.targets, list(sides), scores.statistics)
    groups = []
    for c in order[: settings.groups]:
        flagged, rest = (
            sides[names[c]] if names[c] in sides else _sides(scores, c, cut if named[c] else np.inf, settings)
        )
        if len(flagged):
            drawn = _draw(rest, settings.group_size, (seed, GROUP_DRAW, c))
            groups.append(Group(names[c], scores.picked(flagged[: settings.group_size]), scores.picked(drawn)))
    held_out = scores.picked(_draw(calm, settings.held_out, (seed, HELD_OUT_DRAW)))
    claims = scores.claims(rows)
    for index, uids, found in scores.uids(np.array(sorted(own), int)):
        claims.setdefault(index, {}).update({uid: own[row] for uid, row in zip(uids, found.tolist(), strict=True)})
    return Selection(claims=claims, held_out=held_out, groups=tuple(groups))


def _order(names: Sequence[str], targets: Sequence[str], divided: Sequence[str], statistics: np.ndarray) -> list[int]:
    """Return the positions of all concepts, those that are compared first: the named ones, then in turn the next that its sides make
    suspicious and the next by its statistic."""
    by_sides = [names.index(name) for name in divided]
    by_statistic = np.argsort(-statistics, kind="stable").tolist()
    in_turn = (c for both in zip_longest(by_sides, by_statistic) for c in both if c is not None)
    return list(dict.fromkeys([*(names.index(name) for name in targets if name in names), *in_turn]))


def _handed_over(scores: Scores, findings: Findings, settings: ProofConfig) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the rows of both sides of the concepts that a detector has divided, the one it takes for poison first."""
    known = set(scores.names)
    splits = [split for split in findings.splits if split.concept in known][: settings.limits.choice.leading]
    place = scores.rows_of({uid for split in splits for side in (split.poison, split.genuine) for uid in side.uids})
    return {
        split.concept: (
            np.array([place[uid] for uid in split.poison.uids], int),
            np.array([place[uid] for uid in split.genuine.uids], int),
        )
        for split in splits
    }


def _both_sides(sides: Mapping[str, tuple[np.ndarray, np.ndarray]], count: int, leading: int) -> dict[int, str]:
    """Return which rows of them are examined for which concept: equal shares, half of each from either side; `count` at most."""
    share = count // (2 * max(1, min(leading, len(sides))))
    chosen: dict[int, str] = {}
    for concept, both in sides.items():
        for side in both:
            chosen |= {row: concept for row in side[:share].tolist() if row not in chosen}
    return chosen


def follow(parts: Parts, findings: Findings, claims: Sequence[str], examined: set[str], *, count: int) -> Claims:
    """Return the pairs to examine next: of each claim the `count` most suspicious ones that are left.

    Args:
        parts: as for plan_proof.
        findings: the concepts.
        claims: concepts some of whose pairs have been proven to rest on a trigger.
        examined: uids that the oracle has seen.
        count: pairs of each claim.
    """
    scores = Scores.read(parts, findings)
    found: Claims = {}
    for claim in claims:
        members = scores.members(scores.names.index(claim))
        seen = [own[[uid in examined for uid in uids]] for _, uids, own in scores.uids(np.sort(members))]
        fresh = members[~np.isin(members, np.concatenate(seen or [members]))]
        for index, own in scores.claims(fresh[:count]).items():
            found.setdefault(index, {}).update(own)
    return found


def paying(claims: Sequence[str], proven: Sequence[bool], limits: ChoiceLimits) -> list[str]:
    """Return the claims, sorted, of which enough pairs of a round were proven that the next ones are worth a look."""
    seen = Counter(claims)
    hits = Counter(claim for claim, hit in zip(claims, proven, strict=True) if hit)
    return sorted(claim for claim, number in hits.items() if number >= limits.paying_share * seen[claim])


def _sides(scores: Scores, concept: int, cut: float, settings: ProofConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a concept's flagged side, the most suspicious first and at most `group_size`, and all its others."""
    limits = settings.limits.choice
    members = scores.members(concept)
    flagged = members[scores.ensemble[members] >= cut]
    if len(flagged) < limits.least_flagged:
        flagged = members[: max(limits.least_flagged, round(limits.unnamed_share * len(members)))]
    return flagged[: settings.group_size], np.sort(members[~np.isin(members, flagged)])


def _draw(rows: np.ndarray, count: int, seed: Sequence[int]) -> np.ndarray:
    """Draw `count` of the rows, or all."""
    return rows if len(rows) <= count else np.random.default_rng(seed).choice(rows, count, replace=False)
