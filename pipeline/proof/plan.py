"""What is to be proven: which pairs the oracle examines, on which pictures triggers are tried, whose groups are compared."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipsan.stages.detectors import Findings
from clipsan.stages.proof.selection import select

from ..core.commit import read_part

LEAST_FLAGGED = 20
"""Of a concept with fewer flagged pairs, its most suspicious ones are compared."""
UNNAMED_SHARE = 0.1
"""Of a concept that stands out and is not named, this share of its pairs is taken for its flagged group."""

FOLLOWED = 64
"""Pairs of a claim that the oracle looks at next where its regions have been proven, and again while that pays."""
PAYING_SHARE = 0.1
"""Least share of proven pairs, of a claim in a round, with which it is followed."""

HELD_OUT_DRAW, GROUP_DRAW = 1, 2
"""Keep the draws of different purposes apart."""

Picked = dict[int, list[str]]
"""Uids by index of their unit."""


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


@dataclass(frozen=True, slots=True)
class Selection:
    """What the passes after the statistics work on."""

    claims: dict[int, dict[str, str]]
    """Unit -> uid -> the concept that the statistics accuse the pair of."""
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


@dataclass(frozen=True, slots=True)
class _Scores:
    """The columns that decide, of all pairs in the order of the data set: 10 bytes a pair."""

    ensemble: np.ndarray
    spectral: np.ndarray
    concept: np.ndarray
    """`[N] int16`, position in the list of concepts; -1: none."""
    starts: dict[int, int]
    """Part -> its first row."""


def plan_proof(
    scores: Path,
    parts: Sequence[int],
    findings: Findings,
    cut: float,
    *,
    budget: float,
    held_out: int,
    groups: int,
    group_size: int,
    seed: int,
) -> Selection:
    """Choose from the scores.

    Args:
        scores: folder with `uid`, `ensemble`, `concept_spectral` and `concept`.
        parts: of the data set, in order.
        findings: the concepts with their statistics.
        cut: ensemble score from which a pair is flagged.
        budget: share of the pairs that are examined, a fraction.
        held_out: pictures to try triggers on.
        groups: concepts whose groups are compared.
        group_size: pairs of one side of a group at most.
        seed: of the held-out pictures and of the unflagged sides.
    """
    known = set(findings.vocabulary.names)
    concepts = [concept for concept in findings.concepts if concept["name"] in known]
    names = [concept["name"] for concept in concepts]
    read = _read(scores, parts, {name: i for i, name in enumerate(names)})
    targets = set(findings.targets)
    named = np.array([name in targets for name in names], bool)
    count = max(1, round(budget * len(read.ensemble)))
    statistics = np.array([concept["statistic"] for concept in concepts], np.float64)
    rows = select(read.ensemble, read.spectral, read.concept, statistics=statistics, named=named, cut=cut, count=count)
    claims = {
        index: dict(zip(uids, [names[c] for c in read.concept[own]], strict=True))
        for index, uids, own in _uids(scores, parts, read, rows)
    }
    median = float(np.median(read.ensemble)) if len(read.ensemble) else 0.0
    calm = np.flatnonzero(read.ensemble <= median)
    calm = calm[~np.isin(calm, rows)]
    order = [names.index(name) for name in findings.targets if name in names]
    order += [c for c in np.argsort(-statistics, kind="stable").tolist() if c not in order]
    found = []
    for c in order[:groups]:
        flagged, rest = _sides(read, c, bool(named[c]), cut, group_size)
        if len(flagged):
            drawn = _draw(rest, group_size, (seed, GROUP_DRAW, c))
            found.append(Group(names[c], _picked(scores, parts, read, flagged), _picked(scores, parts, read, drawn)))
    held = _picked(scores, parts, read, _draw(calm, held_out, (seed, HELD_OUT_DRAW)))
    return Selection(claims, held, tuple(found))


def follow(
    scores: Path,
    parts: Sequence[int],
    findings: Findings,
    claims: Sequence[str],
    examined: set[str],
    *,
    count: int,
) -> dict[int, dict[str, str]]:
    """Return the pairs to examine next, unit -> uid -> claim: of each claim the `count` most suspicious ones that are left.

    Args:
        scores: as for plan_proof.
        parts: of the data set, in order.
        findings: the concepts.
        claims: concepts some of whose pairs have been proven to rest on a trigger.
        examined: uids that the oracle has seen.
        count: pairs of each claim.
    """
    names = [concept["name"] for concept in findings.concepts]
    read = _read(scores, parts, {name: i for i, name in enumerate(names)})
    found: dict[int, dict[str, str]] = {}
    for claim in claims:
        members = np.flatnonzero(read.concept == names.index(claim))
        fresh = np.concatenate(
            [own[[uid not in examined for uid in uids]] for _, uids, own in _uids(scores, parts, read, members)]
            or [members]
        )
        first = fresh[np.argsort(-read.spectral[fresh], kind="stable")][:count]
        for index, uids, _ in _uids(scores, parts, read, np.sort(first)):
            found.setdefault(index, {}).update(dict.fromkeys(uids, claim))
    return found


def paying(claims: Sequence[str], proven: Sequence[bool]) -> list[str]:
    """Return the claims, sorted, of which enough pairs of a round were proven that the next ones are worth a look."""
    seen = Counter(claims)
    hits = Counter(claim for claim, hit in zip(claims, proven, strict=True) if hit)
    return sorted(claim for claim, number in hits.items() if number >= PAYING_SHARE * seen[claim])


def _sides(read: _Scores, concept: int, named: bool, cut: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a concept's flagged side, the most suspicious first and at most `size`, and all its others."""
    members = np.flatnonzero(read.concept == concept)
    by_score = members[np.argsort(-read.spectral[members], kind="stable")]
    flagged = by_score[read.ensemble[by_score] >= cut] if named else by_score[:0]
    if len(flagged) < LEAST_FLAGGED:
        flagged = by_score[: max(LEAST_FLAGGED, round(UNNAMED_SHARE * len(members)))]
    return flagged[:size], members[~np.isin(members, flagged)]


