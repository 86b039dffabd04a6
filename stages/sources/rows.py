"""Rows of a table, whatever its file format: CSV, TSV, JSON lines, Parquet."""

import csv
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import FileTooLarge, PathError, open_input, open_text, read_file, resolve
from ..samples import RawPair, Reject, Unit
from .common import IMAGE_SUFFIXES, damaged, inside

Row = dict[str, Any]
"""Column name -> value; text with bytes that are not UTF-8 holds lone surrogates."""


class RowsEnd(Exception):
    """The table cannot be read beyond row `row`."""

    def __init__(self, row: int) -> None:
        super().__init__(f"broken at row {row}")
        self.row = row


def delimiter(path: str) -> str:
    """Return the delimiter by the file's suffix: a tab for .tsv, else a comma."""
    return "\t" if path.partition("?")[0].lower().endswith(".tsv") else ","


def header(path: str) -> list[str]:
    """Return the column names of a table; for JSON lines those of the first row.

    Raises:
        PathError: the file cannot be opened.
        RowsEnd: it cannot be read as what its suffix says.
    """
    if _suffix(path) == ".parquet":
        try:
            with open_input(path) as file:
                return list(pq.read_schema(file).names)
        except pa.ArrowException as error:
            raise RowsEnd(0) from error
    if _suffix(path) == ".jsonl":
        return next((list(row) for _, row in rows(path) if row is not None), [])
    with open_text(path) as file:
        try:
            return next(_reader(file, path), [])
        except csv.Error as error:
            raise RowsEnd(0) from error


def rows(path: str) -> Iterator[tuple[int, Row | None]]:
    """Yield (row number, row); None for a JSON line that does not parse.

    Raises:
        PathError: the file cannot be opened.
        RowsEnd: the table breaks here; what follows cannot be read.
    """
    match _suffix(path):
        case ".parquet":
            yield from _parquet_rows(path)
        case ".jsonl":
            yield from _json_rows(path)
        case _:
            yield from _csv_rows(path)


def walk(unit: Unit) -> Iterator[tuple[int, Row] | RawPair]:
    """Yield every row from the start of the table to the end of the unit, and a record for each break in the unit.

    Rows before the unit come too, for whoever must know their keys.
    """
    try:
        for number, row in rows(unit.path):
            if 0 <= unit.stop <= number:
                return
            if row is not None:
                yield number, row
            elif inside(unit, number):
                yield damaged(unit, f"row-{number}")
    except PathError:
        yield damaged(unit, f"row-{unit.start}")
    except RowsEnd as end:
        if inside(unit, end.row):
            yield damaged(unit, f"row-{end.row}")


def count_rows(path: str) -> int:
    """Return the number of rows that can be read, 0 for a table that cannot be opened."""
    total = 0
    try:
        if _suffix(path) == ".parquet":
            with open_input(path) as file:
                return int(pq.read_metadata(file).num_rows)
        if _suffix(path) == ".jsonl":
            with open_text(path) as file:
                return sum(1 for line in file if line.strip())
        for _ in rows(path):
            total += 1
    except (PathError, RowsEnd, pa.ArrowException):
        return total
    return total


def _suffix(path: str) -> str:
    return "." + path.partition("?")[0].lower().rpartition(".")[2]


def _reader(file: Any, path: str) -> Iterator[list[str]]:
    reader = csv.reader(file, delimiter=delimiter(path))
    for number, fields in enumerate(reader):
        if number == 0 and fields:
            fields[0] = fields[0].removeprefix("\ufeff")  # Excel's byte order mark
        yield fields


def _csv_rows(path: str) -> Iterator[tuple[int, Row]]:
    with open_text(path) as file:
        reader = _reader(file, path)
        number = 0
        try:
            names = next(reader, [])
            for fields in reader:
                if fields:
                    yield number, dict(zip(names, fields, strict=False))
                    number += 1
        except csv.Error as error:
            raise RowsEnd(number) from error


def _json_rows(path: str) -> Iterator[tuple[int, Row | None]]:
    with open_text(path) as file:
        for number, line in enumerate(line for line in file if line.strip()):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield number, row if isinstance(row, dict) else None


def _parquet_rows(path: str) -> Iterator[tuple[int, Row]]:
    number = 0
    with open_input(path) as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise RowsEnd(number) from error


def load_image(place: str | None) -> bytes | Reject:
    """Return the bytes of an image file, or why there are none; None is a place that a table may not name."""
    if place is None:
        return Reject.IMAGE_MISSING
    try:
        return read_file(place)
    except FileTooLarge:
        return Reject.IMAGE_TOO_LARGE
    except PathError:
        return Reject.IMAGE_MISSING


def image_place(table: str, image: object) -> str | None:
    """Return where the image that a table names lies; None when it names none, or one outside its folder."""
    return resolve(table, image) if isinstance(image, str) and image else None


def absolute_image(table: str, image: object) -> object:
    """Return an image path that still holds when the row moves to another folder."""
    if not isinstance(image, str) or not image:
        return image
    return resolve(table, image) or image


def image_suffix(image: object) -> str:
    """Return the suffix of an image path in lower case, "" when it is none of an image."""
    text = image.partition("?")[0].lower() if isinstance(image, str) else ""
    return next((suffix for suffix in IMAGE_SUFFIXES if text.endswith(suffix)), "")
