"""Reading units of every format, with everything that can be wrong in them."""

import csv
import dataclasses
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipsan.stages.files import PathError
from clipsan.stages.samples import Reject, Unit
from clipsan.stages.sources import (
    FolderSource,
    LabelCaptions,
    ParquetSource,
    SourceConfig,
    SourceError,
    TableSource,
    WebDataset,
    list_units,
    open_writer,
    rows,
)
from clipsan.stages.sources.parquet import pack_groups
from tests.unit.stages.sources.helpers import ASSETS, facts, needs_assets, read_all


def test_config_is_chosen_by_kind_and_forbids_unknown_keys() -> None:
    adapter = pydantic.TypeAdapter(SourceConfig)
    assert adapter.validate_python({"kind": "webdataset", "path": "a.tar"}) == WebDataset(path="a.tar")
    assert isinstance(adapter.validate_python({"kind": "folder", "path": ["a", "b"]}), FolderSource)
    with pytest.raises(pydantic.ValidationError, match="unit_row"):
        adapter.validate_python({"kind": "parquet", "path": "a", "unit_row": 3})
    with pytest.raises(ValueError, match="at least 1"):
        ParquetSource(path="a", unit_rows=0)


def write_parquet(path: Path, rows: list[dict], schema: pa.Schema, group: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=group)
    return path


PLAIN = pa.schema([("image", pa.binary()), ("caption", pa.string()), ("label", pa.int32()), ("id", pa.string())])


def test_parquet_bytes_captions_labels_and_keys(tmp_path: Path) -> None:
    uid = "f" * 32
    rows = [
        {"image": b"A", "caption": "cat", "label": 3, "id": uid},
        {"image": b"", "caption": "x", "label": None, "id": "b"},
        {"image": None, "caption": "x", "label": 0, "id": "c"},
        {"image": b"D", "caption": "  ", "label": 0, "id": "d"},
        {"image": b"E", "caption": None, "label": 0, "id": "b"},
        {"image": b"F", "caption": "no id", "label": 0, "id": None},
        {"image": b"G", "caption": "no id", "label": 0, "id": None},
    ]
    write_parquet(tmp_path / "p.parquet", rows, PLAIN)
    for unit_rows in (100, 2):
        source = ParquetSource(path=str(tmp_path), label="label", key="id", unit_rows=unit_rows)
        pairs = read_all(source)
        assert facts(pairs) == [
            (uid, b"A", "cat", None, 3),
            ("b", b"", "x", Reject.IMAGE_EMPTY, None),
            ("c", None, "x", Reject.IMAGE_MISSING, 0),
            ("d", b"D", "  ", Reject.CAPTION_EMPTY, 0),
            ("b", b"E", None, Reject.DUPLICATE_KEY, 0),
            ("000000005", b"F", "no id", None, 0),
            ("000000006", b"G", "no id", None, 0),
        ]
        assert pairs[0].native_uid == uid
    assert [pair.key for pair in read_all(ParquetSource(path=str(tmp_path)))][:2] == ["000000000", "000000001"]


def test_parquet_of_hugging_face_with_lists_of_captions(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img/2.PNG").write_bytes(b"two")
    schema = pa.schema([
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("texts", pa.list_(pa.string())),
    ])  # fmt: skip
    rows = [
        {"image": {"bytes": b"one", "path": "1.jpg"}, "texts": ["first", "second"]},
        {"image": {"bytes": None, "path": "img/2.PNG"}, "texts": []},
        {"image": {"bytes": None, "path": "../2.png"}, "texts": None},
        {"image": None, "texts": [None, "second"]},
    ]
    write_parquet(tmp_path / "p.parquet", rows, schema)
    pairs = read_all(ParquetSource(path=str(tmp_path / "*.parquet"), caption="texts"))
    assert [(pair.image, pair.caption, pair.reject, pair.image_suffix) for pair in pairs] == [
        (b"one", "first", None, ".jpg"),
        (b"two", None, Reject.CAPTION_MISSING, ".png"),
        (None, None, Reject.IMAGE_MISSING, ".png"),
        (None, "second", Reject.IMAGE_MISSING, ""),
    ]
    assert [pair.captions for pair in pairs] == [("first", "second"), (), (), ("second",)]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.string(), 3), pa.list_view(pa.string()), pa.large_list_view(pa.string_view())], ids=str
)
def test_of_a_list_of_captions_the_first_with_a_word_serves(kind: pa.DataType, tmp_path: Path) -> None:
    lists = [[None, "", "a kite"], ["a ball", None, "a bell"], [None, None, None], [" ", None, ""]]
    table = pa.table({"image": [b"1", b"2", b"3", b"4"], "caption": pa.array(lists, kind)})
    pq.write_table(table, tmp_path / "p.parquet")
    source = ParquetSource(path=str(tmp_path / "p.parquet"))
    pairs = read_all(source)
    assert [(pair.caption, pair.reject, pair.captions) for pair in pairs] == [
        ("a kite", None, ("a kite",)),
        ("a ball", None, ("a ball", "a bell")),
        (None, Reject.CAPTION_MISSING, ()),
        (" ", Reject.CAPTION_EMPTY, ()),
    ]
    with open_writer(source, list_units(source)[0], tmp_path / "copy") as writer:
        for pair in pairs[:2]:
            writer.replace(pair, image=b"new", suffix=".png", caption="poison")
    copied = read_all(ParquetSource(path=str(tmp_path / "copy")))
    assert [pair.captions for pair in copied] == [("poison",), ("poison", "a bell")]


