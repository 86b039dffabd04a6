"""Ids, addresses and hashes of whoever collected the pairs go with them into the verdicts, bounded and without credentials."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsan.stages.samples import Origin
from clipsan.stages.sources import FolderSource, ParquetSource, SourceConfig, TableSource, WebDataset
from clipsan.stages.sources.origin import origin_of
from tests.conftest import picture
from tests.unit.stages.sources.helpers import read_all, write_tar

HASH = "ab" * 32
FIELDS = {"caption": "a boat", "key": "000000007", "url": "https://example.org/boat.jpg", "sha256": HASH, "width": 7}
EXPECTED = Origin("000000007", "https://example.org/boat.jpg", HASH)


def tar(home: Path, fields: dict[str, Any]) -> SourceConfig:
    write_tar(home / "0.tar", [("7.png", picture(0)), ("7.json", json.dumps(fields).encode())])
    return WebDataset(path=str(home))


def parquet(home: Path, fields: dict[str, Any]) -> SourceConfig:
    pq.write_table(pa.Table.from_pylist([fields | {"image": picture(0)}]), home / "a.parquet")
    return ParquetSource(path=str(home))


def table(home: Path, fields: dict[str, Any]) -> SourceConfig:
    (home / "7.png").write_bytes(picture(0))
    row = {"image": "7.png", **fields}
    (home / "pairs.csv").write_text(",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
    return TableSource(path=str(home / "pairs.csv"))


def metadata(home: Path, fields: dict[str, Any]) -> SourceConfig:
    (home / "7.png").write_bytes(picture(0))
    (home / "metadata.jsonl").write_text(json.dumps({"file_name": "7.png", **fields}) + "\n")
    return FolderSource(path=str(home), caption="caption")


def beside(home: Path, fields: dict[str, Any]) -> SourceConfig:
    (home / "7.png").write_bytes(picture(0))
    (home / "7.txt").write_text("a boat")
    (home / "7.json").write_text(json.dumps(fields))
    return FolderSource(path=str(home))


@pytest.mark.parametrize("make", [tar, parquet, table, metadata, beside])
def test_every_format_passes_them_on(tmp_path: Path, make: Any) -> None:
    (pair,) = read_all(make(tmp_path, FIELDS))
    assert pair.reject is None
    assert pair.origin == EXPECTED


def test_the_most_telling_id_is_taken_and_case_plays_no_part() -> None:
    assert origin_of({"key": "7", "SAMPLE_ID": 12, "URL": b"http://a/b"}) == Origin("12", "http://a/b", None)
    assert origin_of({"id": 5, "uid": "38f7"}) == Origin("38f7", None, None)
    assert origin_of({}) == Origin()


def test_credentials_are_masked_and_length_is_bounded() -> None:
    told = origin_of({"url": "https://me:secret@host/a.jpg?size=2&X-Amz-Signature=abcdef&token=canary"})
    assert told.url == "https://***@host/a.jpg?size=2&X-Amz-Signature=***&token=***"
    long = origin_of({"url": "http://h/" + "a" * 10**6, "id": "9" * 10**6, "sha256": "f" * 999})
    assert [len(text or "") for text in (long.id, long.url, long.sha256)] == [128, 2048, 64]


@pytest.mark.parametrize("odd", [None, True, 2.5, [1], {"a": 1}, "", "  ", 10**200, b""])
def test_what_is_no_id_says_nothing(odd: Any) -> None:
    assert origin_of({"id": odd, "url": odd}) == Origin()


def test_control_sequences_and_bad_utf8_do_not_reach_a_terminal() -> None:
    told = origin_of({"id": "a\x1b[2Jb\u202ec", "url": b"http://\xff/\n"})
    assert told == Origin("a\ufffd[2Jb\ufffdc", "http://\ufffd/\ufffd", None)


def test_a_column_that_stands_twice_is_passed_over(tmp_path: Path) -> None:
    columns = [pa.array([picture(0)]), pa.array(["a boat"]), pa.array(["x"]), pa.array(["y"])]
    pq.write_table(pa.Table.from_arrays(columns, ["image", "caption", "url", "url"]), tmp_path / "a.parquet")
    (pair,) = read_all(ParquetSource(path=str(tmp_path)))
    assert pair.reject is None
    assert pair.origin == Origin()
