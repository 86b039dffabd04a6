"""Inputs that people really have, and inputs that somebody made on purpose: each is read, or told in one line."""

import hashlib
import io
import json
import os
import tarfile
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsan.stages.samples import RawPair, Reject
from clipsan.stages.sources import (
    FolderSource,
    ParquetSource,
    SourceConfig,
    SourceError,
    TableSource,
    WebDataset,
    list_units,
    open_writer,
    read_unit,
)
from clipsan.stages.sources.hints import likely_remedy
from tests.unit.stages.sources.helpers import read_all, write_tar

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4" * 64 + b"\nsize 12345\n"


def hint(pairs: list[RawPair]) -> str:
    """Return the one line that a user is shown."""
    found = likely_remedy([(pair.reject, pair.detail) for pair in pairs if pair.reject is not None], len(pairs))
    assert found is not None
    return found


def copy(source: SourceConfig, out: Path, change: Path | None = None) -> None:
    """Copy what can be used; `change` is overwritten once the pairs are read."""
    for unit in list_units(source):
        pairs = [pair for pair in read_unit(source, unit) if pair.reject is None]
        if change is not None:
            change.write_bytes(change.read_bytes().replace(b"good", b"evil"))
        with open_writer(source, unit, out) as writer:
            for pair in pairs:
                writer.copy(pair)


