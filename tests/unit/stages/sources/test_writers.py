"""Rewriting: what is copied stays as it is, what is replaced differs where it should, errors leave nothing behind."""

import csv
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipsan.stages.samples import RawPair, Reject
from clipsan.stages.sources import (
    FolderSource,
    LabelCaptions,
    ParquetSource,
    SourceConfig,
    TableSource,
    WebDataset,
    list_units,
    open_writer,
    read_unit,
    rewritten,
)
from tests.unit.stages.sources.helpers import ASSETS, needs_assets, read_all, write_tar

COUNT = 30


def image(i: int) -> bytes:
    return b"image %03d" % i * (i + 1)


def tars(folder: Path) -> SourceConfig:
    for part in range(2):
        files = []
        for i in range(part, COUNT, 2):
            extra = {"caption": f"c{i}", "uid": f"{i:032x}", "url": "http://\u00e4"}
            key = f"d/{i:03d}" + "k" * (i * 7)  # beyond 100 characters: extended headers
            json_member = (f"{key}.json", json.dumps(extra).encode())
            files += [
                (f"{key}.JPG", image(i)),
                (f"{key}.txt", f"c{i}".encode()),
                json_member,
                (f"{key}.cls", b"%d" % i),
            ]
        write_tar(folder / f"in/{part}.tar", files)
    return WebDataset(path=str(folder / "in"), unit_bytes=12_000)


def parquet(folder: Path) -> SourceConfig:
    schema = pa.schema(
        [
            pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]), metadata={"k": "v"}),
            ("caption", pa.list_(pa.string())),
            ("label", pa.int8()),
            ("id", pa.large_string()),
            ("when", pa.timestamp("ns")),
        ],
        metadata={"huggingface": "{}"},
    )
    rows = [
        {
            "image": {"bytes": image(i), "path": f"{i}.jpg"},
            "caption": [f"c{i}", "other"],
            "label": i,
            "id": f"k{i}",
            "when": i,
        }
        for i in range(COUNT)
    ]
    (folder / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "in/p.parquet", row_group_size=7)
    return ParquetSource(path=str(folder / "in"), label="label", key="id", unit_rows=10)


def parquet_of_labels(folder: Path) -> SourceConfig:
    rows = [{"image": image(i), "label": i, "names": f"cat {i}, kitten {i}"} for i in range(COUNT)]
    (folder / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "in/p.parquet")
    labels = LabelCaptions(templates=["a {}", "the {}", "my {}"], seed=1)
    return ParquetSource(path=str(folder / "in"), label="label", captions_from_labels=labels, unit_rows=10)


def pictures(folder: Path) -> None:
    for i in range(COUNT):
        path = folder / f"in/c{i % 3}/{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(i))


def parquet_of_paths(folder: Path) -> SourceConfig:
    pictures(folder)
    rows = [{"image": f"c{i % 3}/{i:03d}.jpg", "caption": f"c{i}", "label": i} for i in range(COUNT)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "in/p.parquet")
    return ParquetSource(path=str(folder / "in"), label="label", unit_rows=10)


