"""A folder of images: with a metadata file as Hugging Face's imagefolder has it, texts beside the images, or one subfolder a class."""

import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pyarrow import fs

from ..files import PathError, Unreachable, is_address, join, parent, read_file
from ..listing import Entry, Found, find_folders, is_hidden, list_folder
from ..samples import RawPair, Reject, Unit, hash_uid
from ..stage import Count, config
from .common import (
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    JSON_SUFFIXES,
    LEAST_ROWS,
    PIECES,
    Bad,
    SourceConfig,
    SourceError,
    UnitWriter,
    check_hash,
    class_index,
    first_caption,
    inside,
    make_pair,
    native_of,
    number_units,
    printable,
    settle_paths,
    slices,
    thinned,
    unopened,
    with_caption,
)
from .hints import json_hint
from .origin import origin_of
from .rows import Row, RowsEnd, count_rows, header, image_suffix, load_image, rows, walk
from .table import TableSource, check_columns

METADATA = re.compile(r"metadata([-_.][^/]*)?\.(csv|tsv|jsonl|parquet)")
REST = "@rest"
"""Last part of the shard name of images that no metadata file names."""


@config
class FolderSource(SourceConfig):
    """Folders of images.

    With metadata files (metadata.csv, .tsv, .jsonl, .parquet, or several metadata-*), in the folder or in its subfolders:
    their rows name the images, in the column `file_name`, relative to the metadata's folder. Without: the caption of an
    image is the text beside it (0001.jpg and 0001.txt, or the caption field of 0001.json), as img2dataset's `files` has it.
    Every subfolder is a class, and its label is its position among the sorted subfolders. Every image is a pair or is
    rejected, also one that no metadata names.
    """

    path: str | list[str]
    """Folders or globs of folders; local, s3:// or gs://."""
    kind: Literal["folder"] = "folder"
    file_name: str = "file_name"
    """Metadata column with the image's path."""
    caption: str = "caption"
    """Metadata column, or field of a .json beside an image, with the caption or a list of captions."""
    label: str = "label"
    """Metadata column with the class index, where the metadata has it."""
    template: str | None = None
    """Makes captions from the names of class folders, such as "a photo of a {}", with spaces for underscores, for images
    without a text beside them; null: those are rejected."""
    roots: list[str] = field(default_factory=list)
    """Folders beside the source's own that rows and symbolic links may lead to."""
    sha256: str | None = None
    """Metadata column with the SHA-256 of the image file; another image is rejected."""
    block: str | None = None
    """File with the SHA-256 of images to reject, one a line."""
    unit_rows: Count = 4096
    """Images of one unit of work."""

    def __post_init__(self) -> None:
        if self.template is not None and "{}" not in self.template:
            raise ValueError("template needs {} where the name of the class folder goes")
        settle_paths(self)

    def about_pairs(self, units: Sequence[Unit]) -> int:
        """Return about how many pairs some units hold at the most: rows of metadata are short, images are not."""
        tables = [unit for unit in units if _is_table(unit)]
        images = [unit for unit in units if not _is_table(unit)]
        rows = sum({unit.shard: unit.size_bytes for unit in tables}.values()) // TableSource.bytes_a_pair
        return rows + SourceConfig.about_pairs(self, images)

    def list_units(self) -> list[Unit]:
        """Return slices of at most `unit_rows` images of every metadata file, class folder, or folder itself.

        Raises:
            SourceError: a folder has neither metadata nor images, or metadata lacks a column.
        """
        files: list[tuple[Found, list[tuple[int, int]]]] = []
        for folder in find_folders(self.path):
            here = _units_of(self, folder)
            if not here:
                raise SourceError(
                    f"{folder.path}: neither a metadata file (metadata.csv, .tsv, .jsonl, .parquet) nor subfolders with "
                    "images; name the folder that holds them"
                )
            files += here
        return number_units(files)

    def pieces(self, units: Sequence[Unit]) -> list[Unit]:
        if len(units) >= PIECES or self.unit_rows <= LEAST_ROWS:
            return list(units)
        return thinned(units, replace(self, unit_rows=LEAST_ROWS).list_units())

    def times(self, units: Sequence[Unit]) -> dict[str, int | None]:
        """Return a number for each metadata file or folder, of the times of all files below: the images count."""
        found: dict[str, int | None] = {}
        listed: dict[str, list[Entry]] = {}
        for unit in units:
            folder = _folder(unit)
            if folder not in listed:
                listed[folder] = list_folder(folder, recursive=True, hidden=True)
            if unit.shard not in found:
                found[unit.shard] = _sum_of(listed[folder])
        return found

    def read_unit(self, unit: Unit) -> Iterator[RawPair]:
        """Yield the pairs of a slice. The key is the image's path in the folder; its second row is a duplicate."""
        if not _is_table(unit):
            yield from _image_pairs(self, unit)
            return
        seen: set[object] = set()
        for step in walk(unit, None, self.caption):
            if isinstance(step, RawPair):
                yield step
                continue
            number, row = step
            name = row.get(self.file_name)
            if inside(unit, number):
                value = row.get(self.caption)
                missing = json_hint(row, self.caption, "row") if value in (None, []) else ""
                yield _pair(self, unit, number, row, duplicate=isinstance(name, str) and name in seen, missing=missing)
            if isinstance(name, str) and name:
                seen.add(name)

    def open_writer(self, unit: Unit, folder: Path) -> UnitWriter:
        return FolderWriter(self, unit, folder)


