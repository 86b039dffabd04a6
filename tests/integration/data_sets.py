"""Small data sets for the integration tests: with every kind of damage, and in every format."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipsan.stages.sources import FolderSource, ParquetSource, SourceConfig, TableSource
from tests.conftest import add_member, caption, picture


def truncated_jpeg() -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(picture(1, side=64))).save(file, "JPEG")
    return file.getvalue()[:-400]


def bomb() -> bytes:
    """A PNG whose header says 20,000 x 20,000."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


BAD: dict[str, tuple[bytes | None, bytes | None]] = {
    "image_truncated": (truncated_jpeg(), b"half a picture"),
    "image_unreadable": (b"this is a text, whatever its name says", b"a lying name"),
    "image_empty": (b"", b"nothing at all"),
    "image_too_large": (bomb(), b"a bomb"),
    "caption_missing": (picture(2), None),
    "image_missing": (None, b"words alone"),
    "caption_not_utf8": (picture(3), b"caf\xe9 \xff"),
    "caption_empty": (picture(4), b" \t\n"),
}
"""Reason -> image and caption of a pair that must be rejected for it."""
EVIL = "<script>alert('{}')</script> & a photo of a ball"


def add_pair(tar: tarfile.TarFile, key: str, image: bytes | None, words: bytes | None) -> None:
    if image is not None:
        add_member(tar, f"{key}.jpg", image)
    if words is not None:
        add_member(tar, f"{key}.txt", words)


def write_damaged(folder: Path) -> tuple[Path, dict[str, int]]:
    """Write good pairs with hostile captions among every kind of damage; return what must be rejected."""
    folder.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(40):
                add_pair(tar, f"good{i:03d}", picture(100 * shard + i), EVIL.format(100 * shard + i).encode())
            for reason, (image, words) in BAD.items():
                add_pair(tar, reason, image, words)
            add_pair(tar, "good000", picture(7), b"this key was taken")
    cut = folder / "00002.tar"
    with tarfile.open(cut, "w") as tar:
        for i in range(20):
            add_pair(tar, f"good{i:03d}", picture(300 + i), caption(300 + i).encode())
        last = tar.offset
        add_pair(tar, "lost", picture(400), b"a lost pair")
    cut.write_bytes(cut.read_bytes()[: last + 700])  # in the middle of the lost pair's image
    (folder / "00003.tar").write_bytes(b"no tar at all " * 100)
    rejected = dict.fromkeys(BAD, 2) | {"duplicate_key": 2, "shard_damaged": 2}
    return folder, rejected


def write_table(folder: Path, name: str, image_column: str, pairs: int) -> None:
    (folder / "images").mkdir(parents=True)
    lines = [f"{image_column},caption"]
    for i in range(pairs):
        (folder / "images" / f"{i:03d}.png").write_bytes(picture(i))
        lines.append(f'images/{i:03d}.png,"{caption(i)}, with a comma"')
    lines.append("images/absent.png,no such file")
    (folder / name).write_text("\n".join(lines) + "\n")


def make_source(kind: str, folder: Path, pairs: int) -> SourceConfig:
    """Write `pairs` good pairs and one bad one in a format; return its source."""
    if kind == "table":
        write_table(folder, "pairs.csv", "image", pairs)
        return TableSource(path=str(folder / "pairs.csv"), unit_rows=25)
    if kind == "folder":
        write_table(folder, "metadata.csv", "file_name", pairs)
        return FolderSource(path=str(folder), unit_rows=25)
    folder.mkdir(parents=True)
    table = pa.table(
        {
            "image": [*(picture(i) for i in range(pairs)), b"no image"],
            "caption": [*(caption(i) for i in range(pairs)), "no picture"],
        }
    )
    pq.write_table(table, folder / "pairs.parquet", row_group_size=25)
    return ParquetSource(path=str(folder / "pairs.parquet"), unit_rows=25)
