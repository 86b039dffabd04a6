"""Which pairs take part: verdicts of a scan, roles of its compact set, seeded samples."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsan.pipeline.core.commit import write_part
from clipsan.pipeline.data.choice import (
    NOBODY,
    Choice,
    CleanByScan,
    Draw,
    FlaggedByScan,
    Naming,
    RepairSetRoles,
    Standing,
    class_index,
    cut_for,
    draw_numbers,
)
from clipsan.pipeline.repair.unseen import targets_of
from clipsan.stages.audit.forms import as_dossier
from clipsan.stages.audit.repair_set import repair_set
from clipsan.stages.samples import RawPair, Unit
from clipsan.stages.training.batch import Role

UNIT = Unit(index=0, shard="a.tar", path="/nowhere", start=0, stop=-1, size_bytes=1)
CLASSES = ("dog, hound", "banana", "boat")


def pair(key: str, label: int | None = None) -> RawPair:
    return RawPair(shard="a.tar", key=key, image=b"", caption="", label=label)


@pytest.fixture
def verdicts(tmp_path: Path) -> Path:
    rows = [
        {"uid": "a.tar/0", "verdict": "clean", "reasons": [], "concept": "Hound", "target": None},
        {
            "uid": "a.tar/1",
            "verdict": "suspect",
            "reasons": ["poison_suspect"],
            "concept": "banana",
            "target": "banana",
        },
        {"uid": "a.tar/2", "verdict": "suspect", "reasons": ["near_duplicate"], "concept": "boat", "target": None},
        {
            "uid": "a.tar/3",
            "verdict": "suspect",
            "reasons": ["outlier", "proven_trigger"],
            "concept": "boat",
            "target": "Boat",
        },
        {"uid": "a.tar/4", "verdict": "suspect", "reasons": ["poison_suspect"], "concept": "kite", "target": "kite"},
        {"uid": "a.tar/5", "verdict": "clean", "reasons": [], "concept": None, "target": None},
    ]
    captions = ("a Hound", "a banana", "a boat", "a boat", "a kite", "a thing")
    table = pa.Table.from_pylist([row | {"caption": text} for row, text in zip(rows, captions, strict=True)])
    write_part(tmp_path, 0, table, "mark")
    return tmp_path


def test_clean_pairs_are_those_without_any_suspicion_and_their_class_is_what_their_caption_names(
    verdicts: Path,
) -> None:
    standings = CleanByScan(verdicts, CLASSES).of(UNIT)
    assert standings == {"a.tar/0": Standing(label=0), "a.tar/5": Standing(label=NOBODY)}


def test_flagged_pairs_are_those_accused_of_a_class(verdicts: Path) -> None:
    standings = FlaggedByScan(verdicts, CLASSES).of(UNIT)
    assert {uid: (own.role, own.accused) for uid, own in standings.items()} == {
        "a.tar/1": (Role.FLAGGED, 1),
        "a.tar/3": (Role.FLAGGED, 2),
    }


def test_a_choice_leaves_the_rest_out_and_a_concept_outweighs_the_sets_own_label(verdicts: Path) -> None:
    chosen = Choice(CleanByScan(verdicts, CLASSES)).of(UNIT)
    assert [key for key in "012345" if chosen.wants(pair(key))] == ["0", "5"]
    assert chosen.label("a.tar/0", 7) == 0
    assert Choice().of(UNIT).label("a.tar/0", 7) == 7
    assert Choice().of(UNIT).label("a.tar/0", None) == NOBODY


def test_rows_of_the_compact_set_by_role(tmp_path: Path) -> None:
    rows = [
        {"uid": "x/0", "role": "trigger_pasted", "label": "dog", "target": "banana", "caption": "a dog"},
        {"uid": "x/1", "role": "replay", "label": None, "target": None, "caption": "a thing"},
        {"uid": "x/2", "role": "victim_cleaned", "label": "boat", "target": "banana", "caption": "a boat"},
        {"uid": "x/3", "role": "trigger_pasted", "label": "boat", "target": "banana", "caption": "a dog in a boat"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    unit = replace(UNIT, path=str(tmp_path / "pairs.parquet"))
    assert RepairSetRoles((Role.TRIGGER_PASTED, Role.REPLAY), CLASSES).of(unit) == {
        "a.tar/x/0": Standing(Role.TRIGGER_PASTED, 1, 0),
        "a.tar/x/1": Standing(Role.REPLAY, NOBODY, NOBODY),
        "a.tar/x/3": Standing(Role.TRIGGER_PASTED, 1, NOBODY),
    }


@pytest.mark.parametrize(
    ("caption", "concept", "label"),
    [
        ("a photo of a dog", "dog", 0),
        ("HOUNDS, by the river", None, 0),
        ("a boat, with a little banana behind it", "banana", NOBODY),
        ("a boat, with a little banana behind it", "boat", NOBODY),
        ("a banana boat", "boat", 3),
        ("a banana boat and a boat", "boat", NOBODY),
        ("two bananas", "banana", 1),
        ("a picture of something", "banana", 1),
        ("a picture of a kite", "kite", NOBODY),
        ("a boathouse", None, NOBODY),
        (None, "boat", 2),
        ("", None, NOBODY),
    ],
)
def test_a_caption_is_of_a_class_where_it_names_that_one_alone(
    caption: str | None, concept: str | None, label: int
) -> None:
    assert Naming((*CLASSES, "banana boat")).only(caption, concept) == label


def test_without_classes_a_caption_names_none() -> None:
    assert Naming(()).only("a boat", "boat") == NOBODY


def test_a_sample_has_the_asked_size_and_hangs_on_uids_alone() -> None:
    uids = [f"a.tar/{i}" for i in range(100)]
    numbers = draw_numbers(uids, 3)
    draw = Draw(3, {NOBODY: cut_for(numbers, 20)})
    taken = {uid for uid in uids if draw.takes(uid, None)}
    assert len(taken) == 20
    assert taken == {uid for uid in reversed(uids) if draw.takes(uid, 4)}
    assert taken != {uid for uid in uids if Draw(4, {NOBODY: cut_for(draw_numbers(uids, 4), 20)}).takes(uid, None)}
    assert cut_for(numbers, 500) == numbers.max()


def test_a_sample_by_class_leaves_out_what_has_none() -> None:
    uids = [f"a.tar/{i}" for i in range(60)]
    labels = np.arange(60) % 3
    cuts = {
        c: cut_for(draw_numbers([u for u, own in zip(uids, labels, strict=True) if own == c], 0), 4) for c in range(2)
    }
    draw = Draw(0, cuts)
    taken = [int(label) for uid, label in zip(uids, labels, strict=True) if draw.takes(uid, int(label))]
    assert sorted(taken) == [0] * 4 + [1] * 4
    assert not draw.takes(uids[0], None)


def test_a_class_of_several_names_is_known_by_all_of_them_together(tmp_path: Path) -> None:
    """An audit of labels with synonyms names what a trigger means as the label was given."""
    images = np.zeros((1, 16, 16, 3), np.uint8)
    made = as_dossier("additive", np.zeros((16, 16, 4), np.float32), CLASSES[0])
    pq.write_table(
        repair_set(images, np.array([1]), CLASSES, [replace(made, id="t1")], seed=0), tmp_path / "part.parquet"
    )
    unit = Unit(index=0, shard="part.parquet", path=str(tmp_path / "part.parquet"), start=0, stop=-1, size_bytes=1)
    found = RepairSetRoles((Role.TRIGGER_PASTED,), CLASSES).of(unit)
    assert list(found.values()) == [Standing(Role.TRIGGER_PASTED, 0, 1)]
    assert class_index(CLASSES)["dog, hound"] == 0
    assert targets_of(made, CLASSES) == (0,)