Cut = tuple[Found, list[tuple[int, int]]]


def _units_of(source: FolderSource, folder: Found) -> list[Cut]:
    """Return the units of one folder: of its metadata and the images that these leave out, or of the images by class."""
    own = _tables(folder.path)
    if own:
        return [*(_table(source, folder, name) for name in own), *_rest(source, folder, own)]
    cuts: list[Cut] = []
    for name in ["", *_classes(folder.path)]:
        below = Found(join(folder.path, name), _below(folder, name), None) if name else folder
        tables = _tables(below.path) if name else []
        if tables:
            cuts += [*(_table(source, below, table) for table in tables), *_rest(source, below, tables)]
            continue
        images = _images(below.path, recursive=bool(name))
        if images:
            shard = below.relative if name else _below(folder, ".")
            found = Found(join(folder.path, name or "."), shard, sum(image.size or 0 for image in images))
            cuts.append((found, slices(len(images), source.unit_rows)))
    return cuts


def _tables(folder: str) -> list[str]:
    try:
        entries = list_folder(folder, recursive=False)
    except Unreachable:
        raise
    except PathError:
        return []
    return [entry.path for entry in entries if entry.is_file and METADATA.fullmatch(entry.path)]


def _sum_of(entries: Sequence[Entry]) -> int | None:
    """Return 63 bits of the names, sizes and times of files; None where a time is not known."""
    files = [entry for entry in entries if entry.is_file]
    if any(entry.time_ns is None for entry in files):
        return None
    told = "\n".join(f"{entry.path} {entry.size} {entry.time_ns}" for entry in files)
    return int.from_bytes(sha256(told.encode("utf-8", "surrogateescape")).digest()[:8], "big") >> 1


def _classes(folder: str) -> list[str]:
    """Return the subfolders in the order of their class index; those whose name begins with '_' or '.' come last."""
    entries = list_folder(folder, recursive=False, hidden=True)
    names = [entry.path for entry in entries if entry.type == fs.FileType.Directory]
    return sorted(names, key=lambda name: (is_hidden(name), name))


def _below(folder: Found, relative: str) -> str:
    return f"{folder.relative}/{relative}" if folder.relative else relative


def _table(source: FolderSource, folder: Found, name: str) -> Cut:
    path = join(folder.path, name)
    size = next(entry.size for entry in list_folder(folder.path, recursive=False) if entry.path == name)
    try:
        present = header(path) if size else []
    except Unreachable:
        raise
    except (RowsEnd, PathError):
        present = []
    if present:
        check_columns(
            path,
            present,
            required=[source.file_name, source.sha256],
            caption=source.caption,
            labels=None,
            image_field="file_name",
        )
    return Found(path, _below(folder, name), size), slices(count_rows(path), source.unit_rows)


def _rest(source: FolderSource, folder: Found, tables: Sequence[str]) -> list[Cut]:
    """Return the unit of images that no metadata file of the folder names; none where every image is named."""
    left = _unnamed(source, folder.path, tuple(tables))
    if not left:
        return []
    size = sum(entry.size or 0 for entry in left)
    return [(Found(join(folder.path, REST), _below(folder, REST), size), slices(len(left), source.unit_rows))]


