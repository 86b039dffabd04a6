"""What goes in comes out: every image file and every row is a pair or a rejection that says why, and copies hold the same bytes."""

import csv
import gzip
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clipsan.stages.samples import RawPair, hash_uid
from clipsan.stages.sources import (
    FolderSource,
    ParquetSource,
    SourceConfig,
    TableSource,
    WebDataset,
    list_units,
    open_writer,
    read_unit,
    rewritten,
)
from clipsan.stages.sources.common import IMAGE_SUFFIXES
from tests.unit.stages.sources.helpers import read_all

a_few = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
BYTES = st.binary(max_size=40)


def fresh(factory: pytest.TempPathFactory) -> Path:
    return factory.mktemp("set")


def contents(pair: RawPair) -> tuple[Any, ...]:
    return pair.image, pair.caption, pair.label


def check(source: SourceConfig, out: Path) -> list[RawPair]:
    """Read a set, check that rejections speak, part it into two copies, and check that these hold what was read."""
    pairs = read_all(source)
    assert all(bool(pair.reject) == bool(pair.detail) for pair in pairs)
    assert all("\n" not in pair.detail and len(pair.detail) <= 300 for pair in pairs)
    good = [pair for pair in pairs if pair.reject is None]
    assert len({pair.uid for pair in good}) == len(good)
    clean = {pair.uid for pair in good if int(hash_uid(pair.uid), 16) % 3}
    for name in ("clean", "quarantine", "again"):
        for unit in list_units(source):
            with open_writer(source, unit, out / name) as writer:
                for pair in read_unit(source, unit):
                    if pair.reject is None and (pair.uid in clean) == (name != "quarantine"):
                        writer.copy(pair)
    for name, wanted in (("clean", True), ("quarantine", False)):
        if any((out / name).rglob("*")):
            copied = read_all(rewritten(source, out / name))
            assert [pair.detail for pair in copied if pair.reject] == []
            assert Counter(map(contents, copied)) == Counter(contents(p) for p in good if (p.uid in clean) == wanted)
    files = [path for path in (out / "clean").rglob("*") if path.is_file()]
    assert all((out / "again" / path.relative_to(out / "clean")).read_bytes() == path.read_bytes() for path in files)
    return pairs


KEYS = st.sampled_from(["a", "b", "c.d", "c.e", "f/a", "./g", "._h", "x y", "../up", "/abs", "k\u00e9"])
SUFFIXES = st.sampled_from(
    [
        ".jpg",
        ".PNG",
        ".webp",
        ".gif",
        ".txt",
        ".json",
        ".cls",
        ".caption",
        ".mask.png",
        ".input.jpg",
        ".pyd",
        ".jpg_",
        "",
    ]
)
MEMBERS = st.lists(st.tuples(KEYS, st.lists(SUFFIXES, min_size=1, max_size=4, unique=True)), max_size=10)


def content_of(suffix: str, data: bytes) -> bytes:
    if suffix == ".json":
        return json.dumps({"caption": data.hex(), "n": 1}).encode()
    return data.hex().encode() if suffix in (".txt", ".caption") else b"7" if suffix == ".cls" else data


@given(
    groups=MEMBERS,
    data=st.lists(BYTES, min_size=1, max_size=5),
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    zipped=st.booleans(),
    unit_bytes=st.sampled_from([1500, 10**9]),
    cut=st.none() | st.integers(0, 10_000),
)
@a_few
def test_archives(
    tmp_path_factory: pytest.TempPathFactory,
    groups: list[tuple[str, list[str]]],
    data: list[bytes],
    form: int,
    zipped: bool,
    unit_bytes: int,
    cut: int | None,
) -> None:
    folder = fresh(tmp_path_factory)
    names = [(key + suffix, suffix) for key, suffixes in groups for suffix in suffixes]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for i, (name, suffix) in enumerate(names):
            info = tarfile.TarInfo(name)
            body = content_of(suffix, data[i % len(data)])
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    raw = gzip.compress(stream.getvalue()) if zipped else stream.getvalue()
    (folder / "in").mkdir()
    (folder / "in/s.tar").write_bytes(raw if cut is None else raw[:cut])
    pairs = check(WebDataset(path=str(folder / "in"), unit_bytes=unit_bytes), folder)
    if cut is None:
        keys = {pair.key.lower() for pair in pairs}
        for name, _ in names:
            if name.lower().endswith(IMAGE_SUFFIXES):
                short = name.lower().removeprefix("./")
                assert any(short == key or name.lower() == key or short.startswith(f"{key}.") for key in keys)
    elif cut < len(raw) and not zipped and cut < len(raw.rstrip(b"\0")):
        assert any(pair.key.startswith("@byte-") for pair in pairs)
    for path in (folder / "clean").rglob("*.tar"):
        with tarfile.open(path) as archive:
            written = archive.getnames()
        assert not any(name.startswith("/") or ".." in name.split("/") or name.endswith(".pyd") for name in written)


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["0.jpg", "1.jpg", "d/2.jpg", "no.jpg", "../up.jpg", "http://x/y.jpg"]), WORDS),
        max_size=12,
    ),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    zipped=st.booleans(),
    unit_rows=st.sampled_from([2, 1000]),
)
@a_few
def test_tables(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    delimiter: str,
    encoding: str,
    zipped: bool,
    unit_rows: int,
) -> None:
    folder = fresh(tmp_path_factory)
    pictures(folder / "in")
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter)
    writer.writerow(["image", "caption"])
    writer.writerows(rows)
    raw = stream.getvalue().encode(encoding)
    name = "t.tsv" if delimiter == "\t" else "t.csv"
    (folder / "in" / (name + ".gz" * zipped)).write_bytes(gzip.compress(raw) if zipped else raw)
    pairs = check(TableSource(path=str(folder / "in"), unit_rows=unit_rows), folder)
    assert len(pairs) == len(rows)
    assert [pair.caption for pair in pairs] == [caption for _, caption in rows]


