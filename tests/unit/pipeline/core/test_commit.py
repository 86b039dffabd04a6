"""The shard commit: whole or absent, and never of other settings."""

import os
import random
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsan.pipeline.core.commit import (
    DamagedPartError,
    FingerprintError,
    clear_temporary,
    fingerprint,
    missing_parts,
    part_path,
    read_part,
    write_part,
    write_text,
)


def table(value):
    return pa.table({"uid": ["a", "b"], "x": [value, value + 1]})


def test_a_written_part_reads_back_and_counts_as_done(tmp_path):
    write_part(tmp_path, 3, table(1), "mark")
    assert read_part(tmp_path, 3).equals(table(1))
    assert missing_parts(tmp_path, [2, 3, 4], "mark") == [2, 4]


def test_a_part_of_other_settings_is_refused_with_both_fingerprints(tmp_path):
    write_part(tmp_path, 0, table(1), "a" * 64)
    with pytest.raises(FingerprintError, match=r"aaaaaaaaaaaa.*bbbbbbbbbbbb"):
        missing_parts(tmp_path, [0], "b" * 64)


def test_a_torn_write_leaves_nothing_that_counts(tmp_path, monkeypatch):
    def torn(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("clipsan.pipeline.core.commit.os.fsync", torn)
    with pytest.raises(OSError, match="disk full"):
        write_part(tmp_path, 0, table(1), "mark")
    assert list(tmp_path.iterdir()) == []
    assert missing_parts(tmp_path, [0], "mark") == [0]


def test_a_part_is_read_alone_although_the_folder_holds_others(tmp_path):
    write_part(tmp_path, 0, table(1), "mark")
    write_part(tmp_path, 1, table(10), "mark")
    assert read_part(tmp_path, 1, ["x"]).column("x").to_pylist() == [10, 11]


def test_a_fingerprint_depends_on_content_and_not_on_order():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    with pytest.raises(ValueError, match=r"[Oo]ut of range"):
        fingerprint({"a": float("nan")})


def test_any_bit_that_changes_is_noticed_named_and_made_again(tmp_path, capsys):
    path = write_part(tmp_path, 0, table(1), "f" * 64)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(DamagedPartError, match=r"part-00000\.parquet is damaged"):
            read_part(tmp_path, 0, ["x"])
        assert missing_parts(tmp_path, [0], "f" * 64) == [0]
        assert f"{path} is damaged" in capsys.readouterr().err
    assert write_part(tmp_path, 0, table(1), "f" * 64).read_bytes() == whole
    assert missing_parts(tmp_path, [0], "f" * 64) == []


def test_a_large_part_is_checked_everywhere(tmp_path):
    values = random.Random(0)
    columns = {"uid": [f"u{i}" for i in range(5000)], "x": [values.random() for _ in range(5000)]}
    path = write_part(tmp_path, 0, pa.table(columns), "f" * 64)
    whole = path.read_bytes()
    for _ in range(400):
        flipped = bytearray(whole)
        flipped[values.randrange(len(whole))] ^= 1 << values.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(DamagedPartError):
            read_part(tmp_path, 0, ["uid"])


def test_a_truncated_or_empty_part_is_made_again(tmp_path):
    path = write_part(tmp_path, 0, table(1), "f" * 64)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert missing_parts(tmp_path, [0], "f" * 64) == [0]
        with pytest.raises(DamagedPartError):
            read_part(tmp_path, 0)


def test_any_parquet_reader_reads_a_part(tmp_path):
    path = write_part(tmp_path, 0, table(1).replace_schema_metadata({"own": "kept"}), "f" * 64)
    assert pq.read_table(path).equals(table(1))
    assert pq.read_schema(path).metadata[b"own"] == b"kept"
    assert read_part(tmp_path, 0).schema.metadata[b"own"] == b"kept"


def test_a_caption_cannot_stand_for_the_checksum(tmp_path):
    pretended = pa.table({"caption": ["clipsan.sha256" + "0" * 70] * 3})
    write_part(tmp_path, 0, pretended, "f" * 64)
    assert read_part(tmp_path, 0).equals(pretended)


def test_a_part_without_a_checksum_is_made_again_or_refused(tmp_path):
    path = part_path(tmp_path, 0)
    pq.write_table(table(1).replace_schema_metadata({"clipsan.fingerprint": "a" * 64}), path)
    assert missing_parts(tmp_path, [0], "a" * 64) == [0]
    with pytest.raises(FingerprintError, match="another configuration"):
        missing_parts(tmp_path, [0], "b" * 64)


def test_what_a_killed_writer_left_is_cleared_and_a_living_one_keeps_its_file(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(type(tmp_path), "replace", lambda self, target: names.append(self.name))
    write_text(tmp_path / "a.json", "{}")
    write_text(tmp_path / "a.json", "{}")
    assert len(set(names)) == 2
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead = tmp_path / "deep" / names[0].replace(f"-{os.getpid()}-", f"-{gone.pid}-")
    dead.parent.mkdir()
    dead.touch()
    (tmp_path / ".part-00003.parquet.4711.tmp").touch()
    (tmp_path / ".part-00003.parquet.0badcafe-4711-00000000.tmp").touch()
    (tmp_path / "mine.tmp").touch()
    clear_temporary(tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {*names, "mine.tmp"}