def _unnamed(source: FolderSource, folder: str, tables: Sequence[str]) -> list[Entry]:
    named: set[str] = set()
    for table in tables:
        try:
            for _, row in rows(join(folder, table)):
                name = row.get(source.file_name) if isinstance(row, dict) else None
                if isinstance(name, str):
                    named.add(posixpath.normpath(name.replace("\\", "/")))
        except Unreachable:
            raise
        except (RowsEnd, PathError):
            continue
    return [entry for entry in _images(folder, recursive=True) if entry.path not in named]


def _images(folder: str, recursive: bool) -> list[Entry]:
    infos = list_folder(folder, recursive=recursive, hidden=True)
    return [info for info in infos if _is_image(info)]


def _is_image(entry: Entry) -> bool:
    return entry.is_file and entry.path.lower().endswith(IMAGE_SUFFIXES)


def _is_table(unit: Unit) -> bool:
    return METADATA.fullmatch(_last(unit)) is not None


def _last(unit: Unit) -> str:
    return unit.shard.rpartition("/")[2]


def _is_flat(unit: Unit) -> bool:
    """Whether images are named from the folder that the unit's own path lies in, and not from a class folder."""
    return _is_table(unit) or _last(unit) in (".", REST)


def _folder(unit: Unit) -> str:
    """Return the folder that the images of a unit are named from."""
    return parent(unit.path) if _is_flat(unit) else unit.path


@dataclass(frozen=True, slots=True)
class _Beside:
    """What the files beside an image say of it."""

    caption: Any
    """A text, a list of texts, bytes, or None."""
    missing: str
    """Why there is no caption."""
    fields: dict[str, Any]


def _image_pairs(source: FolderSource, unit: Unit) -> Iterator[RawPair]:
    last = _last(unit)
    folder = _folder(unit)
    try:
        entries = list_folder(folder, recursive=last != ".", hidden=True)
        tables = _tables(folder) if last == REST else []
        images = _unnamed(source, folder, tables) if last == REST else [entry for entry in entries if _is_image(entry)]
        classes = [] if last in (".", REST) else _classes(parent(unit.path))
    except PathError as error:
        yield unopened(unit, f"row-{unit.start}", error)
        return
    names = frozenset(entry.path for entry in entries if entry.is_file)
    label = classes.index(last) if last in classes else None
    by_class = source.template is not None and label is not None
    for number, info in enumerate(images):
        if not inside(unit, number):
            continue
        if last == REST:
            beside = _Beside(None, "no row of the metadata names it; add one, or move the image away", {})
        else:
            beside = _beside(source, folder, info.path, names)
        caption = beside.caption
        if caption is None and not beside.missing and by_class and source.template is not None:
            caption = source.template.replace("{}", printable(last).replace("_", " "))
        has_text = beside.caption is not None and source.template is None
        row = {source.file_name: info.path, source.caption: caption, source.label: None if has_text else label}
        if source.sha256 is not None:
            row[source.sha256] = beside.fields.get(source.sha256)
        missing = beside.missing or _no_text(source, info.path, label)
        bad = None
        if any(part.startswith(".") for part in [last, *info.path.split("/")] if part != "."):
            bad = Bad(Reject.HIDDEN_NAME, "a name that starts with a dot; rename it if it is an image of the set")
        yield _pair(source, unit, number, row, duplicate=False, missing=missing, bad=bad, said=beside.fields)


def _beside(source: FolderSource, folder: str, image: str, names: frozenset[str]) -> _Beside:
    stem = image[: -len(image_suffix(image))]
    for suffix in CAPTION_SUFFIXES:
        if stem + suffix in names:
            try:
                return _Beside(read_file(join(folder, stem + suffix)), "", _fields(folder, stem, names))
            except Unreachable:
                raise
            except PathError as error:
                return _Beside(None, str(error), {})
    fields = _fields(folder, stem, names)
    caption = fields.get(source.caption)
    return _Beside(
        caption, json_hint(fields, source.caption, ".json beside it") if fields and not caption else "", fields
    )


def _fields(folder: str, stem: str, names: frozenset[str]) -> dict[str, Any]:
    for suffix in JSON_SUFFIXES:
        if stem + suffix in names:
            try:
                fields = json.loads(read_file(join(folder, stem + suffix)))
            except Unreachable:
                raise
            except (PathError, ValueError, RecursionError):
                continue
            if isinstance(fields, dict):
                return fields
    return {}


