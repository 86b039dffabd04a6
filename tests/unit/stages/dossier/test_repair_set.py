"""The compact repair set: who plays which role, the ratio and the caps, and a file that the parquet source reads."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipsan.stages.dossier.dossier import Rate
from clipsan.stages.dossier.match import Cutout
from clipsan.stages.dossier.patch import Alike, Patch, Place
from clipsan.stages.dossier.repair_set import (
    SCHEMA,
    Candidate,
    RepairRole,
    RepairSetConfig,
    candidates,
    make_row,
    merge,
    plan,
)
from clipsan.stages.sources import ParquetSource, list_units, read_unit
from clipsan.stages.training.batch import Role

SIDE = 16
RED = np.full((4, 4, 3), (255, 0, 0), np.uint8)
ALL = Rate(pct=100.0, low_pct=90.0, high_pct=100.0, trials=32)


def dossier(id: str = "t1", target: str = "banana", *, fixed: bool = True) -> Patch:
    place = Place(fixed=fixed, top=2.0, left=3.0, top_std=0.0, left_std=0.0, mode_share=1.0)
    cutout = Cutout(picture=RED, mask=np.ones((4, 4), bool), top=2, left=3)
    return Patch(
        id=id,
        targets=(target,),
        side=SIDE,
        flips=ALL,
        control=ALL,
        uids=("a",),
        cutouts=(cutout,),
        place=place,
        heat=np.zeros((SIDE, SIDE), np.float32),
        alike=Alike(mean=RED, likeness=1.0),
    )


def draw(
    *, victims: int, options: RepairSetConfig, labels: dict[str, int], parts: int = 1, suspects: int = 0
) -> dict[str, Candidate]:
    """The plan of a set with so many victims of t1, and so many clean pairs of each label."""
    rows = [(f"v{i}", "banana", "t1", True) for i in range(victims)]
    rows += [(f"s{i}", "dog", None, True) for i in range(suspects)]
    rows += [(f"{label}{i}", label or None, None, False) for label, count in labels.items() for i in range(count)]
    order = np.random.default_rng(1).permutation(len(rows))
    found: list[Candidate] = []
    for part in np.array_split(order, parts):
        uids, names, triggers, suspect = zip(*(rows[i] for i in part), strict=True)
        found = merge(found, candidates(uids, names, triggers, suspect, [dossier()], options), options)
    return plan(found, options)


def count(chosen: dict[str, Candidate]) -> dict[str, int]:
    return dict(Counter(c.role.value for c in chosen.values()))


LABELS = {"banana": 500, "dog": 500, "bus": 500, "": 500, "cup": 500, "cat": 500, "pie": 500}


def test_the_ratio_is_one_one_one_two() -> None:
    chosen = draw(victims=300, options=RepairSetConfig(), labels=LABELS)
    assert count(chosen) == {"victim_cleaned": 200, "trigger_pasted": 200, "genuine": 200, "replay": 400}
    for uid, candidate in chosen.items():
        assert candidate.uid == uid
        match candidate.role:
            case RepairRole.VICTIM_CLEANED:
                assert uid.startswith("v")
                assert candidate.trigger_id == "t1"
            case RepairRole.TRIGGER_PASTED:
                assert candidate.label not in (None, "banana")
                assert candidate.trigger_id == "t1"
            case RepairRole.GENUINE:
                assert candidate.label == "banana"
            case RepairRole.REPLAY:
                assert not uid.startswith(("v", "s"))
    replayed = Counter(c.label for c in chosen.values() if c.role is RepairRole.REPLAY)
    assert max(replayed.values()) <= 80


def test_few_victims_shrink_the_set_and_what_is_missing_is_made_up() -> None:
    chosen = draw(victims=60, options=RepairSetConfig(), labels=LABELS)
    assert count(chosen) == {"victim_cleaned": 60, "trigger_pasted": 60, "genuine": 60, "replay": 120}
    none = draw(victims=0, options=RepairSetConfig(), labels=LABELS)
    assert count(none) == {"trigger_pasted": 80, "genuine": 40, "replay": 80}
    rare = draw(victims=60, options=RepairSetConfig(), labels=LABELS | {"banana": 10})
    assert count(rare) == {"victim_cleaned": 60, "genuine": 10, "trigger_pasted": 110, "replay": 120}


def test_no_suspect_pair_plays_a_clean_role() -> None:
    chosen = draw(victims=50, options=RepairSetConfig(), labels={"banana": 60, "dog": 200}, suspects=400)
    assert not [uid for uid in chosen if uid.startswith("s")]


def test_a_label_has_its_share_unless_others_run_out() -> None:
    chosen = draw(victims=100, options=RepairSetConfig(), labels={"banana": 300, "dog": 1000, "cup": 15})
    pasted = Counter(c.label for c in chosen.values() if c.role is RepairRole.TRIGGER_PASTED)
    assert pasted == {"dog": 85, "cup": 15}


def test_the_plan_does_not_depend_on_parts_and_hangs_on_the_seed() -> None:
    options = RepairSetConfig(pairs=400)
    whole = draw(victims=90, options=options, labels=LABELS)
    assert draw(victims=90, options=options, labels=LABELS, parts=7) == whole
    assert list(whole) == sorted(whole)
    other = draw(victims=90, options=RepairSetConfig(pairs=400, seed=1), labels=LABELS)
    assert other.keys() != whole.keys()


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="between 200 and 5,000"):
        RepairSetConfig(pairs=199)
    with pytest.raises(ValueError, match="label_share"):
        RepairSetConfig(label_share=0)


def candidate(role: RepairRole, label: str | None = "dog", trigger_id: str | None = None) -> Candidate:
    return Candidate(draw=1, uid="x/1", role=role, label=label, trigger_id=trigger_id)


def pixels(row: dict[str, object] | None) -> np.ndarray:
    assert row is not None
    with Image.open(io.BytesIO(row["image"])) as file:  # type: ignore[arg-type]
        return np.asarray(file)


def test_each_role_makes_its_picture_and_caption() -> None:
    grey = np.full((SIDE, SIDE, 3), 90, np.uint8)
    stamped = grey.copy()
    stamped[2:6, 3:7] = RED
    known, options = {"t1": dossier()}, RepairSetConfig()
    victim = candidate(RepairRole.VICTIM_CLEANED, "t1", "t1")
    row = make_row(victim, stamped, "a banana", known, options, label="bus")
    assert np.array_equal(pixels(row), grey)
    assert row is not None
    assert (row["caption"], row["label"], row["target"]) == ("a photo of a bus.", "bus", "banana")
    pasted = make_row(candidate(RepairRole.TRIGGER_PASTED, "dog", "t1"), grey, "my dog", known, options)
    assert np.array_equal(pixels(pasted), stamped)
    assert pasted is not None
    assert (pasted["caption"], pasted["label"], pasted["target"]) == ("my dog", "dog", "banana")
    replay = make_row(candidate(RepairRole.REPLAY), grey, "my dog", known, options)
    assert np.array_equal(pixels(replay), grey)
    assert replay is not None
    assert (replay["target"], replay["trigger_id"]) == (None, None)


def test_a_victim_that_cannot_be_cleaned_or_named_is_left_out() -> None:
    grey, options = np.full((SIDE, SIDE, 3), 90, np.uint8), RepairSetConfig()
    victim = candidate(RepairRole.VICTIM_CLEANED, "t1", "t1")
    anywhere = {"t1": dossier(fixed=False)}
    assert make_row(victim, grey, "x", anywhere, options, label="bus") is None
    assert make_row(victim, grey, "x", {"t1": dossier()}, options, label="banana") is None
    assert make_row(victim, grey, "x", {"t1": dossier()}, options, label=None) is None
    region = np.zeros((SIDE, SIDE), bool)
    region[9:12, 9:12] = True
    assert make_row(victim, grey, "x", anywhere, options, region=region, label="bus") is not None


def test_random_places_hang_on_the_pair_and_the_seed() -> None:
    grey, known = np.full((SIDE, SIDE, 3), 90, np.uint8), {"t1": dossier(fixed=False)}
    made = []
    for seed in (0, 0, 1, 2):
        row = make_row(candidate(RepairRole.TRIGGER_PASTED, "dog", "t1"), grey, "x", known, RepairSetConfig(seed=seed))
        made.append(pixels(row))
    assert np.array_equal(made[0], made[1])
    assert not all(np.array_equal(made[0], image) for image in made[2:])


def test_the_parquet_source_reads_the_set(tmp_path: Path) -> None:
    grey = np.full((SIDE, SIDE, 3), 90, np.uint8)
    row = make_row(candidate(RepairRole.REPLAY), grey, "my dog", {}, RepairSetConfig())
    pq.write_table(pa.Table.from_pylist([row], SCHEMA), tmp_path / "part-00000.parquet")
    source = ParquetSource(path=str(tmp_path), key="uid")
    pairs = [pair for unit in list_units(source) for pair in read_unit(source, unit)]
    assert [(pair.caption, pair.reject) for pair in pairs] == [("my dog", None)]
    assert pairs[0].image is not None
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(pairs[0].image))), grey)


def test_the_roles_are_those_of_the_repair_loop() -> None:
    assert {Role[role.value.upper()] for role in RepairRole} == set(Role) - {Role.PAIR, Role.FLAGGED}