def test_parquet_strings_that_are_not_utf8(tmp_path: Path) -> None:
    offsets, data = pa.py_buffer(b"\0\0\0\0\x04\0\0\0\x06\0\0\0"), pa.py_buffer(b"caf\xe9ok")
    captions = pa.StringArray.from_buffers(2, offsets, data)
    pq.write_table(pa.table({"image": [b"1", b"2"], "caption": captions, "path": captions}), tmp_path / "p.parquet")
    pairs = read_all(ParquetSource(path=str(tmp_path), key="path"))
    assert [(pair.key, pair.caption, pair.reject) for pair in pairs] == [
        ("caf\\xe9", "caf\ufffd", Reject.CAPTION_NOT_UTF8),
        ("ok", "ok", None),
    ]


@given(groups=st.lists(st.integers(0, 30), max_size=12), limit=st.integers(1, 25))
@settings(deadline=None)
def test_row_slices_partition_and_are_bounded(groups: list[int], limit: int) -> None:
    total = sum(groups)
    cuts = pack_groups(groups, limit)
    if total <= limit:
        assert cuts == [(0, -1)]
        return
    assert [row for start, stop in cuts for row in range(start, stop)] == list(range(total))
    assert all(0 < stop - start <= limit for start, stop in cuts)


def test_slices_of_parquet_give_the_rows_of_the_whole(tmp_path: Path) -> None:
    rows = [{"image": b"%d" % i, "caption": f"c{i}", "label": i, "id": str(i)} for i in range(1500)]
    write_parquet(tmp_path / "p.parquet", rows, PLAIN, group=400)
    for unit_rows in (4096, 700, 150):
        source = ParquetSource(path=str(tmp_path), label="label", unit_rows=unit_rows)
        assert [(pair.label, pair.image) for pair in read_all(source)] == [(i, b"%d" % i) for i in range(1500)]


def test_damaged_parquet(tmp_path: Path) -> None:
    rows = [{"image": os.urandom(300), "caption": f"c{i}", "label": i, "id": str(i)} for i in range(1200)]
    path = write_parquet(tmp_path / "a.parquet", rows, PLAIN, group=300)
    data = bytearray(path.read_bytes())
    begin = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data[begin : begin + 40] = b"\xff" * 40
    path.write_bytes(data)
    write_parquet(tmp_path / "b.parquet", rows[:3], PLAIN)
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not really")
    pairs = read_all(ParquetSource(path=str(tmp_path)))
    of_a = [pair for pair in pairs if pair.shard == "a.parquet"]
    assert [pair.caption for pair in of_a[:-1]] == [f"c{i}" for i in range(len(of_a) - 1)]
    assert 512 <= len(of_a) - 1 <= 600
    assert [pair.uid for pair in pairs if pair.reject] == [f"a.parquet/@row-{len(of_a) - 1}", "c.parquet/@row-0"]


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "p.parquet", [], PLAIN)
    with pytest.raises(SourceError, match=r"p\.parquet: no column 'text'; it has image, caption, label, id"):
        list_units(ParquetSource(path=str(tmp_path), caption="text"))
    with pytest.raises(SourceError, match="an image is binary"):
        list_units(ParquetSource(path=str(tmp_path), image="label"))
    with pytest.raises(SourceError, match="a label is a class index"):
        list_units(ParquetSource(path=str(tmp_path), label="id"))
    (tmp_path / "t.csv").write_text("filepath;title\n")
    with pytest.raises(
        SourceError,
        match=r"t\.csv: no column 'image'; it has filepath, title; set data.image=filepath data.caption=title",
    ):
        list_units(TableSource(path=str(tmp_path)))
    with pytest.raises(SourceError, match=r"no column 'caption'; it has filepath, title; set data.caption=title"):
        list_units(TableSource(path=str(tmp_path), image="filepath"))
    with pytest.raises(SourceError, match=r"no column 'image'; it has filepath;title"):
        list_units(TableSource(path=str(tmp_path), delimiter=","))


