"""The filter of a training, through real tars and the webdataset library's own reader."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from clipsan.stages.files import PathError
from clipsan.stages.samples import hash_uid, uid_array, uid_rows
from clipsan.stages.selection import ALLOWED, FLAGGED, REJECTED, Selection, UnknownPair
from tests.conftest import add_member, caption, picture, write_shards

OWN = "0123456789abcdef" * 2
FATES = {
    "a/00000.tar/000000": "kept",
    "a/00000.tar/000001": "flagged",
    "a/00000.tar/000002": "rejected",
    "a/00000.tar/sub/000003": "kept",
    OWN: "flagged",
}


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """A tar with a pair of each fate, the last known by a uid of its own."""
    path = tmp_path / "pairs" / "00000.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as file:
        for number, key in enumerate(["000000", "./000001", "000002", "sub/000003", "000004"]):
            add_member(file, f"{key}.png", picture(number))
            add_member(file, f"{key}.txt", caption(number).encode())
            if number == 4:
                add_member(file, f"{key}.json", json.dumps({"uid": OWN}).encode())
    return path


def save(folder: Path, fates: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, fate in ((ALLOWED, "kept"), (FLAGGED, "flagged"), (REJECTED, "rejected")):
        uids = [uid if uid == OWN else hash_uid(uid) for uid, own in fates.items() if own == fate]
        np.save(folder / name, uid_array([uid_rows(uids)]))
    return folder


@pytest.fixture
def lists(tmp_path: Path) -> str:
    return str(save(tmp_path / "run", FATES))


def keys(tar: Path | str, kept: Selection, *after: object) -> list[str]:
    stages = [wds.SimpleShardList([str(tar)]), wds.tarfile_to_samples(), kept, *after]
    return [sample["__key__"] for sample in wds.DataPipeline(*stages)]


def test_a_pipeline_passes_on_what_was_kept(tar: Path, lists: str):
    kept = Selection(lists, {str(tar): "a/00000.tar"})
    assert keys(tar, kept, wds.decode("pil")) == ["000000", "sub/000003"]
    assert kept.counts == {"kept": 2, "flagged": 2, "rejected": 1}


@pytest.mark.parametrize("prefix", ["file:", "pipe:cat "])
def test_a_shard_is_known_however_the_loader_opens_it(tar: Path, lists: str, prefix: str):
    assert keys(f"{prefix}{tar}", Selection(lists, {str(tar): "a/00000.tar"})) == ["000000", "sub/000003"]


def test_a_uid_of_its_own_is_read_before_and_after_decoding(tar: Path, lists: str):
    kept = Selection(lists, {str(tar): "a/00000.tar"})
    stages = [wds.SimpleShardList([str(tar)]), wds.tarfile_to_samples(), wds.decode("pil")]
    samples = list(wds.DataPipeline(*stages))
    assert kept.uid_of(samples[-1]) == OWN
    assert [sample["__key__"] for sample in kept(samples)] == ["000000", "sub/000003"]


def test_an_unknown_pair_is_an_error_or_counted(tar: Path, tmp_path: Path):
    lists = str(save(tmp_path / "run", {uid: fate for uid, fate in FATES.items() if fate != "rejected"}))
    with pytest.raises(UnknownPair, match=r"a/00000.tar/000002: the scan in .* knows no such pair"):
        keys(tar, Selection(lists, {str(tar): "a/00000.tar"}))
    kept = Selection(lists, {str(tar): "a/00000.tar"}, unknown="drop")
    assert keys(tar, kept) == ["000000", "sub/000003"]
    assert kept.counts["unknown"] == 1
    with pytest.raises(UnknownPair, match=r"name the shards that you read with data="):
        keys(tar, Selection(lists, {"/elsewhere/00000.tar": "a/00000.tar"}))


def test_a_key_that_stood_twice_is_dropped_whole(tar: Path, tmp_path: Path):
    lists = Path(save(tmp_path / "run", FATES))
    twice = [hash_uid("a/00000.tar/000000"), hash_uid("a/00000.tar/000002")]
    np.save(lists / REJECTED, uid_array([uid_rows(twice)]))
    assert keys(tar, Selection(str(lists), {str(tar): "a/00000.tar"})) == ["sub/000003"]


def test_rows_of_a_map_style_data_set(lists: str):
    kept = Selection(lists, {})
    rows = kept.of(list("abcde"), list(FATES))
    assert [rows[i] for i in range(len(rows))] == ["a", "d"]
    with pytest.raises(ValueError, match="4 uids for 5 rows"):
        kept.of(list("abcde"), list(FATES)[:4])
    with pytest.raises(UnknownPair):
        kept.of(["a"], ["a/00000.tar/other"])


def test_it_travels_to_the_workers_of_a_loader_without_its_lists(tmp_path: Path):
    folder = write_shards(tmp_path / "pairs", shards=1, pairs=500)
    uids = [f"00000.tar/{i:06d}" for i in range(500)]
    flagged = set(np.random.default_rng(0).choice(uids, 100, replace=False).tolist())
    lists = save(tmp_path / "run", {uid: "flagged" if uid in flagged else "kept" for uid in uids})
    kept = Selection(str(lists), {str(folder / "00000.tar"): "00000.tar"})
    assert len(keys(folder / "00000.tar", kept)) == 400
    sent = pickle.dumps(kept)
    assert len(sent) < 1000
    there: Selection = pickle.loads(sent)
    assert keys(folder / "00000.tar", there) == [uid[10:] for uid in uids if uid not in flagged]


def test_lists_of_another_kind_are_refused(tmp_path: Path):
    with pytest.raises(PathError, match="run the scan again"):
        Selection(str(tmp_path), {}).fate("a/b")
    for name in (ALLOWED, FLAGGED, REJECTED):
        file = io.BytesIO()
        np.save(file, np.zeros(3))
        (tmp_path / name).write_bytes(file.getvalue())
    with pytest.raises(PathError, match="no list of uids"):
        Selection(str(tmp_path), {}).fate("a/b")
