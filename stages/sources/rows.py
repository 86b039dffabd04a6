"""Rows of a table, whatever its file format: CSV, TSV, JSON lines, Parquet."""

import csv
import json
import os
import posixpath
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import (
    LFS,
    LFS_POINTER,
    FileTooLarge,
    PathError,
    Unreachable,
    is_address,
    is_contained,
    is_passing,
    join,
    open_input,
    open_text,
    parent,
    read_file,
    resolve,
    spellings,
    unreachable,
)
from ..listing import list_folder
from ..samples import RawPair, Reject, Unit
from .common import IMAGE_SUFFIXES, Bad, damaged, inside, unopened
from .hints import ONE_ROW, list_names

Row = dict[str, Any]
"""Column name -> value; text with bytes that are not UTF-8 holds lone surrogates."""
DELIMITERS = ",\t;|"
MAX_LINE = 2**24
"""Characters of a line of text: a longer one is a record of its own, and the lines after it are read."""
MAX_QUOTED_LINES = 1000
"""Lines of one quoted field."""
BASE64 = re.compile(r"[A-Za-z0-9+/=\s]{64,}")

csv.field_size_limit(MAX_LINE)


class RowsEnd(Exception):
    """The table cannot be read beyond row `row`; `detail` says why."""

    def __init__(self, row: int, detail: str) -> None:
        super().__init__(f"broken at row {row}: {detail}")
        self.row = row
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that cannot be read."""

    detail: str


def usual_delimiter(path: str) -> str:
    """Return the delimiter by the file's suffix: a tab for .tsv, else a comma."""
    return "\t" if path.partition("?")[0].lower().removesuffix(".gz").endswith(".tsv") else ","


def found_delimiter(path: str, first_line: str) -> str:
    """Return the delimiter of a header: the usual one, or where it does not stand there the one that stands there most."""
    bare = re.sub(r'"[^"]*"', "", first_line)
    usual = usual_delimiter(path)
    return usual if usual in bare else max(usual + DELIMITERS, key=bare.count)


def header(path: str, delimiter: str | None = None) -> list[str]:
    """Return the column names of a table; for JSON lines those of the first row.

    Raises:
        PathError: the file cannot be opened.
        RowsEnd: it cannot be read as what its suffix says.
    """
    if _suffix(path) == ".parquet":
        try:
            with open_input(path) as file:
                return list(pq.read_schema(file).names)
        except (pa.ArrowException, OSError) as error:
            raise _end(path, 0, f"no Parquet ({error})", error) from error
    if _suffix(path) == ".jsonl":
        return next((list(row) for _, row in rows(path) if isinstance(row, dict)), [])
    return _CsvFile(path, delimiter).names


def header_delimiter(path: str, delimiter: str | None = None) -> str:
    """Return the delimiter that a CSV file is read with.

    Raises:
        PathError: the file cannot be opened.
    """
    try:
        return _CsvFile(path, delimiter).delimiter
    except RowsEnd:
        return delimiter or usual_delimiter(path)


