"""CSV and TSV tables that name image files beside a caption."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..files import PathError, Unreachable
from ..listing import find, roots_of
from ..samples import RawPair, Unit, hash_uid
from ..stage import Count, config
from .common import (
    LEAST_ROWS,
    PIECES,
    LabelCaptions,
    SourceConfig,
    SourceError,
    UnitWriter,
    check_hash,
    class_index,
    hex_uid,
    inside,
    make_pair,
    native_of,
    number_units,
    output_shard,
    printable,
    row_key,
    settle_paths,
    slices,
    thinned,
)
from .hints import CAPTION_NAMES, IMAGE_NAMES, likely, list_names
from .origin import origin_of
from .rows import (
    Row,
    RowsEnd,
    count_rows,
    header,
    header_delimiter,
    image_suffix,
    load_image,
    walk,
)

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")


@config
class TableSource(SourceConfig):
    """CSV or TSV with a header row, in UTF-8 or UTF-16, gzipped or not.

    An image path leads below the table's folder, or below one of `roots`.
    """

    path: str | list[str]
    """Tables, folders or globs, with {00..99} ranges; local, s3:// or gs://."""
    bytes_a_pair: ClassVar[int] = 40
    """A row of a table: a path and a caption."""
    kind: Literal["table"] = "table"
    image: str = "image"
    """Column with the image path."""
    caption: str | None = "caption"
    """Column with the caption; null: there is none."""
    label: str | None = None
    """Column with the class index."""
    key: str | None = None
    """Column that names a row within its table; null: the row number."""
    captions_from_labels: LabelCaptions | None = None
    """Makes captions for tables that have no caption column."""
    delimiter: str | None = None
    """Between two fields; null: a tab for .tsv, a comma for .csv, or what the header has instead (; or | or a tab)."""
    roots: list[str] = field(default_factory=list)
    """Folders beside the table's own that rows may name images in, and below which relative names are looked for."""
    sha256: str | None = None
    """Column with the SHA-256 of the image file; another image is rejected."""
    block: str | None = None
    """File with the SHA-256 of images to reject, one a line."""
    unit_rows: Count = 4096
    """Rows of one unit of work."""

    def __post_init__(self) -> None:
        check_rows_source(self.caption, self.captions_from_labels)
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ValueError("delimiter is one character, such as ';'")
        settle_paths(self)

    def list_units(self) -> list[Unit]:
        """Return slices of at most `unit_rows` rows of every table.

        Raises:
            SourceError: a table lacks a column that the source names.
        """
        files = find(self.path, SUFFIXES)
        for file in files:
            if file.size_bytes:
                try:
                    present = header(file.path, self.delimiter)
                except Unreachable:
                    raise
                except (RowsEnd, PathError):
                    continue  # read_unit reports it as a damaged shard
                check_columns(
                    file.path,
                    present,
                    required=[self.image, self.label, self.key, self.sha256],
                    caption=self.caption,
                    labels=self.captions_from_labels,
                )
        return number_units([(file, slices(count_rows(file.path, self.delimiter), self.unit_rows)) for file in files])

    def pieces(self, units: Sequence[Unit]) -> list[Unit]:
        if len(units) >= PIECES or self.unit_rows <= LEAST_ROWS:
            return list(units)
        return thinned(units, replace(self, unit_rows=LEAST_ROWS).list_units())

    def read_unit(self, unit: Unit) -> Iterator[RawPair]:
        """Yield the pairs of a slice. Rows before it are parsed too: a key that one of them has is a duplicate."""
        seen: set[object] = set()
        for step in walk(unit, self.delimiter, self.caption):
            if isinstance(step, RawPair):
                yield step
                continue
            number, row = step
            key = row.get(self.key) if self.key is not None else None
            if inside(unit, number):
                yield _pair(self, unit, number, row, duplicate=bool(key) and key in seen)
            seen.add(key)

    def open_writer(self, unit: Unit, folder: Path) -> UnitWriter:
        return TableWriter(self, unit, folder)

    def rewritten(self, folder: Path) -> SourceConfig:
        """Return the source that reads a copy, whose rows name images where they lay."""
        return replace(self, path=str(folder), roots=[*self.roots, *roots_of(self.path)])


def check_rows_source(caption: str | None, labels: LabelCaptions | None) -> None:
    """Raise ValueError for what no source of rows can mean."""
    if labels is not None and caption is None:
        raise ValueError("captions_from_labels needs caption, the name of the column that a written data set gets")


