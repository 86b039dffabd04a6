"""What people really have, rebuilt from public bug reports: a row a case, and what becomes of it.

`pytest -v tests/unit/stages/sources/test_cases.py` prints the table. Where most of a set cannot be read, one line names what is likely to
help; nothing is lost without a count and nothing is made up.
"""

import base64
import gzip
import json
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsan.stages.decode import MAX_PIXELS, BadImage, decode
from clipsan.stages.sources import FolderSource, ParquetSource, SourceConfig, SourceError, TableSource, WebDataset
from clipsan.stages.sources.hints import likely_remedy
from tests.conftest import picture
from tests.unit.stages.sources.helpers import read_all, write_tar

N = 6
PNG = [picture(i) for i in range(N)]
TEXT = [f"a photo of number {i}" for i in range(N)]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@dataclass(frozen=True)
class Case:
    """A set, and what is right: pairs that can be scanned, reasons of the others, and words of the one line that helps."""

    make: Callable[[Path], SourceConfig]
    read: int = N
    rejected: dict[str, int] = field(default_factory=dict)
    says: str = ""
    refused: bool = False
    """The words are those of an error, before anything is read."""


def tar(
    *members: tuple[str, Any], sort: bool = False, name: str = "00000.tar", **settings: str
) -> Callable[[Path], SourceConfig]:
    """Return what makes a tar with some members of every key; `sort` puts all of the first kind before all of the second."""

    def make(home: Path) -> SourceConfig:
        files = [(f"{i:05d}{suffix}", content(i)) for i in range(N) for suffix, content in members]
        write_tar(home / name, sorted(files, key=lambda file: file[0].partition(".")[2]) if sort else files)
        return WebDataset(path=str(home), **settings)

    return make


def image(i: int) -> bytes:
    return PNG[i]


def text(i: int) -> bytes:
    return TEXT[i].encode()


def fields(name: str) -> Callable[[int], bytes]:
    return lambda i: json.dumps({name: TEXT[i], "width": 32}).encode()


def shards(spoil: Callable[[Path], None]) -> Callable[[Path], SourceConfig]:
    """Return what makes three tars, of which the second is spoilt."""

    def make(home: Path) -> SourceConfig:
        for number in range(3):
            write_tar(
                home / f"{number}.tar",
                [(f"{i}{s}", c(i)) for i in range(N) for s, c in ((".png", image), (".txt", text))],
            )
        spoil(home / "1.tar")
        return WebDataset(path=[str(home / f"{number}.tar") for number in range(3)])

    return make


def parquet(images: Any, captions: Any, **settings: Any) -> Callable[[Path], SourceConfig]:
    def make(home: Path) -> SourceConfig:
        pq.write_table(pa.table({"image": images, "caption": captions}), home / "a.parquet")
        return ParquetSource(path=str(home), **settings)

    return make


def table(
    head: str,
    row: Callable[[int], str],
    name: str = "pairs.csv",
    code: str = "utf-8",
    zipped: bool = False,
    **settings: Any,
) -> Callable[[Path], SourceConfig]:
    """Return what makes a text table beside a folder of images."""

    def make(home: Path) -> SourceConfig:
        (home / "images").mkdir()
        for i in range(N):
            (home / f"images/{i}.png").write_bytes(PNG[i])
        data = "\n".join([head, *map(row, range(N)), ""]).encode(code)
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_bytes(gzip.compress(data) if zipped else data)
        return TableSource(path=str(home / name), **settings)

    return make


def folder(files: Callable[[], dict[str, bytes]], **settings: Any) -> Callable[[Path], SourceConfig]:
    def make(home: Path) -> SourceConfig:
        for name, data in files().items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(data)
        return FolderSource(path=str(home), **settings)

    return make


def named(pattern: str, *more: tuple[str, Callable[[int], bytes]]) -> dict[str, bytes]:
    """Return images under a pattern of names, and files beside each."""
    found = {}
    for i in range(N):
        name = pattern.format(i)
        found[name] = PNG[i]
        found |= {name.rpartition(".")[0] + suffix: content(i) for suffix, content in more}
    return found


def nfd(home: Path) -> SourceConfig:
    source = table("image,caption", lambda i: f"images/café{i}.png,{TEXT[i]}")(home)
    for i in range(N):
        (home / f"images/{i}.png").rename(home / unicodedata.normalize("NFD", f"images/café{i}.png"))
    return source


def twice(home: Path) -> SourceConfig:
    columns = [pa.array(PNG), pa.array(TEXT), pa.array(TEXT)]
    pq.write_table(pa.Table.from_arrays(columns, ["image", "caption", "caption"]), home / "a.parquet")
    return ParquetSource(path=str(home))


