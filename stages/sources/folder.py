"""A folder of images: with a metadata file as Hugging Face's imagefolder has it, or one subfolder a class."""

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pyarrow import fs

from ..files import Found, PathError, find_folders, is_address, join, list_folder, parent
from ..samples import RawPair, Unit, hash_uid
from ..stage import config
from .common import (
    IMAGE_SUFFIXES,
    SourceConfig,
    SourceError,
    UnitWriter,
    class_index,
    damaged,
    inside,
    make_pair,
    native_of,
    number_units,
    printable,
    slices,
)
from .rows import Row, RowsEnd, count_rows, header, image_place, image_suffix, load_image, walk
from .table import check_columns

METADATA = re.compile(r"metadata([-_.][^/]*)?\.(csv|tsv|jsonl|parquet)")


@config
class FolderSource(SourceConfig):
    """Folders of images.

    With metadata files (metadata.csv, .tsv, .jsonl, .parquet, or several metadata-*): their rows name the images, in
    the column `file_name`, relative to the folder. Without: every subfolder is a class, its label is its position
    among the sorted subfolders, and the caption is made from its name.
    """

    path: str | list[str]
    """Folders or globs of folders; local, s3:// or gs://."""
    kind: Literal["folder"] = "folder"
    file_name: str = "file_name"
    """Metadata column with the image's path."""
    caption: str = "caption"
    """Metadata column with the caption."""
    label: str = "label"
    """Metadata column with the class index, where the metadata has it."""
    template: str = "a photo of a {}"
    """Caption of a class folder; {} is its name, with spaces for underscores."""
    unit_rows: int = 4096
    """Images of one unit of work."""

    def __post_init__(self) -> None:
        if self.unit_rows < 1:
            raise ValueError("unit_rows must be at least 1")
        if "{}" not in self.template:
            raise ValueError("template needs {} where the name of the class folder goes")

    def list_units(self) -> list[Unit]:
        """Return slices of at most `unit_rows` images of every metadata file or class folder.

        Raises:
            SourceError: a folder has neither metadata nor subfolders with images, or metadata lacks a column.
        """
        files: list[tuple[Found, list[tuple[int, int]]]] = []
        for folder in find_folders(self.path):
            tables = [info for info in list_folder(folder.path, recursive=False) if METADATA.fullmatch(info.path)]
            here = [_table(self, folder, info) for info in tables] or _classes(self, folder)
            if not here:
                raise SourceError(
                    f"{folder.path}: neither a metadata file (metadata.csv, .tsv, .jsonl, .parquet) nor subfolders with "
                    "images; name the folder that holds them"
                )
            files += here
        return number_units(files)

    def read_unit(self, unit: Unit) -> Iterator[RawPair]:
        """Yield the pairs of a slice. The key is the image's path in the folder; its second row is a duplicate."""
        if not _is_table(unit):
            yield from _class_pairs(self, unit)
            return
        seen: set[object] = set()
        for step in walk(unit):
            if isinstance(step, RawPair):
                yield step
                continue
            number, row = step
            name = row.get(self.file_name)
            if inside(unit, number):
                yield _pair(self, unit, number, row, duplicate=name in seen)
            if isinstance(name, str) and name:
                seen.add(name)

    def open_writer(self, unit: Unit, folder: Path) -> UnitWriter:
        """Return the writer of a unit."""
        return FolderWriter(self, unit, folder)


def _below(folder: Found, relative: str) -> str:
    return f"{folder.relative}/{relative}" if folder.relative else relative


def _table(source: FolderSource, folder: Found, info: fs.FileInfo) -> tuple[Found, list[tuple[int, int]]]:
    path = join(folder.path, info.path)
    try:
        present = header(path) if info.size else []
    except RowsEnd:
        present = []
    if present:
        check_columns(path, present, required=[source.file_name], caption=source.caption, labels=None)
    return Found(path, _below(folder, info.path), info.size), slices(count_rows(path), source.unit_rows)


def _classes(source: FolderSource, folder: Found) -> list[tuple[Found, list[tuple[int, int]]]]:
    cuts = []
    for info in list_folder(folder.path, recursive=False):
        if info.type != fs.FileType.Directory:
            continue
        path = join(folder.path, info.path)
        images = _images(path)
        if images:
            found = Found(path, _below(folder, info.path), sum(image.size for image in images))
            cuts.append((found, slices(len(images), source.unit_rows)))
    return cuts