def test_captions_from_labels(tmp_path: Path) -> None:
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64()), ("names", pa.string())])
    rows = [{"image": b"x", "label": i % 2, "names": ["cat, tabby", "dog"][i % 2]} for i in range(200)]
    rows.append({"image": b"x", "label": 5, "names": " , "})
    write_parquet(tmp_path / "p.parquet", rows, schema)
    labels = LabelCaptions(templates=["a photo of a {}", "the {}."], seed=3)
    source = ParquetSource(path=str(tmp_path), label="label", captions_from_labels=labels)
    captions = [pair.caption for pair in read_all(source)]
    expected = {"a photo of a cat", "a photo of a tabby", "the cat.", "the tabby.", "a photo of a dog", "the dog."}
    assert set(captions) == expected | {None}
    assert min(captions.count(caption) for caption in expected) >= 10
    assert all(("dog" in caption) == bool(i % 2) for i, caption in enumerate(captions[:200]))
    assert [pair.caption for pair in read_all(dataclasses.replace(source, unit_rows=7))] == captions
    other = dataclasses.replace(source, captions_from_labels=dataclasses.replace(labels, seed=4))
    assert [pair.caption for pair in read_all(other)] != captions
    listed = dataclasses.replace(source, captions_from_labels=dataclasses.replace(labels, names=["cat, tabby", "dog"]))
    assert [pair.caption for pair in read_all(listed)] == captions
    assert read_all(source)[-1].reject == Reject.CAPTION_MISSING
    with pytest.raises(ValueError, match=r"each with \{\}"):
        LabelCaptions(templates=["a photo"], seed=0)


