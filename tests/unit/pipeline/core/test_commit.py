"""The shard commit: whole or absent, and never of other settings."""

import pyarrow as pa
import pytest

from clipsan.pipeline.core.commit import FingerprintError, fingerprint, missing_parts, part_path, read_part, write_part


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
    assert not part_path(tmp_path, 0).exists()
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