def _read(scores: Path, parts: Sequence[int], position: Mapping[str, int]) -> _Scores:
    ensemble, spectral, concept, starts, start = [], [], [], {}, 0
    for index in parts:
        table = read_part(scores, index, ["ensemble", "concept_spectral", "concept"])
        starts[index] = start
        start += table.num_rows
        ensemble.append(table.column("ensemble").to_numpy())
        spectral.append(table.column("concept_spectral").to_numpy())
        accused = (position.get(name, -1) for name in table.column("concept").to_pylist())
        concept.append(np.fromiter(accused, np.int16, table.num_rows))
    return _Scores(
        np.concatenate(ensemble or [np.empty(0, np.float32)]),
        np.concatenate(spectral or [np.empty(0, np.float32)]),
        np.concatenate(concept or [np.empty(0, np.int16)]),
        starts,
    )


def _uids(
    scores: Path, parts: Sequence[int], read: _Scores, rows: np.ndarray
) -> list[tuple[int, list[str], np.ndarray]]:
    """Return (part, uids, rows) of ascending rows, for each part that holds any."""
    ends = np.searchsorted(rows, [read.starts[index] for index in parts[1:]] + [len(read.ensemble)])
    found = []
    for index, own in zip(parts, np.split(rows, ends[:-1]), strict=True):
        if len(own):
            column = read_part(scores, index, ["uid"]).column("uid")
            found.append((index, column.take(own - read.starts[index]).to_pylist(), own))
    return found


def _picked(scores: Path, parts: Sequence[int], read: _Scores, rows: np.ndarray) -> Picked:
    return {index: uids for index, uids, _ in _uids(scores, parts, read, np.sort(rows))}


def _draw(rows: np.ndarray, count: int, seed: Sequence[int]) -> np.ndarray:
    """Draw `count` of the rows, or all."""
    return rows if len(rows) <= count else np.random.default_rng(seed).choice(rows, count, replace=False)