def check_columns(
    path: str,
    present: list[str],
    *,
    required: list[str | None],
    caption: str | None,
    labels: LabelCaptions | None,
    image_field: str = "image",
) -> None:
    """Check that a file has the columns that the source names, each once.

    Raises:
        SourceError: one is missing or stands twice; the message names file, column and what there is.
    """
    wanted = [name for name in required if name is not None]
    if caption is not None and not (labels is not None and caption not in present):
        wanted.append(caption)
    elif labels is not None and isinstance(labels.names, str):
        wanted.append(labels.names)
    missing = [name for name in wanted if name not in present]
    if missing:
        others = [column for column in present if column not in wanted]
        known = {caption: ("caption", CAPTION_NAMES), required[0]: (image_field, IMAGE_NAMES)}
        meant = [(known[name][0], likely(others, known[name][1])) for name in missing if name in known]
        remedy = " ".join(f"data.{setting}={column}" for setting, column in meant if column is not None)
        raise SourceError(
            f"{path}: no column {missing[0]!r}; it has {list_names(present) if present else 'no columns'}"
            + (f"; set {remedy}" if remedy else "")
        )
    for name in wanted:
        if present.count(name) > 1:
            raise SourceError(f"{path}: the column {name!r} stands {present.count(name)} times; rename all but one")


def _pair(source: TableSource, unit: Unit, number: int, row: Row, duplicate: bool) -> RawPair:
    own_key = row.get(source.key) if source.key is not None else None
    key = printable(own_key) if own_key else row_key(number)
    image, place = load_image(unit.path, row.get(source.image), source.roots)
    label = class_index(row[source.label]) if source.label is not None and source.label in row else None
    caption = row.get(source.caption) if source.caption is not None else None
    labels = source.captions_from_labels
    if labels is not None and source.caption not in row:
        names = row.get(labels.names) if isinstance(labels.names, str) else None
        caption = labels.caption(f"{unit.shard}/{key}", names, label)
        row = row | {str(source.caption): caption or ""}
    return make_pair(
        unit,
        key,
        image=image,
        caption=caption,
        duplicate=duplicate,
        label=label,
        native_uid=hex_uid(own_key),
        image_suffix=image_suffix(row.get(source.image)),
        native=(row, place),
        no_caption=f"the row ends before the column {source.caption}" if source.caption else "data.caption is null",
        bad=check_hash(image, source, row.get(source.sha256 or "")),
        origin=origin_of(row),
    )


class TableWriter(UnitWriter):
    """Writes the rows with image paths made absolute; replaced images go to images/ and are named relatively."""

    def __init__(self, source: TableSource, unit: Unit, folder: Path) -> None:
        super().__init__(folder, output_shard(unit))
        self._source = source
        self._unit = unit
        self._file: Any = None

    def _open(self) -> None:
        try:
            names = header(self._unit.path, self._source.delimiter)
        except (RowsEnd, PathError):
            return  # read_unit reports it; there is nothing to write
        if self._source.captions_from_labels is not None and self._source.caption not in names:
            names.append(str(self._source.caption))
        self._names = names
        self._file = self._temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        between = header_delimiter(self._unit.path, self._source.delimiter)
        self._csv = csv.writer(self._file, delimiter=between, lineterminator="\n")
        self._quoted = csv.writer(self._file, delimiter=between, lineterminator="\n", quoting=csv.QUOTE_ALL)
        self._csv.writerow(names)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, row: Row) -> str:
        fields = [row.get(name, "") for name in self._names]
        # csv leaves a bare carriage return unquoted, and readers take it for the end of the row.
        (self._quoted if any("\r" in str(field) for field in fields) else self._csv).writerow(fields)
        own_key = row.get(self._source.key) if self._source.key is not None else None
        return self._row_uid(printable(own_key) if own_key else None)

    def copy(self, pair: RawPair) -> str:
        row, place = native_of(pair)
        return self._write(row if place is None else row | {self._source.image: place})

    def replace(self, pair: RawPair, *, image: bytes, suffix: str, caption: str) -> str:
        row = dict(native_of(pair)[0])
        name = f"images/{hash_uid(pair.uid)}{suffix}"
        self._write_beside(f"{self.shard.rpartition('/')[0]}/{name}".lstrip("/"), image)
        row[self._source.image] = name
        if self._source.caption is not None:
            row[self._source.caption] = caption
        return self._write(row)