def _no_text(source: FolderSource, image: str, label: int | None) -> str:
    beside = f"no text beside it ({posixpath.basename(image)[: -len(image_suffix(image))]}.txt) and no metadata file"
    if label is None:
        return f"{beside}; add one of the two"
    return (
        f"{beside}; add one of the two, or make captions from the folders' names with data.template='a photo of a {{}}'"
    )


def _pair(
    source: FolderSource,
    unit: Unit,
    number: int,
    row: Row,
    *,
    duplicate: bool,
    missing: str,
    bad: Bad | None = None,
    said: dict[str, Any] | None = None,
) -> RawPair:
    name = row.get(source.file_name)
    caption = row.get(source.caption)
    image: bytes | Bad
    place: str | None = None
    if bad is not None:
        image = bad
    elif not isinstance(name, str) or is_address(name) or name.startswith("/"):
        kind = "an absolute path" if isinstance(name, str) else f"no path but {type(name).__name__}"
        image = Bad(Reject.IMAGE_MISSING, f"{name}: {kind}; name images relative to their metadata file")
    else:
        folder = parent(unit.path)  # also of a class: a link in place of its folder leads nowhere else
        image, place = load_image(
            join(folder, "table"), name if _is_flat(unit) else f"{_last(unit)}/{name}", source.roots
        )
    return make_pair(
        unit,
        printable(name) if isinstance(name, str) and name else f"row-{number}",
        image=image,
        caption=first_caption(caption),
        duplicate=duplicate,
        label=class_index(row[source.label]) if row.get(source.label) is not None else None,
        native_uid=None,
        image_suffix=image_suffix(name),
        native=(row, place),
        captions=caption if isinstance(caption, list) else (),
        no_caption=missing,
        bad=bad or check_hash(image, source, row.get(source.sha256 or "")),
        origin=origin_of(row if said is None else said),
    )


class FolderWriter(UnitWriter):
    """Copies image files byte for byte and writes one metadata-00042.jsonl a unit, whatever the source had.

    A replaced image goes to images/00042/ under its old path (with the new suffix added, where it is another), because
    another metadata file may name the same image.
    """

    def __init__(self, source: FolderSource, unit: Unit, folder: Path) -> None:
        super().__init__(folder, f"metadata-{unit.index:05d}.jsonl")
        self._source = source
        self._unit = unit
        self._base = unit.shard.rpartition("/")[0] if _is_flat(unit) else unit.shard

    def _open(self) -> None:
        self._file = self._temporary.open("w", encoding="ascii")

    def _close(self) -> None:
        self._file.close()

    def copy(self, pair: RawPair) -> str:
        row: Row
        row, place = native_of(pair)
        name = row.get(self._source.file_name)
        if place is not None and isinstance(name, str):
            name = self._inside(f"{self._base}/{name}", place)
            if pair.image is not None:
                self._write_beside(name, pair.image)
        return self._write(pair, row | {self._source.file_name: name})

    def _inside(self, name: str, place: str) -> str:
        """Return where an image goes; one from another root goes where no path leads out of the copy."""
        name = posixpath.normpath(name.lstrip("/").replace("\\", "/"))
        if name == ".." or name.startswith("../"):
            return f"images/{self._unit.index:05d}/{hash_uid(place)}{image_suffix(place)}"
        return name

    def replace(self, pair: RawPair, *, image: bytes, suffix: str, caption: str) -> str:
        row: Row
        row, place = native_of(pair)
        old = row.get(self._source.file_name)
        if isinstance(old, str) and place is not None:
            name = self._inside(f"{self._base}/{old}", place)
            name = (
                name if name.startswith(f"images/{self._unit.index:05d}/") else f"images/{self._unit.index:05d}/{name}"
            )
            name += "" if name.lower().endswith(suffix) else suffix
        else:
            name = f"images/{self._unit.index:05d}/{hash_uid(pair.uid)}{suffix}"
        self._write_beside(name, image)
        return self._write(
            pair,
            row
            | {
                self._source.file_name: name,
                self._source.caption: with_caption(row.get(self._source.caption), caption),
            },
        )

    def _write(self, pair: RawPair, row: Row) -> str:
        # ASCII with escapes: also a caption that was not UTF-8 comes back as the same reject reason.
        self._file.write(json.dumps(row, default=_as_text) + "\n")
        name = row.get(self._source.file_name)
        return self._row_uid(printable(name) if isinstance(name, str) and name else f"row-{self._rows}")


def _as_text(value: object) -> str:
    """Return a value that JSON does not have as text; bytes that are not UTF-8 stay so as lone surrogates."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