def metadata(rows: list[bytes], start: bytes = b"") -> dict[str, bytes]:
    return named("{}.png") | {"metadata.jsonl": start + b"\n".join(rows) + b"\n"}


def rows_of(captions: list[Any]) -> list[bytes]:
    return [json.dumps({"file_name": f"{i}.png", "caption": caption}).encode() for i, caption in enumerate(captions)]


def plain(i: int) -> str:
    return f"images/{i}.png,{TEXT[i]}"


BASE64 = [base64.b64encode(data).decode() for data in PNG]
CASES = {
    "suffixes of input and output": Case(
        tar((".input.png", image), (".outputs.txt", text)),
        0,
        {"image_missing": N},
        "data.image=.input.png data.text=.outputs.txt",
    ),
    "the same with the settings": Case(
        tar((".input.png", image), (".outputs.txt", text), image=".input.png", text=".outputs.txt")
    ),
    "all images, then all texts": Case(
        tar((".png", image), (".txt", text), sort=True),
        0,
        {"caption_missing": N, "duplicate_key": N},
        "tar --sort=name",
    ),
    "json with another key": Case(
        tar((".png", image), (".json", fields("TEXT"))), 0, {"caption_missing": N}, "data.caption=TEXT"
    ),
    "json with no caption at all": Case(
        tar((".png", image), (".json", fields("size"))), 0, {"caption_missing": N}, "size"
    ),
    "suffix .jfif": Case(tar((".jfif", image), (".txt", text))),
    "suffix .caption": Case(tar((".png", image), (".caption", text))),
    "suffix .caption.txt": Case(tar((".png", image), (".caption.txt", text))),
    "an unknown suffix of images": Case(
        tar((".png_", image), (".txt", text)), 0, {"image_missing": N}, "data.image=.png_"
    ),
    "a class index and no caption": Case(
        tar((".png", image), (".cls", lambda i: b"3")), 0, {"caption_missing": N}, "no caption"
    ),
    "two pictures a key": Case(
        tar((".jpg", image), (".png", image), (".txt", text)), 0, {"ambiguous": N}, "data.image=.jpg"
    ),
    "a picture and a decoy .gif": Case(tar((".gif", image), (".png", image), (".txt", text))),
    "an absent shard": Case(shards(Path.unlink), 2 * N, {"shard_damaged": 1}),
    "an empty shard": Case(shards(lambda path: path.write_bytes(b"")), 2 * N, {"shard_damaged": 1}),
    "a cut shard": Case(
        shards(lambda path: path.write_bytes(path.read_bytes()[:-11000])),
        2 * N + 4,
        {"shard_damaged": 1, "caption_missing": 1},
    ),
    "a shard that is a page of HTML": Case(
        shards(lambda path: path.write_bytes(b"<html>404")), 2 * N, {"shard_damaged": 1}
    ),
    "a shard that is a git-lfs pointer": Case(
        shards(lambda path: path.write_bytes(POINTER)), 2 * N, {"shard_damaged": 1}
    ),
    "a gzipped tar under the name of a tar": Case(
        shards(lambda path: path.write_bytes(gzip.compress(path.read_bytes()))), 3 * N
    ),
    "string_view and binary_view": Case(parquet(pa.array(PNG, pa.binary_view()), pa.array(TEXT, pa.string_view()))),
    "large strings and dictionaries": Case(
        parquet(pa.array(PNG, pa.large_binary()), pa.array(TEXT).dictionary_encode())
    ),
    "captions of a fixed-size list": Case(parquet(PNG, pa.array([[t, t] for t in TEXT], pa.list_(pa.string(), 2)))),
    "a column that is null": Case(parquet(pa.nulls(N), TEXT), 0, {"image_missing": N}, "the image is null"),
    "a caption column that is null": Case(parquet(PNG, pa.nulls(N)), 0, {"caption_missing": N}, "the caption is null"),
    "a column twice": Case(twice, says="stands 2 times; rename all but one", refused=True),
    "images in base64": Case(parquet(BASE64, TEXT), 0, {"image_missing": N}, "base64 and no path; decode the images"),
    "images as data: addresses": Case(
        parquet([f"data:image/png;base64,{b}" for b in BASE64], TEXT), 0, {"image_missing": N}, "base64 and no path"
    ),
    "addresses of the web": Case(
        parquet([f"https://h/{i}.png" for i in range(N)], TEXT),
        0,
        {"image_missing": N},
        "nothing is fetched from the web",
    ),
    "open_clip's tab-separated .csv": Case(
        table("filepath\ttitle", lambda i: plain(i).replace(",", "\t")),
        says="set data.image=filepath data.caption=title",
        refused=True,
    ),
    "the same with the settings ": Case(
        table("filepath\ttitle", lambda i: plain(i).replace(",", "\t"), image="filepath", caption="title")
    ),
    "semicolons": Case(table("image;caption", lambda i: plain(i).replace(",", ";"))),
    "a space behind the comma": Case(table("image, caption", lambda i: plain(i).replace(",", ", "))),
    "a lone quotation mark": Case(table("image\tcaption", lambda i: f'images/{i}.png\t{i} 5" wide', name="pairs.tsv")),
    "a comma in the last column": Case(table("image,caption", lambda i: f"{plain(i)}, at night")),
    "a comma in the first column": Case(
        table("caption,image", lambda i: f"{i}, at night,images/{i}.png"), 0, {"shard_damaged": N}, "quote texts"
    ),
    "a field of 200,000 characters": Case(
        table("image,caption", lambda i: f"images/{i}.png,{'word ' * 40_000 if i == 2 else 'a'}")
    ),
    "UTF-16": Case(table("image,caption", plain, code="utf-16")),
    "a byte order mark": Case(table("image,caption", plain, code="utf-8-sig")),
    "a gzipped table": Case(table("image,caption", plain, name="pairs.csv.gz", zipped=True)),
    "a table in Latin-1": Case(
        table("image,caption", lambda i: f"images/{i}.png,café", code="latin-1"),
        0,
        {"caption_not_utf8": N},
        "convert the text to UTF-8",
    ),
    "a header twice": Case(
        table("image,caption,caption", lambda i: plain(i) + ",b"), says="stands 2 times", refused=True
    ),
    "Windows paths": Case(table("image,caption", lambda i: plain(i).replace("/", "\\"))),
    "a path of a Windows drive": Case(
        table("image,caption", lambda i: f"C:\\data\\{i}.png,a"), 0, {"image_missing": N}, "a path of a Windows drive"
    ),
    "paths out of the table's folder": Case(
        table("image,caption", lambda i: f"../{plain(i)}", name="ann/pairs.csv"),
        0,
        {"image_missing": N},
        "data.roots=[",
    ),
    "bare names": Case(table("image,caption", lambda i: plain(i)[7:]), 0, {"image_missing": N}, "set data.roots=["),
    "NFC in the table, NFD on the disk": Case(nfd),
    "img2dataset's files": Case(
        folder(
            lambda: (
                named("00000/{:09d}.png", (".txt", text), (".json", fields("caption"))) | {"00000_stats.json": b"{}"}
            )
        )
    ),
    "a flat folder with texts": Case(folder(lambda: named("{}.png", (".txt", text)))),
    "a flat folder without": Case(folder(lambda: named("{}.png")), 0, {"caption_missing": N}, "no text beside it"),
    "folders of classes": Case(
        folder(lambda: named("birds/{}.png")), 0, {"caption_missing": N}, "data.template='a photo of a {}'"
    ),
    "folders of classes with the setting": Case(folder(lambda: named("birds/{}.png"), template="a photo of a {}")),
    "lists, numbers and nulls as captions": Case(
        folder(lambda: metadata(rows_of([["a", "b"], 7, None, "", "b", ["c"]]))),
        3,
        {"caption_missing": 2, "caption_empty": 1},
    ),
    "JSON lines with a byte order mark": Case(folder(lambda: metadata(rows_of(TEXT), b"\xef\xbb\xbf"))),
    "a broken line of JSON": Case(
        folder(lambda: metadata([*rows_of(TEXT)[:-1], b"{no"])), N - 1, {"shard_damaged": 1, "caption_missing": 1}
    ),
    "images that the metadata do not name": Case(
        folder(lambda: metadata(rows_of(TEXT[:4]))), 4, {"caption_missing": 2}
    ),
    "names that start with a dot": Case(
        folder(lambda: named("._{}.png", (".txt", text))), 0, {"hidden_name": N}, "rename it"
    ),
}
"""By name; the wording of what helps is that of the setting or the command to use."""


@pytest.mark.parametrize("name", list(CASES))
def test_a_case_has_its_outcome(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    source = case.make(tmp_path)
    if case.refused:
        with pytest.raises(SourceError) as error:
            read_all(source)
        assert case.says in str(error.value)
        assert "\n" not in str(error.value)
        return
    rejected: list[tuple[str, str]] = []
    pairs = read_all(source)
    for pair in pairs:
        try:
            assert pair.reject is not None or decode(pair.image or b"", MAX_PIXELS)
        except BadImage as error:
            rejected.append((error.reason.value, error.detail))
        if pair.reject is not None:
            rejected.append((pair.reject.value, pair.detail))
    assert (len(pairs) - len(rejected), dict(Counter(reason for reason, _ in rejected))) == (case.read, case.rejected)
    assert all(detail for _, detail in rejected)
    assert case.says in (likely_remedy(rejected, len(pairs)) or "")