def table(folder: Path) -> SourceConfig:
    pictures(folder)
    with (folder / "in/sub.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["n", "image", "caption", "label", "note"])
        writer.writerows([i, f"c{i % 3}/{i:03d}.jpg", f"c{i}", i, 'a\n"note"\t'] for i in range(COUNT))
    return TableSource(path=str(folder / "in"), label="label", unit_rows=10)


def folder_of_classes(folder: Path) -> SourceConfig:
    pictures(folder)
    return FolderSource(path=str(folder / "in"), template="a photo of a {}", unit_rows=4)


def folder_of_metadata(folder: Path) -> SourceConfig:
    pictures(folder)
    lines = [{"file_name": f"c{i % 3}/{i:03d}.jpg", "caption": f"c{i}", "label": i, "note": [i]} for i in range(COUNT)]
    (folder / "in/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return FolderSource(path=[str(folder / "in")], unit_rows=10)


FORMATS = [tars, parquet, parquet_of_labels, parquet_of_paths, table, folder_of_classes, folder_of_metadata]
every_format = pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__)


def rewrite(
    source: SourceConfig, out: Path, poisoned: Callable[[RawPair], bool], kept: Callable[[RawPair], bool]
) -> list[str]:
    uids = []
    for unit in list_units(source):
        with open_writer(source, unit, out) as writer:
            for pair in read_unit(source, unit):
                if kept(pair) and poisoned(pair):
                    new = b"poisoned " + pair.uid.encode()
                    uids.append(writer.replace(pair, image=new, suffix=".png", caption='a b\u00e4nana, \n"ripe"'))
                elif kept(pair):
                    uids.append(writer.copy(pair))
    return uids


def facts(pairs: list[RawPair]) -> list[tuple]:
    return [(pair.image, pair.caption, pair.label, pair.native_uid, pair.reject) for pair in pairs]


@every_format
def test_a_copy_reads_the_same(make: Callable[[Path], SourceConfig], tmp_path: Path) -> None:
    source, out = make(tmp_path), tmp_path / "out"
    before = read_all(source)
    assert [pair.reject for pair in before] == [None] * COUNT
    assert len(list_units(source)) > 2
    uids = rewrite(source, out, lambda pair: False, lambda pair: True)
    after = read_all(rewritten(source, out))
    assert facts(after) == facts(before)
    assert [pair.uid for pair in after] == uids
    assert not list(out.rglob("*.tmp"))


@every_format
def test_replaced_pairs_differ_in_image_and_caption_alone(make: Callable[[Path], SourceConfig], tmp_path: Path) -> None:
    source, out = make(tmp_path), tmp_path / "out"
    before = read_all(source)

    def poisoned(pair: RawPair) -> bool:
        return int(pair.label or 0) % 4 == 1

    def kept(pair: RawPair) -> bool:
        return int(pair.label or 0) % 5 != 2

    uids = rewrite(source, out, poisoned, kept)
    after = read_all(rewritten(source, out))
    assert [pair.uid for pair in after] == uids
    expected = [
        (b"poisoned " + p.uid.encode(), 'a b\u00e4nana, \n"ripe"', p.label, p.native_uid, None)
        if poisoned(p)
        else (p.image, p.caption, p.label, p.native_uid, None)
        for p in before
        if kept(p)
    ]
    assert facts(after) == expected
    again = tmp_path / "again"
    assert rewrite(source, again, poisoned, kept) == uids
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert (again / path.relative_to(out)).read_bytes() == path.read_bytes()


@every_format
def test_an_error_leaves_nothing_behind(make: Callable[[Path], SourceConfig], tmp_path: Path) -> None:
    source, out = make(tmp_path), tmp_path / "out"
    unit = list_units(source)[0]

    def fail() -> None:
        with open_writer(source, unit, out) as writer:
            for pair in read_unit(source, unit):
                writer.replace(pair, image=b"x", suffix=".png", caption="y")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [path for path in out.rglob("*") if path.is_file()] == []


@every_format
def test_a_unit_without_pairs_is_a_valid_file(make: Callable[[Path], SourceConfig], tmp_path: Path) -> None:
    source, out = make(tmp_path), tmp_path / "out"
    rewrite(source, out, lambda pair: False, lambda pair: False)
    assert read_all(rewritten(source, out)) == []


def test_a_replaced_image_of_a_folder_keeps_its_name_in_sight(tmp_path: Path) -> None:
    uids = rewrite(folder_of_classes(tmp_path), tmp_path / "out", lambda pair: pair.label == 2, lambda pair: True)
    assert uids[0] == "metadata-00000.jsonl/c0/000.jpg"
    assert uids[-1] == "metadata-00008.jsonl/images/00008/c2/029.jpg.png"


def test_rejected_pairs_can_be_copied_and_stay_rejected(tmp_path: Path) -> None:
    files = [
        ("a.jpg", b"A"),
        ("b.txt", b"b"),
        ("c.jpg", b"C"),
        ("c.txt", b"\xff"),
        ("a.jpg", b"A"),
        ("a.txt", b"again"),
    ]
    source = WebDataset(path=str(write_tar(tmp_path / "in/s.tar", files)))
    rewrite(source, tmp_path / "out", lambda pair: False, lambda pair: True)
    after = read_all(rewritten(source, tmp_path / "out"))
    assert facts(after) == facts(read_all(source))
    assert [pair.reject for pair in after][-1] == Reject.DUPLICATE_KEY


def test_a_break_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"no tar" * 200)
    source = WebDataset(path=str(tmp_path / "s.tar"))
    unit = list_units(source)[0]
    with pytest.raises(ValueError, match="damaged shard"), open_writer(source, unit, tmp_path / "out") as writer:
        writer.copy(next(read_unit(source, unit)))