def rows(path: str, delimiter: str | None = None, text: str | None = None) -> Iterator[tuple[int, Row | Broken]]:
    """Yield (row number, row) for every row; where `text` is the last column of a CSV, it may hold bare delimiters.

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
            yield from _CsvFile(path, delimiter).rows(text)


def walk(unit: Unit, delimiter: str | None = None, text: str | None = None) -> Iterator[tuple[int, Row] | RawPair]:
    """Yield every row from the start of the table to the end of the unit, and a record for each break in the unit.

    Rows before the unit come too, for whoever must know their keys.
    """
    try:
        for number, row in rows(unit.path, delimiter, text):
            if 0 <= unit.stop <= number:
                return
            if not isinstance(row, Broken):
                yield number, row
            elif inside(unit, number):
                yield damaged(unit, f"row-{number}", f"{ONE_ROW}{row.detail}")
    except PathError as error:
        yield unopened(unit, f"row-{unit.start}", error)
    except RowsEnd as end:
        if inside(unit, end.row):
            yield damaged(unit, f"row-{end.row}", end.detail)


def _end(path: str, row: int, detail: str, error: Exception) -> RowsEnd | Unreachable:
    """Return what a reader raises for an error: the end of the table, unless its device or network is at fault."""
    if isinstance(error, OSError) and is_passing(error):
        return unreachable(path, error)
    return RowsEnd(row, detail)


def count_rows(path: str, delimiter: str | None = None) -> int:
    """Return the number of rows that can be read, 0 for a table that cannot be opened.

    Raises:
        Unreachable: its device or store does not answer.
    """
    total = 0
    try:
        if _suffix(path) == ".parquet":
            with open_input(path) as file:
                return int(pq.read_metadata(file).num_rows)
        for _ in rows(path, delimiter):
            total += 1
    except Unreachable:
        raise
    except (PathError, RowsEnd, pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and is_passing(error):
            raise unreachable(path, error) from error
        # read_unit reports where it breaks
    return total


def _suffix(path: str) -> str:
    return "." + path.partition("?")[0].lower().removesuffix(".gz").rpartition(".")[2]


def _lines(file: Any) -> Iterator[str | None]:
    """Yield the lines of a text with their ends; None for one that is too long."""
    while line := file.readline(MAX_LINE):
        if len(line) < MAX_LINE or line.endswith(("\n", "\r")):
            yield line
            continue
        while line and not line.endswith(("\n", "\r")):
            line = file.readline(MAX_LINE)
        yield None


class _CsvFile:
    """A CSV file: how its rows are cut, and its rows.

    A quotation mark opens a field of several lines only if it is closed again before a line that looks like a row of its own;
    otherwise it is a character of the text, and takes no other row with it.
    """

    def __init__(self, path: str, delimiter: str | None) -> None:
        self._path = path
        try:
            with open_text(path) as file:
                line = next(_lines(file), "")
        except (OSError, EOFError, UnicodeError) as error:
            raise _end(path, 0, f"cannot be read: {error}", error) from error
        if line is None:
            raise RowsEnd(0, f"the first line has more than {MAX_LINE} characters; no table")
        if line.encode("utf-8", "replace").startswith(LFS_POINTER):
            raise RowsEnd(0, LFS)
        self.delimiter = delimiter or found_delimiter(path, line)
        names = next(csv.reader([line], delimiter=self.delimiter), [])
        self._skips_spaces = any(name.startswith(" ") for name in names[1:])
        """"image, caption": the space belongs to the comma."""
        self.names = [name.strip() for name in names]

    def rows(self, text: str | None) -> Iterator[tuple[int, Row | Broken]]:
        """Yield the rows by number; see `rows` for `text`."""
        number = 0
        names, columns = self.names, len(self.names)
        try:
            with open_text(self._path) as file:
                lines = _lines(file)
                next(lines, None)
                for fields in self._records(lines):
                    if fields is None:
                        yield number, Broken(f"a row of more than {MAX_LINE} characters")
                    elif len(fields) > columns:
                        yield number, self._too_many(fields, text)
                    else:
                        yield number, dict(zip(names, fields, strict=False))
                    number += 1
        except (OSError, EOFError, UnicodeError, csv.Error) as error:
            raise _end(self._path, number, f"cannot be read on: {error}", error) from error

    def _too_many(self, fields: list[str], text: str | None) -> Row | Broken:
        """Return a row whose last text holds the delimiter; one in another place shifts all that follow, and is broken."""
        rest = fields[len(self.names) :]
        if not any(field.strip() for field in rest):
            return dict(zip(self.names, fields, strict=False))
        if len(self.names) > 1 and self.names[-1] == text:
            last = len(self.names) - 1
            return dict(zip(self.names, [*fields[:last], self.delimiter.join(fields[last:])], strict=True))
        return Broken(
            f"{len(fields)} fields where the header has {len(self.names)}; quote texts with the delimiter in them"
        )

    def _records(self, lines: Iterator[str | None]) -> Iterator[list[str] | None]:
        waiting: deque[str | None] = deque()
        while True:
            line = waiting.popleft() if waiting else next(lines, "")
            if line == "":
                return
            if line is None:
                yield None
                continue
            if '"' in line:
                fields = self._quoted(line, lines, waiting)
            else:
                fields = line.rstrip("\r\n").split(self.delimiter)
                if self._skips_spaces:
                    fields = [field.lstrip(" ") for field in fields]
            if fields not in ([], [""]):
                yield fields

    def _quoted(self, line: str, lines: Iterator[str | None], waiting: deque[str | None]) -> list[str]:
        """Return the fields of a row with quotation marks; lines that were looked at and not used go to `waiting`."""
        used: list[str] = []
        ran_out = False

        def feed() -> Iterator[str]:
            nonlocal ran_out
            yield line
            while len(used) < MAX_QUOTED_LINES:
                if len(used) < len(waiting):
                    following = waiting[len(used)]
                else:
                    following = next(lines, "")
                    if following != "":
                        waiting.append(following)
                if not following or self._looks_like_a_row(following):
                    break
                used.append(following)
                yield following
            ran_out = True

        fields = next(csv.reader(feed(), delimiter=self.delimiter, skipinitialspace=self._skips_spaces))
        if not ran_out:
            for _ in used:
                waiting.popleft()
            return fields
        bare = line.rstrip("\r\n").split(self.delimiter)
        if len(bare) != len(self.names):
            bare = next(csv.reader([line.rstrip("\r\n")], delimiter=self.delimiter))
        return [_unquoted(field) for field in bare]

    def _looks_like_a_row(self, line: str) -> bool:
        fields = line.rstrip("\r\n").split(self.delimiter)
        return len(fields) >= len(self.names) > 1 and any(
            field.strip(' "').lower().endswith(IMAGE_SUFFIXES) and " " not in field.strip(' "') for field in fields
        )


def _unquoted(field: str) -> str:
    whole = len(field) > 1 and field[0] == field[-1] == '"'
    return field[1:-1].replace('""', '"') if whole else field


def _json_rows(path: str) -> Iterator[tuple[int, Row | Broken]]:
    number = 0
    try:
        with open_text(path) as file:
            for line in _lines(file):
                if line is not None and not line.strip():
                    continue
                yield number, _json_row(line)
                number += 1
    except (OSError, EOFError, UnicodeError) as error:
        raise _end(path, number, f"cannot be read on: {error}", error) from error


def _json_row(line: str | None) -> Row | Broken:
    if line is None:
        return Broken(f"a row of more than {MAX_LINE} characters")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        is_pointer = line[:100].encode("utf-8", "replace").startswith(LFS_POINTER)
        return Broken(LFS if is_pointer else f"no JSON: {error}"[:200])
    return row if isinstance(row, dict) else Broken(f"no JSON object but {type(row).__name__}")


def _parquet_rows(path: str) -> Iterator[tuple[int, Row]]:
    number = 0
    with open_input(path) as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _end(path, number, f"Parquet cannot be read on: {error}", error) from error


def load_image(table: str, image: object, roots: Sequence[str] = ()) -> tuple[bytes | Bad, str | None]:
    """Return the bytes of an image that a row names, or why there are none, and where it lies.

    It lies below the table's folder, or below one of `roots`, below which a relative name is looked for too.

    Raises:
        Unreachable: its device or store does not answer.
    """
    if not isinstance(image, str) or not image:
        return Bad(Reject.IMAGE_MISSING, "the row names no image"), None
    odd = _no_path(image)
    if odd is not None:
        return odd, None
    slashed = [image, image.replace("\\", "/")] if "\\" in image else [image]
    outside = ""
    for name in slashed:
        for place in _places(table, name, roots):
            for spelled in spellings(place):
                try:
                    if not is_contained(spelled, table, roots):
                        outside = spelled
                        continue
                    return read_file(spelled), spelled
                except FileTooLarge as error:
                    return Bad(Reject.IMAGE_TOO_LARGE, str(error)), None
                except Unreachable:
                    raise
                except (PathError, OSError, ValueError):
                    continue
    return Bad(Reject.IMAGE_MISSING, _missing(table, image, roots, outside)), None


def _places(table: str, image: str, roots: Sequence[str]) -> Iterator[str]:
    place = resolve(table, image, roots)
    if place is not None:
        yield place
    if not is_address(image) and not image.startswith("/"):
        yield from (found for root in roots if (found := resolve(join(root, "table"), image)) is not None)


def _no_path(image: str) -> Bad | None:
    """Return what a value is that is no path of a file."""
    scheme = image.partition("://")[0].lower()
    if scheme in ("http", "https", "ftp"):
        return Bad(
            Reject.IMAGE_MISSING,
            f"{image}: nothing is fetched from the web; download first, with img2dataset for example",
        )
    if image.startswith("data:image/") or (len(image) > 255 and BASE64.fullmatch(image[:4096])):
        told = f"{len(image)} characters of base64 and no path"
        return Bad(
            Reject.IMAGE_MISSING, f"{told}; decode the images into a binary column of a Parquet file (data=parquet)"
        )
    if re.match(r"[A-Za-z]:[\\/]", image):
        return Bad(Reject.IMAGE_MISSING, f"{image}: a path of a Windows drive; write paths relative to the table")
    return None


def _missing(table: str, image: str, roots: Sequence[str], outside: str) -> str:
    folder = parent(table)
    if outside:
        return f"{image}: a symbolic link out of {folder}; allow its target with data.roots=[FOLDER]"
    if is_address(image) and "?" in image:
        return f"{image}: a row's address has no query; give options in data.path or data.roots"
    if resolve(table, image, roots) is None:
        local = not is_address(folder) and not is_address(image)
        root = posixpath.dirname(posixpath.normpath(posixpath.join(folder, image))) if local else "FOLDER"
        return f"{image}: leads out of {folder}; allow it with data.roots=['{root}']"
    below = _subfolder_with(folder, image) if not is_address(folder) and "/" not in image else None
    if below is not None:
        return f"{image}: not in {folder}; set data.roots=['{below}']"
    return f"{image}: no such file below {list_names([folder, *roots])}; check the column, or say where with data.roots=[FOLDER]"


def _subfolder_with(folder: str, name: str) -> str | None:
    return next((below for below in _subfolders(folder) if os.path.isfile(join(below, name))), None)  # noqa: PTH113


@lru_cache(maxsize=16)
def _subfolders(folder: str) -> tuple[str, ...]:
    try:
        entries = list_folder(folder, recursive=False)
    except PathError:
        return ()
    return tuple(join(folder, entry.path) for entry in entries if entry.type.name == "Directory")[:20]


def image_suffix(image: object) -> str:
    """Return the suffix of an image path in lower case, "" when it is none of an image."""
    text = image.partition("?")[0].lower() if isinstance(image, str) else ""
    return next((suffix for suffix in IMAGE_SUFFIXES if text.endswith(suffix)), "")