def names(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        return archive.getnames()


def test_of_several_pictures_the_one_that_open_clip_reads(tmp_path: Path) -> None:
    files = [
        ("a.gif", b"decoy"), ("a.jpg", b"a"), ("a.txt", b"a"), ("a.pyd", b"pickle"), ("a.extra.pickle", b"x"),
        ("b.jpg", b"b"), ("b.png", b"other"), ("b.txt", b"b"),
        ("c.bmp", b"c"), ("c.jfif", b"other"), ("c.txt", b"c"),
        ("d.tiff", b"d"), ("d.cap", b"d"),
    ]  # fmt: skip
    source = WebDataset(path=str(write_tar(tmp_path / "in/s.tar", files)))
    pairs = read_all(source)
    assert [(pair.key, pair.image, pair.reject) for pair in pairs] == [
        ("a", b"a", None),
        ("b", b"b", Reject.AMBIGUOUS),
        ("c", b"other", Reject.AMBIGUOUS),
        ("d", b"d", None),
    ]
    assert pairs[1].detail.startswith("the key has two pictures, .jpg, .png")
    copy(source, tmp_path / "out")
    assert names(tmp_path / "out/s.tar") == ["a.jpg", "a.txt", "d.tiff", "d.cap"]
    chosen = read_all(WebDataset(path=source.path, image=".png", text=".txt"))
    assert [(pair.key, pair.image) for pair in chosen if pair.reject is None] == [("b", b"other")]


def test_keys_with_dots(tmp_path: Path) -> None:
    files = [
        ("photo.1.jpg", b"1"), ("photo.1.txt", b"one"), ("photo.2.jpg", b"2"), ("photo.2.json", b'{"caption": "two"}'),
        ("photo.2.mask.png", b"m"), ("photo.3.jpg", b"3"), ("photo.4.txt", b"four"),
    ]  # fmt: skip
    source = WebDataset(path=str(write_tar(tmp_path / "in/s.tar", files)))
    pairs = read_all(source)
    assert [(pair.key, pair.image, pair.caption, pair.reject) for pair in pairs] == [
        ("photo.1", b"1", "one", None),
        ("photo.2", b"2", "two", None),
        ("photo.3", b"3", None, Reject.CAPTION_MISSING),
        ("photo.4", None, "four", Reject.IMAGE_MISSING),
    ]
    copy(source, tmp_path / "out")
    assert names(tmp_path / "out/s.tar") == ["photo.1.jpg", "photo.1.txt", "photo.2.jpg", "photo.2.json"]


def test_suffixes_of_ones_own_are_named_with_the_settings_that_take_them(tmp_path: Path) -> None:
    files = [(f"{i}{suffix}", b"%d" % i) for i in range(4) for suffix in (".input.jpg", ".outputs.txt")]
    path = str(write_tar(tmp_path / "s.tar", files))
    assert hint(read_all(WebDataset(path=path))).endswith("set data.image=.input.jpg data.text=.outputs.txt")
    pairs = read_all(WebDataset(path=path, image=".input.jpg", text=".outputs.txt"))
    assert [(pair.key, pair.caption, pair.reject) for pair in pairs] == [(f"{i}", f"{i}", None) for i in range(4)]


def test_members_that_do_not_stand_together(tmp_path: Path) -> None:
    files = [(f"{i}{suffix}", b"x") for suffix in (".jpg", ".txt") for i in range(5)]
    pairs = read_all(WebDataset(path=str(write_tar(tmp_path / "s.tar", files))))
    assert len(pairs) == 10
    assert "tar --sort=name" in hint(pairs)


@pytest.mark.parametrize("key", ["TEXT", "alt", "my words"])
def test_a_caption_under_another_name(tmp_path: Path, key: str) -> None:
    files = [
        (f"{i}{s}", b"x" if s == ".jpg" else json.dumps({"n": 3, key: "a b"}).encode())
        for i in range(3)
        for s in (".jpg", ".json")
    ]
    pairs = read_all(WebDataset(path=str(write_tar(tmp_path / "s.tar", files))))
    assert hint(pairs).endswith(f"the .json has n, {key}; set data.caption={key}")


def pax(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, len(records)
    return info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(str(length)) + len(key) + len(value) + 3 != length:
        length = len(str(length)) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def plain(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    "header",
    [
        pax(record(b"path", b"b.jpg") + record(b"path", b"a.jpg")),
        pax(record(b"path", b"a.jpg")) + pax(b"b.jpg\0", tarfile.GNUTYPE_LONGNAME),
        pax(b"a.jpg\0", tarfile.GNUTYPE_LONGNAME) + pax(record(b"path", b"b.jpg")),
        pax(record(b"size", b"1")),
        pax(record(b"GNU.sparse.name", b"b.jpg")),
        pax(record(b"path", b"b.jpg"), tarfile.XGLTYPE),
    ],
)
def test_headers_that_contradict_each_other(tmp_path: Path, header: bytes) -> None:
    raw = (
        header
        + plain("a.jpg", b"three")
        + plain("a.txt", b"a")
        + plain("c.jpg", b"c")
        + plain("c.txt", b"c")
        + bytes(1024)
    )
    (tmp_path / "s.tar").write_bytes(raw)
    pairs = read_all(WebDataset(path=str(tmp_path)))
    assert [pair for pair in pairs if pair.key in ("a", "b") and pair.reject is None and pair.image] == []
    assert {pair.reject for pair in pairs} >= {Reject.AMBIGUOUS}


@pytest.mark.parametrize(
    "records", [b"0 path=a\n", b"00 path=a\n", b"9" * 4400 + b" path=a\n", b"7 =abc\n", b"999 path=a\n", b"path=a\n"]
)
def test_a_broken_pax_record_is_damage_and_no_endless_loop(tmp_path: Path, records: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(pax(records) + plain("a.jpg", b"a") + plain("a.txt", b"a") + bytes(1024))
    pairs = read_all(WebDataset(path=str(tmp_path)))
    assert [(pair.key, pair.reject) for pair in pairs] == [("@byte-0", Reject.SHARD_DAMAGED)]


def test_a_copy_has_safe_names_and_what_was_scanned(tmp_path: Path) -> None:
    files = [
        (f"{key}{s}", b"good") for key in ("/etc/a", "x/../../b", "c\x1b[2J", "./d", "e") for s in (".jpg", ".txt")
    ]
    path = write_tar(tmp_path / "in/s.tar", files)
    copy(WebDataset(path=str(path)), tmp_path / "out", change=path)
    written = names(tmp_path / "out/s.tar")
    assert len(written) == 10
    assert written[6:] == ["./d.jpg", "./d.txt", "e.jpg", "e.txt"]
    assert not any(name.startswith("/") or ".." in name or "\x1b" in name for name in written)
    with tarfile.open(tmp_path / "out/s.tar") as archive:
        assert {archive.extractfile(info).read() for info in archive.getmembers()} == {b"good"}


def test_an_image_in_parquet_that_changed_is_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "in/p.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"image": [b"good"], "caption": ["x"]}), path, compression="none")
    with pytest.raises(SourceError, match="changed while it was copied"):
        copy(ParquetSource(path=str(path)), tmp_path / "out", change=path)
    assert not list((tmp_path / "out").rglob("*.parquet"))


@pytest.mark.parametrize("make", [WebDataset, ParquetSource, TableSource], ids=lambda make: make.__name__)
@pytest.mark.parametrize("state", ["absent", "empty", "pointer", "page"])
def test_a_shard_that_cannot_be_read_costs_that_shard(tmp_path: Path, make: type, state: str) -> None:
    suffix = {WebDataset: "tar", ParquetSource: "parquet", TableSource: "csv"}[make]
    (tmp_path / "in").mkdir()
    for i in (0, 2):
        path = tmp_path / f"in/{i}.{suffix}"
        if make is WebDataset:
            write_tar(path, [("a.jpg", b"a"), ("a.txt", b"a")])
        elif make is ParquetSource:
            pq.write_table(pa.table({"image": [b"a"], "caption": ["a"]}), path)
        else:
            (tmp_path / "in/a.jpg").write_bytes(b"a")
            path.write_text("image,caption\na.jpg,a\n")
    if state != "absent":
        (tmp_path / f"in/1.{suffix}").write_bytes(
            {"empty": b"", "pointer": LFS, "page": b"<html>404</html>" * 99}[state]
        )
    source = make(path=f"{tmp_path}/in/{{0..2}}.{suffix}")
    if make is TableSource and state == "page":
        with pytest.raises(SourceError, match="no column"):
            list_units(source)
        return
    pairs = read_all(source)
    assert [pair.reject for pair in pairs if pair.image] == [None, None]
    lost = [pair for pair in pairs if not pair.image]
    assert [pair.reject for pair in lost] == [Reject.SHARD_DAMAGED] * (len(pairs) - 2)
    assert lost or (make is TableSource and state == "empty")
    if state == "pointer":
        assert lost[0].detail == "this is a git-lfs pointer and not the file; run `git lfs pull`"
    copy(source, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {f"0.{suffix}", f"2.{suffix}"}


def test_rows_reach_no_file_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, home = tmp_path / "secret/s.jpg", tmp_path / "set"
    for path in (secret, home / "a.jpg"):
        path.parent.mkdir()
        path.write_bytes(b"x")
    (home / "link.jpg").symlink_to(secret)
    (home / "below").symlink_to(secret.parent)
    monkeypatch.setenv("HOME", str(secret.parent))
    outside = [str(secret), "../secret/s.jpg", f"file://{secret}", "link.jpg", "below/s.jpg"]
    never = [
        "~/s.jpg",
        "file://~/s.jpg",
        "http://[",
        "s3://set/a.jpg?endpoint_override=127.0.0.1:9",
        "s3://set/a.jpg",
        "\0",
        "a.jpg/b",
        "",
    ]
    rows = "".join(f'"{name}",c\n' for name in [*outside, *never, "a.jpg", f"file://{home}/a.jpg"])
    (home / "t.csv").write_text("image,caption\n" + rows)
    pq.write_table(
        pa.table({"image": [*outside, *never, "a.jpg", "./a.jpg"], "caption": ["c"] * 15}), home / "p.parquet"
    )
    for source in (TableSource(path=f"{home}/t.csv"), ParquetSource(path=f"{home}/p.parquet")):
        pairs = read_all(source)
        assert [pair.reject for pair in pairs] == [Reject.IMAGE_MISSING] * 13 + [None, None]
        assert all("data.roots=" in pair.detail for pair in pairs[:5])
    allowed = read_all(TableSource(path=f"{home}/t.csv", roots=[str(secret.parent)]))
    assert [pair.reject for pair in allowed[:5]] == [None] * 5
    assert {pair.reject for pair in allowed[6:13]} == {Reject.IMAGE_MISSING}
    images = FolderSource(path=str(home), template="a {}")
    assert [pair.key for pair in read_all(images) if pair.image and pair.key != "a.jpg"] == []


def test_paths_of_every_spelling(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    name = unicodedata.normalize("NFD", "caf\u00e9.jpg")
    (tmp_path / "images" / name).write_bytes(b"x")
    (tmp_path / "images/0.jpg").write_bytes(b"y")
    (tmp_path / "t.csv").write_text(
        "image,caption\nimages/caf\u00e9.jpg,a\nimages\\0.jpg,b\n0.jpg,c\n", encoding="utf-8"
    )
    pairs = read_all(TableSource(path=str(tmp_path)))
    assert [pair.reject for pair in pairs] == [None, None, Reject.IMAGE_MISSING]
    assert pairs[2].detail.endswith(f"set data.roots=['{tmp_path}/images']")
    assert read_all(TableSource(path=str(tmp_path), roots=[f"{tmp_path}/images"]))[2].image == b"y"


def test_published_hashes_and_a_block_list(tmp_path: Path) -> None:
    images = [b"same", b"swapped", b"bad"]
    digests = [hashlib.sha256(data).hexdigest() for data in (b"same", b"original", b"bad")]
    (tmp_path / "block.txt").write_text(f"# known\n{digests[2].upper()}  some.jpg\n\n")
    files = []
    for i, data in enumerate(images):
        files += [(f"{i}.jpg", data), (f"{i}.json", json.dumps({"caption": "c", "sha256": digests[i]}).encode())]
    write_tar(tmp_path / "tar/s.tar", files)
    (tmp_path / "pq").mkdir()
    pq.write_table(pa.table({"image": images, "caption": ["c"] * 3, "sha256": digests}), tmp_path / "pq/p.parquet")
    for make, folder in ((WebDataset, "tar"), (ParquetSource, "pq")):
        assert [pair.reject for pair in read_all(make(path=f"{tmp_path}/{folder}"))] == [None] * 3
        pairs = read_all(make(path=f"{tmp_path}/{folder}", sha256="sha256", block=f"{tmp_path}/block.txt"))
        assert [pair.reject for pair in pairs] == [None, Reject.BYTES_CHANGED, Reject.BLOCKED]
    (tmp_path / "wrong.txt").write_text("not a hash\n")
    with pytest.raises(SourceError, match="no SHA-256"):
        read_all(WebDataset(path=f"{tmp_path}/tar", block=f"{tmp_path}/wrong.txt"))


def test_a_block_list_counts_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    lists = {"one": f"{'0' * 64}\n", "same": f"# again\n{'0' * 64}\n", "other": f"{'1' * 64}\n"}
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    one, same, other = (WebDataset(path="x.tar", block=f"{tmp_path}/{name}").content() for name in lists)
    assert one == same != other
    assert WebDataset(path="x.tar", block="here.txt").block == str(Path("here.txt").absolute())


def test_an_image_that_is_too_large_is_refused_whatever_its_column(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("clipsan.stages.sources.parquet.MAX_FILE_BYTES", 3)
    plain = [b"abc", b"abcd"]
    for images in (plain, [{"bytes": data, "path": "x.png"} for data in plain]):
        pq.write_table(pa.table({"image": images, "caption": ["c"] * 2}), tmp_path / "p.parquet")
        pairs = read_all(ParquetSource(path=f"{tmp_path}/p.parquet"))
        assert [pair.reject for pair in pairs] == [None, Reject.IMAGE_TOO_LARGE]


def test_a_copy_that_cannot_be_finished_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    write_tar(tmp_path / "s.tar", [("a.jpg", b"a"), ("a.txt", b"a")])

    def full(length: int) -> bytes:
        raise OSError("no space left on device")

    monkeypatch.setattr("clipsan.stages.sources.webdataset.end_marker", full)
    with pytest.raises(OSError, match="no space"):
        copy(WebDataset(path=f"{tmp_path}/s.tar"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_labels_of_any_kind_stop_nothing(tmp_path: Path) -> None:
    labels = [b"7", b"--5", b"9" * 5000, b"-3", b"99999999999", b"\xff", b"", "\u0663".encode()]
    files = [
        (f"{i}{s}", {".cls": label}.get(s, b"x")) for i, label in enumerate(labels) for s in (".jpg", ".txt", ".cls")
    ]
    pairs = read_all(WebDataset(path=str(write_tar(tmp_path / "s.tar", files))))
    assert [pair.label for pair in pairs] == [7, None, None, -3, None, None, None, None]
    assert {pair.reject for pair in pairs} == {None}


def test_text_in_lists_and_structs_that_is_no_utf8(tmp_path: Path) -> None:
    bad = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\x04\0\0\0"), pa.py_buffer(b"caf\xe9"))
    lists = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), bad)
    images = pa.StructArray.from_arrays([pa.array([b"x"]), bad], ["bytes", "path"])
    pq.write_table(pa.table({"image": images, "caption": lists}), tmp_path / "p.parquet")
    pairs = read_all(ParquetSource(path=str(tmp_path)))
    assert [(pair.image, pair.caption, pair.reject) for pair in pairs] == [(b"x", "caf\ufffd", Reject.CAPTION_NOT_UTF8)]


def test_parquet_that_unfolds_takes_bounded_memory(tmp_path: Path) -> None:
    huge = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array([bytes(2**22)]))
    pq.write_table(pa.table({"image": huge, "caption": ["c"] * 300}), tmp_path / "p.parquet", compression="zstd")
    assert (tmp_path / "p.parquet").stat().st_size < 2**16
    before = pa.total_allocated_bytes()
    source, most = ParquetSource(path=str(tmp_path)), 0
    for pair in read_unit(source, list_units(source)[0]):
        assert len(pair.image) == 2**22
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 2**30


def test_columns_that_are_null_or_twice(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"image": pa.nulls(2), "caption": ["a", "b"], "label": pa.nulls(2)}), tmp_path / "b.parquet"
    )
    pq.write_table(pa.table({"image": [b"x"], "caption": ["a"], "label": [3]}), tmp_path / "a.parquet")
    pairs = read_all(ParquetSource(path=str(tmp_path), label="label"))
    assert [pair.reject for pair in pairs] == [None, Reject.IMAGE_MISSING, Reject.IMAGE_MISSING]
    twice = pa.Table.from_arrays([pa.array([b"x"]), pa.array(["a"]), pa.array(["b"])], ["image", "caption", "caption"])
    pq.write_table(twice, tmp_path / "c.parquet")
    with pytest.raises(SourceError, match="'caption' stands 2 times"):
        list_units(ParquetSource(path=str(tmp_path)))


def test_metadata_one_level_down_and_images_everywhere(tmp_path: Path) -> None:
    for name in ("train/0.jpg", "train/1.jpg", "train/stray.jpg", "test/2.jpg", "3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "3.txt").write_text("three")
    (tmp_path / "train/metadata.csv").write_text("file_name,caption\n0.jpg,zero\n1.jpg,one\n")
    (tmp_path / "test/metadata.jsonl").write_text(
        '\ufeff{"file_name": "2.jpg", "caption": ["two", "zwei"]}\n', encoding="utf-8"
    )
    pairs = read_all(FolderSource(path=str(tmp_path)))
    assert {pair.uid: pair.caption for pair in pairs} == {
        "./3.jpg": "three",
        "test/metadata.jsonl/2.jpg": "two",
        "train/metadata.csv/0.jpg": "zero",
        "train/metadata.csv/1.jpg": "one",
        "train/@rest/stray.jpg": None,
    }
    assert next(pair.captions for pair in pairs if pair.key == "2.jpg") == ("two", "zwei")


def test_base64_addresses_and_drives_are_told(tmp_path: Path) -> None:
    cases = {
        "/9j/4AAQ" + "A" * 400: "base64",
        "https://example.org/1.jpg": "img2dataset",
        r"C:\set\1.jpg": "Windows drive",
    }
    for i, (image, words) in enumerate(cases.items()):
        pq.write_table(pa.table({"image": [image] * 3, "caption": ["c"] * 3}), tmp_path / f"{i}.parquet")
        assert words in hint(read_all(ParquetSource(path=f"{tmp_path}/{i}.parquet")))


def test_a_pipe_and_a_device_are_never_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.jpg")
    (tmp_path / "1.jpg").symlink_to("/dev/zero")
    (tmp_path / "2.jpg").write_bytes(LFS)
    (tmp_path / "metadata.csv").write_text("file_name,caption\n0.jpg,a\n1.jpg,b\n2.jpg,c\n")
    pairs = read_all(FolderSource(path=str(tmp_path), roots=["/dev"]))
    assert [pair.reject for pair in pairs] == [Reject.IMAGE_MISSING, Reject.IMAGE_MISSING, Reject.IMAGE_UNREADABLE]
    assert "git lfs pull" in pairs[2].detail


def test_no_hint_where_most_pairs_are_read() -> None:
    assert likely_remedy([], 5) is None
    assert likely_remedy([("image_missing", "x; y")] * 2, 5) is None
    assert (
        likely_remedy([("image_empty", "0 bytes")] * 4, 5)
        == "4 of 5 pairs are rejected for one cause, image_empty: 0 bytes"
    )
    many = [("caption_missing", f"no {i}") for i in range(4)]
    assert likely_remedy(many, 5) == "4 of 5 pairs are rejected as caption_missing"


def test_a_tar_is_read_as_a_stream_of_any_compression_it_knows(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.jpg", b"a"), ("a.txt", b"a")])
    for name, mode, words in (("b.tar", "w:bz2", "bzip2"), ("x.tar", "w:xz", "xz")):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode=mode) as archive, tarfile.open(path) as inner:
            for info in inner.getmembers():
                archive.addfile(info, inner.extractfile(info))
        (tmp_path / name).write_bytes(stream.getvalue())
        pairs = read_all(WebDataset(path=str(tmp_path / name)))
        assert [pair.reject for pair in pairs] == [Reject.SHARD_DAMAGED]
        assert words in pairs[0].detail