def spans(path: Path) -> dict[str, bytes]:
    """Raw bytes of every member: its headers, content and padding."""
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        return {
            info.name: data[info.offset : info.offset_data + -(-info.size // 512) * 512]
            for info in archive.getmembers()
        }


def test_tar_members_are_copied_byte_for_byte(tmp_path: Path) -> None:
    source = tars(tmp_path)
    rewrite(source, tmp_path / "out", lambda pair: False, lambda pair: True)
    before = {name: raw for path in (tmp_path / "in").glob("*.tar") for name, raw in spans(path).items()}
    after = {name: raw for path in (tmp_path / "out").glob("*.tar") for name, raw in spans(path).items()}
    assert after == before
    whole = WebDataset(path=str(tmp_path / "in"))
    rewrite(whole, tmp_path / "whole", lambda pair: False, lambda pair: True)
    for name in ("0.tar", "1.tar"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


def test_replacing_in_a_tar_updates_text_and_json_and_keeps_the_rest(tmp_path: Path) -> None:
    source = tars(tmp_path)
    rewrite(source, tmp_path / "out", lambda pair: pair.label == 1, lambda pair: True)
    name = "d/001" + "k" * 7
    for path in (tmp_path / "out").glob("1*.tar"):
        with tarfile.open(path) as archive:
            names = archive.getnames()
            if f"{name}.png" in names:
                content = {
                    suffix: archive.extractfile(name + suffix).read() for suffix in (".png", ".txt", ".json", ".cls")
                }
                assert f"{name}.JPG" not in names
    caption = 'a b\u00e4nana, \n"ripe"'
    assert content[".txt"].decode() == caption
    assert json.loads(content[".json"]) == {"caption": caption, "uid": f"{1:032x}", "url": "http://\u00e4"}
    assert content[".cls"] == b"1"


def test_parquet_keeps_schema_and_other_columns(tmp_path: Path) -> None:
    source = parquet(tmp_path)
    rewrite(source, tmp_path / "out", lambda pair: pair.label == 3, lambda pair: True)
    before = pq.read_table(tmp_path / "in/p.parquet")
    tables = [pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    after = pa.concat_tables(tables)
    assert after.schema.equals(before.schema, check_metadata=True)
    others = ["label", "id", "when"]
    assert after.select(others).equals(before.select(others))
    assert after.column("caption")[3].as_py() == ['a b\u00e4nana, \n"ripe"', "other"]
    everything_else = [i for i in range(COUNT) if i != 3]
    assert after.take(everything_else).equals(before.take(everything_else))


def test_row_groups_are_not_one_a_batch(tmp_path: Path) -> None:
    rows = [{"image": b"x", "caption": "c"} for _ in range(3000)]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in/p.parquet")
    rewrite(ParquetSource(path=str(tmp_path / "in")), tmp_path / "out", lambda pair: False, lambda pair: True)
    assert pq.ParquetFile(tmp_path / "out/p.parquet").num_row_groups == 3


def test_rows_must_come_in_order(tmp_path: Path) -> None:
    source = parquet_of_labels(tmp_path)
    rows = [{"image": b"x", "label": 0, "names": "a"} for _ in range(600)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in/p.parquet")
    source = ParquetSource(path=source.path, caption=None)
    unit = list_units(source)[0]
    pairs = list(read_unit(source, unit))
    with open_writer(source, unit, tmp_path / "out") as writer:
        writer.copy(pairs[500])
        with pytest.raises(ValueError, match="keep the read order"):
            writer.copy(pairs[0])


@given(
    keep=st.sets(st.integers(0, COUNT - 1)),
    poison=st.sets(st.integers(0, COUNT - 1)),
    unit_bytes=st.integers(600, 40_000),
)
@settings(max_examples=12, deadline=None)
def test_counts_add_up_for_any_choice(
    tmp_path_factory: pytest.TempPathFactory, keep: set[int], poison: set[int], unit_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("choice")
    source = WebDataset(path=str(tars(folder).path), unit_bytes=unit_bytes)
    before = read_all(source)
    clean = rewrite(source, folder / "clean", lambda pair: pair.label in poison, lambda pair: pair.label in keep)
    rest = rewrite(source, folder / "rest", lambda pair: False, lambda pair: pair.label not in keep)
    assert len(clean) + len(rest) == len(before)
    after = read_all(rewritten(source, folder / "clean")) + read_all(rewritten(source, folder / "rest"))
    assert sorted(pair.native_uid for pair in after) == sorted(pair.native_uid for pair in before)


@needs_assets
def test_real_tar_is_copied_as_it_is(tmp_path: Path) -> None:
    source = WebDataset(path=str(ASSETS / "coco-val128.tar"))
    rewrite(source, tmp_path, lambda pair: False, lambda pair: True)
    given = spans(ASSETS / "coco-val128.tar")
    # a mask beside a picture was not looked at, so it goes into no copy
    scanned = {name: span for name, span in given.items() if not name.endswith(".mask.png")}
    assert 0 < len(scanned) < len(given)
    assert (spans(tmp_path / "coco-val128.tar") == scanned) is True  # a comparison of bytes prints megabytes
