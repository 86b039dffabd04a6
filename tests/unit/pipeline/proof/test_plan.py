"""What is chosen to be proven: the same whatever the units, within the budget, with nothing suspicious among the held-out."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipsan.pipeline.core.commit import write_part
from clipsan.pipeline.core.parts import Parts
from clipsan.pipeline.proof.inquiry import ProofConfig
from clipsan.pipeline.proof.plan import Group, Selection, follow, paying, plan_proof
from clipsan.stages.captions import Vocabulary
from clipsan.stages.detectors import Findings
from clipsan.stages.detectors.concept_sides import ConceptSplit, Side
from clipsan.stages.proof.selection import ChoiceLimits

N, FLAGGED, CUT = 400, 30, 1.0


def findings() -> Findings:
    names = ("banana", "dog", "cat")
    concepts = [{"name": name, "n": 100, "statistic": s} for name, s in zip(names, (0.9, 0.4, 0.3), strict=True)]
    concepts.append({"name": "(no concept)", "n": 100, "statistic": 0.8})
    return Findings(
        targets=("banana",),
        concepts=concepts,
        concept_threshold=0.7,
        threshold=CUT,
        calibration="",
        mixture_speaks=False,
        detectors={},
        vocabulary=Vocabulary(names, {name: i for i, name in enumerate(names)}, 1),
    )


def write_scores(folder: Path, parts: int) -> None:
    rng = np.random.default_rng(0)
    ensemble = rng.random(N).astype(np.float32) * 0.9
    concept = np.array(["banana", "dog", "cat", "(no concept)"])[np.arange(N) % 4].tolist()
    for row in range(0, 4 * FLAGGED, 4):
        ensemble[row] = 1.5 + row / 1000
    table = pa.table(
        {
            "uid": [f"u{row:03d}" for row in range(N)],
            "ensemble": ensemble,
            "concept_spectral": ensemble * 2,
            "concept": pa.array([None if row == 5 else name for row, name in enumerate(concept)], pa.string()),
        }
    )
    for index, rows in enumerate(np.array_split(np.arange(N), parts)):
        write_part(folder, index, table.take(rows), "m")


def choose(folder: Path, parts: int = 3, seed: int = 0) -> Selection:
    write_scores(folder, parts)
    settings = ProofConfig(budget=0.1, held_out=40, groups=2, group_size=25)
    return plan_proof(Parts.of(folder), findings(), CUT, settings, seed)


def test_the_flagged_pairs_are_examined_with_their_claims(tmp_path: Path) -> None:
    chosen = choose(tmp_path)
    claims = {uid: claim for unit in chosen.claims.values() for uid, claim in unit.items()}
    assert chosen.examined == len(claims) == 40
    flagged = {f"u{row:03d}" for row in range(0, 4 * FLAGGED, 4)}
    assert flagged <= claims.keys()
    assert {claims[uid] for uid in flagged} == {"banana"}
    assert set(claims.values()) <= {"banana", "dog", "cat"}
    assert "u005" not in claims


def test_held_out_pictures_are_calm_pairs(tmp_path: Path) -> None:
    chosen = choose(tmp_path)
    held = set(Group.uids(chosen.held_out))
    assert len(held) == 40
    examined = {uid for unit in chosen.claims.values() for uid in unit}
    assert not held & examined
    assert choose(tmp_path / "again").held_out == chosen.held_out
    assert choose(tmp_path / "other", seed=1).held_out != chosen.held_out


@pytest.mark.parametrize("parts", [1, 7])
def test_the_units_play_no_part(tmp_path: Path, parts: int) -> None:
    one, many = choose(tmp_path / "a"), choose(tmp_path / "b", parts=parts)
    assert {u for c in one.claims.values() for u in c} == {u for c in many.claims.values() for u in c}
    assert sorted(Group.uids(one.held_out)) == sorted(Group.uids(many.held_out))
    for a, b in zip(one.groups, many.groups, strict=True):
        assert (a.concept, sorted(Group.uids(a.flagged))) == (b.concept, sorted(Group.uids(b.flagged)))
        assert sorted(Group.uids(a.rest)) == sorted(Group.uids(b.rest))


def test_groups_are_bounded_and_their_sides_apart(tmp_path: Path) -> None:
    first, second = choose(tmp_path).groups
    assert [first.concept, second.concept] == ["banana", "dog"]
    for group in (first, second):
        flagged, rest = set(Group.uids(group.flagged)), set(Group.uids(group.rest))
        assert len(rest) == 25
        assert not flagged & rest
    # the 25 most suspicious of 30 flagged; of a concept that is not named, its most suspicious pairs
    assert set(Group.uids(first.flagged)) == {f"u{row:03d}" for row in range(20, 4 * FLAGGED, 4)}
    assert len(Group.uids(second.flagged)) == ChoiceLimits().least_flagged


def test_concept_that_its_sides_make_suspicious_is_compared_before_one_by_its_statistic(tmp_path: Path) -> None:
    write_scores(tmp_path, 3)
    hashes = np.arange(3, dtype=np.uint64)
    sides = (Side(3, hashes, ("u002", "u006", "u010")), Side(3, hashes, ("u014", "u018", "u022")))
    split = ConceptSplit("cat", 50.0, 0.001, 0.5, 0.2, False, *sides)
    handed = dataclasses.replace(findings(), splits=(split,))
    for count, compared in ((2, ["banana", "cat"]), (3, ["banana", "cat", "dog"])):
        settings = ProofConfig(budget=0.1, held_out=40, groups=count, group_size=25)
        groups = plan_proof(Parts.of(tmp_path), handed, CUT, settings, 0).groups
        assert [group.concept for group in groups] == compared
        assert sorted(Group.uids(groups[1].flagged)) == ["u002", "u006", "u010"]


def test_both_sides_of_a_divided_concept_are_examined_and_compared(tmp_path: Path) -> None:
    write_scores(tmp_path, 3)
    # u005 has no concept by the scores; the detector of sides knows better.
    poison, genuine = ("u005", "u101", "u013", "u201"), ("u017", "u105", "u209")
    hashes = np.arange(9, dtype=np.uint64)
    split = ConceptSplit("dog", 0.1, 0.5, 0.5, 1.0, False, Side(4, hashes[:4], poison), Side(3, hashes[:3], genuine))
    other = dataclasses.replace(split, concept="no concept of the scores")
    settings = ProofConfig(budget=0.1, held_out=40, groups=2, group_size=25)
    handed = dataclasses.replace(findings(), splits=(split, other))
    chosen = plan_proof(Parts.of(tmp_path), handed, CUT, settings, 0)
    claims = {uid: claim for unit in chosen.claims.values() for uid, claim in unit.items()}
    assert {claims[uid] for uid in (*poison, *genuine)} == {"dog"}
    assert chosen.examined <= 40
    assert set(claims) >= {f"u{row:03d}" for row in range(20, 4 * FLAGGED, 4)}, (
        "the flagged pairs of named concepts as well"
    )
    assert not set(Group.uids(chosen.held_out)) & set(claims)
    (group,) = [group for group in chosen.groups if group.concept == "dog"]
    assert set(Group.uids(group.flagged)) == set(poison)
    assert set(Group.uids(group.rest)) == set(genuine)


def test_a_proven_claim_is_followed_by_its_own_score(tmp_path: Path) -> None:
    write_scores(tmp_path, 3)
    bananas = [f"u{row:03d}" for row in range(0, N, 4)]
    examined = set(bananas[:30:2])
    found = follow(Parts.of(tmp_path), findings(), ["banana"], examined, count=10)
    claims = {uid: claim for unit in found.values() for uid, claim in unit.items()}
    assert set(claims.values()) == {"banana"}
    # the flagged ones have the highest scores, the later the higher
    assert set(claims) == set(bananas[11:30:2])
    assert sorted(found) == [index for index in sorted(found) if found[index]]
    everything = follow(Parts.of(tmp_path), findings(), ["banana"], set(bananas), count=10)
    assert everything == {}


def test_a_claim_pays_from_a_tenth_of_proven_pairs_on() -> None:
    claims = ["banana"] * 10 + ["dog"] * 11 + ["cat"] * 3
    proven = [True] + 9 * [False] + [True] + 10 * [False] + 3 * [False]
    assert paying(claims, proven, ChoiceLimits()) == ["banana"]
    assert paying([], [], ChoiceLimits()) == []