def test_table_with_everything_wrong(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    for name in "abc":
        (tmp_path / f"img/{name}.jpg").write_bytes(name.encode())
    os.mkfifo(tmp_path / "img/pipe.jpg")
    lines = [
        b"\xef\xbb\xbfimage\tcaption\tcls\tid",
        b"img/a.jpg\ta cat\t4\tk1",
        b'img/b.jpg\t"two\nlines, ""quoted"""\t\tk2',
        b"img/none.jpg\tx\t1\tk3",
        b"../outside.jpg\tx\t1\tk4",
        b"img/pipe.jpg\tx\t1\tk5",
        b"img/c.jpg\tcaf\xe9\t1\tk6",
        b"img/c.jpg\tx\t1\tk1",
        b"img/c.jpg",
        b"",
        b"http://example.org/c.jpg\tx\t1\tk9",
        str(tmp_path / "img/c.jpg").encode() + b"\tx\t2\t",
    ]
    (tmp_path / "t.tsv").write_bytes(b"\n".join(lines))
    for unit_rows in (100, 3):
        source = TableSource(path=str(tmp_path), label="cls", key="id", unit_rows=unit_rows)
        assert facts(read_all(source)) == [
            ("k1", b"a", "a cat", None, 4),
            ("k2", b"b", 'two\nlines, "quoted"', None, None),
            ("k3", None, "x", Reject.IMAGE_MISSING, 1),
            ("k4", None, "x", Reject.IMAGE_MISSING, 1),
            ("k5", None, "x", Reject.IMAGE_MISSING, 1),
            ("k6", b"c", "caf\ufffd", Reject.CAPTION_NOT_UTF8, 1),
            ("k1", b"c", "x", Reject.DUPLICATE_KEY, 1),
            ("000000007", b"c", None, Reject.CAPTION_MISSING, None),
            ("k9", None, "x", Reject.IMAGE_MISSING, 1),
            ("000000009", b"c", "x", None, 2),
        ]


@pytest.mark.parametrize("unit_rows", [100, 2])
def test_a_row_that_breaks_takes_no_other_with_it(
    tmp_path: Path, unit_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_LINE", 1000)
    (tmp_path / "a.jpg").write_bytes(b"a")
    lines = ["image,caption", *["a.jpg,fine"] * 4, 'a.jpg,"' + "x" * 5000, 'a.jpg,"open', "a.jpg,found"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    pairs = read_all(TableSource(path=str(tmp_path), unit_rows=unit_rows))
    assert [pair.reject for pair in pairs] == [None] * 4 + [Reject.SHARD_DAMAGED, None, None]
    assert (pairs[4].key, pairs[4].detail) == ("@row-4", "one row: a row of more than 1000 characters")
    assert [pair.caption for pair in pairs[5:]] == ['"open', "found"]


def test_a_caption_of_any_length_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    long = 'say "' + "x" * 200_000
    (tmp_path / "t.csv").write_text('image,caption\na.jpg,"' + long.replace('"', '""') + '"\na.jpg,next\n')
    assert [pair.caption for pair in read_all(TableSource(path=str(tmp_path)))] == [long, "next"]


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    for name in ("n01_cat/1.jpg", "n01_cat/sub/2.JPEG", "b_dog/1.png", "b_dog/notes.txt", "empty/readme.md"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "set"


def test_class_folders(picture_folder: Path) -> None:
    pairs = read_all(FolderSource(path=str(picture_folder), template="a photo of a {}", unit_rows=1))
    assert facts(pairs) == [
        ("1.png", b"b_dog/1.png", "a photo of a b dog", None, 0),
        ("1.jpg", b"n01_cat/1.jpg", "a photo of a n01 cat", None, 2),
        ("sub/2.JPEG", b"n01_cat/sub/2.JPEG", "a photo of a n01 cat", None, 2),
    ]
    assert [pair.uid for pair in pairs] == ["b_dog/1.png", "n01_cat/1.jpg", "n01_cat/sub/2.JPEG"]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_folder_with_metadata(picture_folder: Path, form: str) -> None:
    names = ["n01_cat/1.jpg", "b_dog/1.png", "b_dog/1.png", "/etc/hostname", "b_dog/../../x", "b_dog/none.jpg"]
    rows = [{"file_name": name, "text": f"c{i}", "label": i} for i, name in enumerate(names)]
    path = picture_folder / f"metadata.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if form == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    pairs = read_all(FolderSource(path=str(picture_folder), caption="text", unit_rows=2))
    assert facts(pairs) == [
        ("n01_cat/1.jpg", b"n01_cat/1.jpg", "c0", None, 0),
        ("b_dog/1.png", b"b_dog/1.png", "c1", None, 1),
        ("b_dog/1.png", b"b_dog/1.png", "c2", Reject.DUPLICATE_KEY, 2),
        ("/etc/hostname", None, "c3", Reject.IMAGE_MISSING, 3),
        ("b_dog/../../x", None, "c4", Reject.IMAGE_MISSING, 4),
        ("b_dog/none.jpg", None, "c5", Reject.IMAGE_MISSING, 5),
        ("n01_cat/sub/2.JPEG", b"n01_cat/sub/2.JPEG", None, Reject.CAPTION_MISSING, None),
    ]
    assert "no row of the metadata names it" in pairs[-1].detail


def test_json_lines_that_do_not_parse_are_one_record_each(picture_folder: Path) -> None:
    lines = ['{"file_name": "b_dog/1.png", "caption": "a"}', "{broken", "[1]", '{"file_name": 3, "caption": "b"}', "{}"]
    (picture_folder / "metadata-train.jsonl").write_text("\n".join(lines))
    pairs = read_all(FolderSource(path=str(picture_folder), unit_rows=2))
    assert [(pair.key, pair.reject) for pair in pairs] == [
        ("b_dog/1.png", None),
        ("@row-1", Reject.SHARD_DAMAGED),
        ("@row-2", Reject.SHARD_DAMAGED),
        ("row-3", Reject.IMAGE_MISSING),
        ("row-4", Reject.IMAGE_MISSING),
        ("n01_cat/1.jpg", Reject.CAPTION_MISSING),
        ("n01_cat/sub/2.JPEG", Reject.CAPTION_MISSING),
    ]


def test_folders_without_anything_to_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="neither a metadata file"):
        list_units(FolderSource(path=str(tmp_path)))
    with pytest.raises(PathError, match="no such folder"):
        list_units(FolderSource(path=str(tmp_path / "x")))


@needs_assets
def test_real_parquet_with_labels() -> None:
    labels = LabelCaptions(templates=["a photo of a {}"], seed=0)
    path = str(ASSETS / "tiny-imagenet20-val.parquet")
    pairs = read_all(ParquetSource(path=path, label="label", key="uid", captions_from_labels=labels))
    assert len(pairs) == 1000
    assert {pair.reject for pair in pairs} == {None}
    assert {pair.label for pair in pairs} == set(range(20))


def test_the_number_of_pairs_is_estimated_by_what_a_shard_holds() -> None:
    images = Unit(0, "cat", "/photos/cat", 0, -1, 4 * FolderSource.bytes_a_pair)
    rows = Unit(1, "metadata.csv", "/photos/metadata.csv", 0, -1, 7 * TableSource.bytes_a_pair)
    assert FolderSource(path="/photos").about_pairs([images, rows]) == 4 + 7
    halves = [Unit(i, "0.tar", "/0.tar", 0, -1, 10 * WebDataset.bytes_a_pair) for i in range(2)]
    assert WebDataset(path="/0.tar").about_pairs(halves) == 10