def _images(folder: str) -> list[fs.FileInfo]:
    infos = list_folder(folder, recursive=True)
    return [info for info in infos if info.is_file and info.path.lower().endswith(IMAGE_SUFFIXES)]


def _is_table(unit: Unit) -> bool:
    return METADATA.fullmatch(unit.shard.rpartition("/")[2]) is not None


def _class_pairs(source: FolderSource, unit: Unit) -> Iterator[RawPair]:
    name = unit.shard.rpartition("/")[2]
    try:
        siblings = list_folder(parent(unit.path), recursive=False)
        images = _images(unit.path)
    except PathError:
        yield damaged(unit, f"row-{unit.start}")
        return
    classes = [info.path for info in siblings if info.type == fs.FileType.Directory]
    caption = source.template.replace("{}", printable(name).replace("_", " "))
    for number, info in enumerate(images):
        if inside(unit, number):
            row = {source.file_name: info.path, source.caption: caption, source.label: classes.index(name)}
            yield _pair(source, unit, number, row, duplicate=False)


def _pair(source: FolderSource, unit: Unit, number: int, row: Row, duplicate: bool) -> RawPair:
    name = row.get(source.file_name)
    caption = row.get(source.caption)
    return make_pair(
        unit,
        printable(name) if isinstance(name, str) and name else f"row-{number}",
        image=load_image(_place(unit, name)),
        caption=caption if isinstance(caption, str) else None,
        duplicate=duplicate,
        label=class_index(row[source.label]) if row.get(source.label) is not None else None,
        native_uid=None,
        image_suffix=image_suffix(name),
        native=row,
    )


def _place(unit: Unit, name: object) -> str | None:
    """Return where an image of the folder lies; None for a name that leads out of the folder."""
    if not isinstance(name, str) or is_address(name) or name.startswith("/"):
        return None
    return image_place(unit.path if _is_table(unit) else join(unit.path, "table"), name)


class FolderWriter(UnitWriter):
    """Copies image files byte for byte and writes one metadata-00042.jsonl a unit, whatever the source had.

    A replaced image goes to images/00042/ under its old path (with the new suffix added, where it is another), because
    another metadata file may name the same image.
    """

    def __init__(self, source: FolderSource, unit: Unit, folder: Path) -> None:
        super().__init__(folder, f"metadata-{unit.index:05d}.jsonl")
        self._source = source
        self._unit = unit
        self._base = unit.shard.rpartition("/")[0] if _is_table(unit) else unit.shard

    def _open(self) -> None:
        self._file = self._temporary.open("w", encoding="ascii")

    def _close(self) -> None:
        self._file.close()

    def copy(self, pair: RawPair) -> str:
        row: Row = native_of(pair)
        name = row.get(self._source.file_name)
        if _place(self._unit, name) is not None:
            name = posixpath.normpath(f"{self._base}/{name}".lstrip("/"))
            if pair.image is not None:
                self._write_beside(name, pair.image)
        return self._write(pair, row | {self._source.file_name: name})

    def replace(self, pair: RawPair, *, image: bytes, suffix: str, caption: str) -> str:
        row: Row = native_of(pair)
        old = row.get(self._source.file_name)
        if isinstance(old, str) and _place(self._unit, old) is not None:
            name = posixpath.normpath(f"images/{self._unit.index:05d}/{self._base}/{old}")
            name += "" if name.lower().endswith(suffix) else suffix
        else:
            name = f"images/{self._unit.index:05d}/{hash_uid(pair.uid)}{suffix}"
        self._write_beside(name, image)
        return self._write(pair, row | {self._source.file_name: name, self._source.caption: caption})

    def _write(self, pair: RawPair, row: Row) -> str:
        # ASCII with escapes: also a caption that was not UTF-8 comes back as the same reject reason.
        self._file.write(json.dumps(row, default=str) + "\n")
        name = row.get(self._source.file_name)
        return self._row_uid(printable(name) if isinstance(name, str) and name else f"row-{self._rows}")