def pictures(folder: Path) -> None:
    for name in ("0.jpg", "1.jpg", "d/2.jpg", "../up.jpg"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


LINE = st.text(st.sampled_from('ab ,"\t;'), max_size=10)


@given(lines=st.lists(st.tuples(st.sampled_from(["0.jpg", "1.jpg"]), LINE), max_size=12))
@example(lines=[("0.jpg", '"open'), ("1.jpg", "b"), ("0.jpg", 'closed"'), ("0.jpg", 'a "b"')])
@a_few
def test_no_quotation_mark_takes_a_row_with_it(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]]
) -> None:
    for delimiter, name in ((",", "t.csv"), ("\t", "t.tsv")):
        folder = fresh(tmp_path_factory)
        pictures(folder / "in")
        text = "".join(f"{image}{delimiter}{caption}\n" for image, caption in lines)
        (folder / "in" / name).write_text(f"image{delimiter}caption\n{text}")
        pairs = check(TableSource(path=str(folder / "in")), folder)
        assert len(pairs) == len(lines)


CELL = st.none() | BYTES
KINDS = [pa.string(), pa.large_string(), pa.string_view(), pa.list_(pa.string()), pa.list_(pa.string(), 2), pa.null()]


@given(
    cells=st.lists(st.tuples(CELL, st.none() | WORDS, st.none() | st.integers(-(2**40), 2**40)), max_size=12),
    image=st.sampled_from(
        [
            pa.binary(),
            pa.large_binary(),
            pa.binary_view(),
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            pa.null(),
        ]
    ),
    caption=st.sampled_from(KINDS),
    unit_rows=st.sampled_from([3, 1000]),
)
@a_few
def test_parquet(
    tmp_path_factory: pytest.TempPathFactory,
    cells: list[tuple],
    image: pa.DataType,
    caption: pa.DataType,
    unit_rows: int,
) -> None:
    folder = fresh(tmp_path_factory)
    (folder / "in").mkdir()
    columns = {"image": [], "caption": [], "label": []}
    for data, text, label in cells:
        columns["image"].append(
            None if pa.types.is_null(image) else {"bytes": data, "path": "x.jpg"} if pa.types.is_struct(image) else data
        )
        listed = pa.types.is_list(caption) or pa.types.is_fixed_size_list(caption)
        if pa.types.is_fixed_size_list(caption):
            text = text or ""  # Arrow cannot read null lists of a fixed size back
        columns["caption"].append(
            None if pa.types.is_null(caption) or text is None else [text, "second"] if listed else text
        )
        columns["label"].append(label)
    kinds = {"image": image, "caption": caption, "label": pa.int64()}
    table = pa.table({name: pa.array(values, kinds[name]) for name, values in columns.items()})
    pq.write_table(table, folder / "in/p.parquet")
    pairs = check(ParquetSource(path=str(folder / "in"), label="label", unit_rows=unit_rows), folder)
    assert len(pairs) == len(cells)


PATHS = st.lists(
    st.sampled_from(
        [
            "0.jpg", "0.txt", "_1.JPG", "_1.json", "a/2.png", "a/2.txt", "a/deep/3.jfif", "_b/4.webp", "_b/4.caption", ".c/5.jpg",
            "a/._6.jpg", "e.gif/7.jpg", "8.jpg", "a/9.avif", "readme", "00000_stats.json",
        ]
    ),
    unique=True,
    max_size=16,
)  # fmt: skip


@given(
    paths=PATHS,
    template=st.sampled_from([None, "a photo of a {}"]),
    metadata=st.none() | st.lists(st.sampled_from(["0.jpg", "a/2.png", "gone.jpg", "0.jpg", "../up.jpg"]), max_size=5),
    level=st.sampled_from(["", "a/"]),
    unit_rows=st.sampled_from([1, 1000]),
)
@a_few
def test_folders(
    tmp_path_factory: pytest.TempPathFactory,
    paths: list[str],
    template: str | None,
    metadata: list[str] | None,
    level: str,
    unit_rows: int,
) -> None:
    folder = fresh(tmp_path_factory)
    for name in [*paths, "a/always.jpg"]:
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'{"caption": "c"}' if name.endswith(".json") else name.encode())
    (folder / "in/loop").symlink_to(folder / "in")
    if metadata is not None:
        lines = [json.dumps({"file_name": name, "caption": f"caption of {name}"}) for name in metadata]
        (folder / "in" / level / "metadata.jsonl").write_text("\n".join(lines))
    pairs = check(FolderSource(path=str(folder / "in"), template=template, unit_rows=unit_rows), folder)
    images = {name for name in [*paths, "a/always.jpg"] if name.lower().endswith(IMAGE_SUFFIXES)}
    found = [f"{pair.shard.rpartition('/')[0]}/{pair.key}".lstrip("/") for pair in pairs if "metadata" in pair.shard]
    found += [pair.uid.removeprefix("./").replace("@rest/", "") for pair in pairs if "metadata" not in pair.shard]
    assert images <= set(found)
    assert len(found) == len(images - {f"{level}{name}" for name in metadata or []}) + len(metadata or [])
    if template is None and metadata is None:
        assert not any("a photo of" in (pair.caption or "") for pair in pairs)
