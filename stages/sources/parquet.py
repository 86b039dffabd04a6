"""Parquet files of pairs: image bytes, Hugging Face's struct of bytes and path, or image paths."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import MAX_FILE_BYTES, PathError, Unreachable, is_address, is_passing, open_input, unreachable
from ..listing import Found, find, roots_of
from ..samples import Origin, RawPair, Reject, Unit, hash_uid
from ..stage import Count, config
from .common import (
    PIECES,
    Bad,
    LabelCaptions,
    SourceConfig,
    SourceError,
    UnitWriter,
    check_hash,
    class_index,
    damaged,
    explain,
    first_caption,
    hex_uid,
    make_pair,
    native_of,
    number_units,
    output_shard,
    printable,
    refined,
    row_key,
    rows_a_piece,
    settle_paths,
    slices,
    unopened,
    with_caption,
)
from .origin import origin_columns, origin_of
from .rows import image_suffix, load_image
from .table import check_columns, check_rows_source

BATCH_ROWS = 256
"""Rows in memory at a time when reading, at most."""
BATCH_BYTES = 512 * 2**20
"""A value that stands once in a file's dictionary may unfold in every row: so many bytes a batch come of it at most."""
STREAM_BYTES = 8 * 2**20
"""Read-ahead of one column: a whole column of images may be larger than memory."""
GROUP_PIECES = 32
"""Pieces of one row group, at the most: each reads the group from its start."""
GROUP_ROWS = 1024
GROUP_BYTES = 64 * 2**20
"""A row group is written when it has this many rows or bytes."""


@config
class ParquetSource(SourceConfig):
    """Parquet with one row a pair. The image column holds bytes, a struct of bytes and path, or a path."""

    path: str | list[str]
    """Files, folders or globs, with {00000..00999} ranges; local, s3:// or gs://."""
    kind: Literal["parquet"] = "parquet"
    image: str = "image"
    """Column with the image: binary, struct of bytes and path, or a path as in a table."""
    caption: str | None = "caption"
    """Column with the caption, or a list of captions (then the first with a word, and for retrieval all); null: there is none."""
    label: str | None = None
    """Column with the class index."""
    key: str | None = None
    """Column that names a row within its file; null: the row number."""
    captions_from_labels: LabelCaptions | None = None
    """Makes captions for files that have no caption column."""
    roots: list[str] = field(default_factory=list)
    """Folders beside the file's own that rows may name images in, and below which relative names are looked for."""
    sha256: str | None = None
    """Column with the SHA-256 of the image as it stands in the file; another image is rejected."""
    block: str | None = None
    """File with the SHA-256 of images to reject, one a line."""
    unit_rows: Count = 4096
    """Rows of one unit of work, at most."""

    def __post_init__(self) -> None:
        check_rows_source(self.caption, self.captions_from_labels)
        settle_paths(self)

    def list_units(self) -> list[Unit]:
        """Return whole files, or slices of at most `unit_rows` rows that keep to row groups where these are small enough.

        Raises:
            SourceError: a file lacks a column that the source names, or its type does not fit.
        """
        files = find(self.path, (".parquet",))
        with ThreadPoolExecutor(max_workers=16) as pool:  # reading footers waits for the store, not for the processor
            cuts = list(pool.map(lambda file: _cut(self, file), files))
        return number_units(list(zip(files, cuts, strict=True)))

    def pieces(self, units: Sequence[Unit]) -> list[Unit]:
        """Return the units cut finer, between row groups and within large ones, which are read from their start."""
        if len(units) >= PIECES:
            return list(units)
        paths = sorted({unit.path for unit in units})
        with ThreadPoolExecutor(max_workers=16) as pool:
            groups = dict(zip(paths, pool.map(_groups, paths), strict=True))
        rows = rows_a_piece(sum(map(sum, groups.values())))
        return refined(
            units,
            lambda unit: _cuts_of(unit, groups[unit.path], rows, 1 if is_address(unit.path) else GROUP_PIECES),
        )

    def read_unit(self, unit: Unit) -> Iterator[RawPair]:
        """Yield the pairs of a slice, a few hundred rows in memory at a time, only the columns that it needs."""
        row = unit.start
        try:
            opened = open_input(unit.path)
        except PathError as error:
            yield unopened(unit, f"row-{row}", error)
            return
        try:
            with opened as file:
                parquet = _read_footer(file)
                present = parquet.schema_arrow.names
                labels = self.captions_from_labels
                names = labels.names if labels is not None and isinstance(labels.names, str) else None
                wanted = [self.image, self.caption, self.label, self.key, self.sha256, names]
                missing = [name for name in (self.image, self.key) if name is not None and name not in present]
                if missing:
                    raise PathError(f"no column {missing[0]!r}")
                found = [*(name for name in wanted if name is not None and name in present), *origin_columns(present)]
                columns = sorted(set(found))
                seen = _earlier_keys(self, parquet, unit)
                for first_row, batch in _batches(parquet, unit.start, unit.stop, columns):
                    for pair in _pairs(self, unit, first_row, batch, seen):
                        yield pair
                        row += 1
        except Unreachable:
            raise
        except (PathError, pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and is_passing(error):
                raise
            # A damaged page comes as ArrowInvalid or as OSError; the rows of the batch that it is in cannot be read.
            yield damaged(unit, f"row-{row}", str(error))

    def open_writer(self, unit: Unit, folder: Path) -> UnitWriter:
        return ParquetWriter(self, unit, folder)

    def rewritten(self, folder: Path) -> SourceConfig:
        """Return the source that reads a copy, whose rows name images where they lay."""
        return replace(self, path=str(folder), roots=[*self.roots, *roots_of(self.path)])


def _cut(source: ParquetSource, file: Found) -> list[tuple[int, int]]:
    if file.size_bytes is None:
        return [(0, -1)]
    try:
        with open_input(file.path) as opened:
            parquet = pq.ParquetFile(opened)
            schema, metadata = parquet.schema_arrow, parquet.metadata
    except (PathError, pa.ArrowException, OSError) as error:
        _raise_passing(file.path, error)
        return [(0, -1)]  # read_unit reports it as a damaged shard
    _check_schema(source, file.path, schema)
    return pack_groups([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], source.unit_rows)


def _groups(path: str) -> list[int]:
    """Return the rows of each row group; none where that cannot be read."""
    try:
        with open_input(path) as opened:
            metadata = pq.ParquetFile(opened).metadata
            return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    except (PathError, pa.ArrowException, OSError) as error:
        _raise_passing(path, error)
        return []


def _raise_passing(path: str, error: Exception) -> None:
    """Raise Unreachable for an error that says nothing of the file: units are not listed by what a network happened to give."""
    if isinstance(error, Unreachable) or (isinstance(error, OSError) and is_passing(error)):
        raise unreachable(path, error) from error


def _cuts_of(unit: Unit, groups: list[int], rows: int, at_most: int) -> list[int]:
    """Return where pieces of about `rows` rows begin in a unit, for at most so many pieces of one row group."""
    starts, row = [unit.start], 0
    for count in groups:
        begin, end = max(row, unit.start), row + count if unit.stop < 0 else min(row + count, unit.stop)
        if begin < end and end - starts[-1] > rows:
            parts = min(-(-(end - begin) // rows), -(-at_most * (end - begin) // count))
            starts += [at for i in range(parts) if (at := begin + i * (end - begin) // parts) > starts[-1]]
        row += count
    return starts


def pack_groups(groups: list[int], limit: int) -> list[tuple[int, int]]:
    """Pack row groups (rows of each) into slices of at most `limit` rows; a larger group is cut in equal parts."""
    if sum(groups) <= limit:
        return [(0, -1)]
    cuts: list[tuple[int, int]] = []
    begin = end = 0
    for count in groups:
        if end > begin and end + count - begin > limit:
            cuts.append((begin, end))
            begin = end
        if count > limit:
            cuts += [(end + start, end + (count if stop < 0 else stop)) for start, stop in slices(count, limit)]
            begin = end + count
        end += count
    if end > begin:
        cuts.append((begin, end))
    return cuts


def _check_schema(source: ParquetSource, path: str, schema: pa.Schema) -> None:
    check_columns(
        path,
        schema.names,
        required=[source.image, source.label, source.key, source.sha256],
        caption=source.caption,
        labels=source.captions_from_labels,
    )
    image = schema.field(source.image).type
    if pa.types.is_dictionary(image):
        image = image.value_type
    is_struct = pa.types.is_struct(image) and image.get_field_index("bytes") >= 0
    if not (_is_binary(image) or _is_text(image) or is_struct or pa.types.is_null(image)):
        raise SourceError(
            f"{path}: column {source.image!r} is {image}; an image is binary, struct<bytes, path> or a path"
        )
    kind = schema.field(source.label).type if source.label is not None else pa.int64()
    if not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise SourceError(f"{path}: column {source.label!r} is {kind}; a label is a class index (an integer)")


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _batches(
    parquet: pq.ParquetFile, start: int, stop: int, columns: list[str] | None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (row number of the first row, batch) for the rows of a slice, touching only row groups that it overlaps."""
    metadata = parquet.metadata
    stop = metadata.num_rows if stop < 0 else stop
    chosen: list[int] = []
    first_row = row = 0
    for index in range(metadata.num_row_groups):
        count = metadata.row_group(index).num_rows
        if row < stop and row + count > start:
            first_row = first_row if chosen else row
            chosen.append(index)
        row += count
    if not chosen:
        return
    row = first_row
    for batch in parquet.iter_batches(_batch_rows(metadata, chosen, columns), row_groups=chosen, columns=columns):
        begin, end = max(start - row, 0), min(stop - row, batch.num_rows)
        if begin < end:
            yield row + begin, batch.slice(begin, end - begin)
        row += batch.num_rows
        if row >= stop:
            return


def _batch_rows(metadata: Any, groups: list[int], columns: list[str] | None) -> int:
    """Return how many rows fit into memory even if each holds the largest value that a column chunk can hold."""
    largest = 1
    for index in groups:
        group = metadata.row_group(index)
        for i in range(group.num_columns):
            chunk = group.column(i)
            wanted = columns is None or chunk.path_in_schema.partition(".")[0] in columns
            if wanted and chunk.has_dictionary_page:
                largest = max(largest, chunk.total_uncompressed_size)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // largest))


def _open(path: str) -> tuple[Any, pq.ParquetFile]:
    file = open_input(path)
    try:
        return file, _read_footer(file)
    except (PathError, OSError):
        file.close()
        raise


def _read_footer(file: Any) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, buffer_size=STREAM_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and is_passing(error):
            raise
        file.seek(0)
        start = file.read(512)
        raise PathError(f"no Parquet ({error})" if start.startswith(b"PAR1") else explain(start, "Parquet")) from error


def _earlier_keys(source: ParquetSource, parquet: pq.ParquetFile, unit: Unit) -> set[object]:
    if source.key is None or unit.start == 0:
        return set()
    batches = _batches(parquet, 0, unit.start, [source.key])
    return {key for _, batch in batches for key in _values(batch, source.key)}


def _values(batch: pa.RecordBatch, name: str) -> list[Any]:
    """Return a column as Python values, of lists the first; text as bytes, because strings may hold what is not UTF-8."""
    column = as_bytes(batch.column(name))
    if _is_list(column.type):
        return [next(iter(values or ()), None) for values in column.to_pylist()]
    return list(column.to_pylist())


def _lists(batch: pa.RecordBatch, name: str) -> list[list[Any]]:
    """Return the whole lists of a column; empty ones where it holds no lists."""
    column = batch.column(name)
    return [values or [] for values in as_bytes(column).to_pylist()] if _is_list(column.type) else [[]] * len(column)


def _is_list(kind: pa.DataType) -> bool:
    return any(
        is_one(kind)
        for is_one in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_fixed_size_list,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
        )
    )


def as_bytes(column: pa.Array) -> pa.Array:
    """Return a column with every text in it, also in lists and structs, as bytes, and without dictionaries and views."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = _bytes_type(column.type)
    return column if kind == column.type else column.cast(kind)


def _bytes_type(kind: pa.DataType) -> pa.DataType:
    if _is_text(kind) or pa.types.is_binary_view(kind):
        return pa.large_binary()
    if _is_list(kind):
        inner = kind.value_field.with_type(_bytes_type(kind.value_type))
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(inner, kind.list_size)
        return pa.list_(inner) if pa.types.is_list(kind) or pa.types.is_list_view(kind) else pa.large_list(inner)
    if pa.types.is_struct(kind):
        return pa.struct([child.with_type(_bytes_type(child.type)) for child in kind])
    return kind


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type without views, which have no `take`; it holds the same values."""
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def _text(value: object) -> str | None:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else None


def _pairs(
    source: ParquetSource, unit: Unit, first_row: int, batch: pa.RecordBatch, seen: set[object]
) -> Iterator[RawPair]:
    nothing = [None] * batch.num_rows
    present = batch.schema.names

    def column(name: str | None) -> list[Any]:
        return _values(batch, name) if name is not None and name in present else nothing

    labels = source.captions_from_labels if source.caption not in present else None
    names = column(labels.names) if labels is not None and isinstance(labels.names, str) else nothing
    listed = (
        _lists(batch, source.caption)
        if source.caption is not None and source.caption in present
        else [[]] * batch.num_rows
    )
    every = zip(
        column(source.image),
        column(source.caption),
        listed,
        column(source.label),
        column(source.key),
        column(source.sha256),
        names,
        _origins(batch),
        strict=True,
    )
    is_bytes = _holds_bytes(batch.schema.field(source.image).type)
    for row, (value, caption, captions, label, own_key, published, name, origin) in enumerate(every, first_row):
        has_key = own_key not in (None, b"")
        key = printable(own_key if isinstance(own_key, bytes) else str(own_key)) if has_key else row_key(row)
        if captions:
            caption = first_caption(captions)
        if labels is not None:
            caption = labels.caption(f"{unit.shard}/{key}", _text(name), label)
        image, suffix, place = _image(value if is_bytes else _place(value), unit, source)
        yield make_pair(
            unit,
            key,
            image=image,
            caption=caption,
            duplicate=has_key and own_key in seen,
            label=class_index(label) if label is not None else None,
            native_uid=hex_uid(key),
            image_suffix=suffix,
            native=(row, caption if labels is not None else None, has_key, place),
            captions=captions,
            no_caption="the caption is null" if source.caption else "data.caption is null",
            bad=check_hash(image, source, published),
            origin=origin,
        )
        seen.add(own_key)


def _origins(batch: pa.RecordBatch) -> Iterator[Origin]:
    said = {name: _values(batch, name) for name in origin_columns(batch.schema.names)}
    for row in range(batch.num_rows):
        yield origin_of({name: values[row] for name, values in said.items()})


def _place(value: Any) -> Any:
    """Turn a path column's value into the struct that Hugging Face writes; that struct stays as it is."""
    if isinstance(value, dict):
        path = value.get("path")
        return value | {"path": _text(path) if isinstance(path, bytes) else path}
    return {"bytes": None, "path": _text(value)} if isinstance(value, bytes) else value


def _holds_bytes(kind: pa.DataType) -> bool:
    return _is_binary(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _image(value: Any, unit: Unit, source: ParquetSource) -> tuple[bytes | Bad, str, str | None]:
    """Return the image's bytes, or why there are none, its suffix, and where it lies outside of the file."""
    if value is None:
        return Bad(Reject.IMAGE_MISSING, "the image is null"), "", None
    data, suffix = (value, "") if isinstance(value, bytes) else (value["bytes"], image_suffix(value.get("path")))
    if isinstance(data, bytes) and len(data) > MAX_FILE_BYTES:
        return Bad(Reject.IMAGE_TOO_LARGE, f"{len(data)} bytes, more than {MAX_FILE_BYTES}"), suffix, None
    if isinstance(data, bytes):
        return data, suffix, None
    image, place = load_image(unit.path, value.get("path"), source.roots)
    return image, suffix, place


class ParquetWriter(UnitWriter):
    """Copies rows with all columns and the schema; replaced rows differ in image and caption alone.

    Image paths are made absolute, and a replaced image of a path column goes to images/. Captions made from labels are
    stored in the caption column, so that they stay the same under a new uid.
    """

    def __init__(self, source: ParquetSource, unit: Unit, folder: Path) -> None:
        super().__init__(folder, output_shard(unit))
        self._source = source
        self._unit = unit
        self._picked: list[tuple[int, dict[str, Any]]] = []
        """Rows of the current batch to write: position in it, and the values to change."""
        self._pending: list[pa.Table] = []
        self._writer: Any = None

    def _open(self) -> None:
        try:
            self._input, parquet = _open(self._unit.path)
        except PathError:
            return  # read_unit reports it; there is nothing to write
        self._walk = _batches(parquet, self._unit.start, self._unit.stop, None)
        schema = pa.schema(
            [column.with_type(plain_type(column.type)) for column in parquet.schema_arrow],
            parquet.schema_arrow.metadata,
        )
        nothing = [pa.array([], column.type) for column in schema]
        self._first_row, self._batch = self._unit.start, pa.RecordBatch.from_arrays(nothing, schema=schema)
        if self._source.captions_from_labels is not None and self._source.caption not in schema.names:
            schema = schema.append(pa.field(self._source.caption, pa.string()))
        self._schema = schema
        self._image_type = schema.field(self._source.image).type
        self._writer = pq.ParquetWriter(self._temporary, schema)

    def _close(self) -> None:
        if self._writer is None:
            return
        self._finish_batch()
        self._flush()
        self._writer.close()
        self._input.close()

    def copy(self, pair: RawPair) -> str:
        return self._write(pair, self._moved_image(pair))

    def replace(self, pair: RawPair, *, image: bytes, suffix: str, caption: str) -> str:
        changes: dict[str, Any] = {}
        name = f"{hash_uid(pair.uid)}{suffix}"
        if _holds_bytes(self._image_type):
            changes[self._source.image] = image
        elif pa.types.is_struct(self._image_type):
            changes[self._source.image] = {"bytes": image, "path": name}
        else:
            self._write_beside(f"{self.shard.rpartition('/')[0]}/images/{name}".lstrip("/"), image)
            changes[self._source.image] = f"images/{name}"
        if self._source.caption is not None:
            changes[self._source.caption] = caption
        return self._write(pair, changes)

    def _write(self, pair: RawPair, changes: dict[str, Any]) -> str:
        row, made_caption, has_key, _ = native_of(pair)
        self._go_to(row)
        if made_caption is not None:
            changes = {str(self._source.caption): made_caption} | changes
        self._picked.append((row - self._first_row, changes))
        return self._row_uid(pair.key if has_key else None)

    def _go_to(self, row: int) -> None:
        """Load the batch that holds a row; rows come in the order of reading."""
        if row < self._first_row:
            raise ValueError(
                f"{self._unit.shard}: row {row} is written after row {self._first_row}; keep the read order"
            )
        while row >= self._first_row + self._batch.num_rows:
            self._finish_batch()
            try:
                self._first_row, batch = next(self._walk)
            except (OSError, pa.ArrowException) as error:  # in a column that the scan does not read
                told = f"{self._unit.path}: row {row} cannot be copied: {' '.join(str(error).split())[:200]}"
                raise SourceError(f"{told}; mend the file, or leave it out") from error
            columns = [batch.column(i).cast(kept.type) for i, kept in enumerate(self._schema) if i < batch.num_columns]
            self._batch = pa.RecordBatch.from_arrays(columns, schema=pa.schema(list(self._schema)[: len(columns)]))

    def _moved_image(self, pair: RawPair) -> dict[str, Any]:
        """Return the change that keeps a relative image path valid in another folder."""
        row, _, _, place = native_of(pair)
        self._go_to(row)
        value = self._batch.column(self._source.image)[row - self._first_row]
        if place is None:
            self._check(pair, value)
            return {}
        if pa.types.is_struct(self._image_type):
            return {self._source.image: value.as_py() | {"path": place}}
        return {self._source.image: place}

    def _check(self, pair: RawPair, value: pa.Scalar) -> None:
        """Raise SourceError when the file holds another image now than when it was read."""
        if pa.types.is_struct(self._image_type):
            value = value["bytes"] if value.is_valid else value
        if pair.image is not None and value.is_valid and value.as_py() != pair.image:
            raise SourceError(f"{pair.uid}: the file changed while it was copied; scan it again")

    def _finish_batch(self) -> None:
        """Copy the picked rows out of the batch, so that it can be freed."""
        if self._picked:
            taken = self._batch.take(pa.array([position for position, _ in self._picked]))
            changes = [change for _, change in self._picked]
            columns = [self._column(taken, i, changes) for i in range(len(self._schema))]
            self._pending.append(pa.Table.from_arrays(columns, schema=self._schema))
            self._picked = []
        pending_bytes = sum(table.nbytes for table in self._pending)
        if sum(table.num_rows for table in self._pending) >= GROUP_ROWS or pending_bytes >= GROUP_BYTES:
            self._flush()

    def _column(self, taken: pa.RecordBatch, position: int, changes: list[dict[str, Any]]) -> Any:
        field = self._schema.field(position)
        old = taken.column(position) if position < taken.num_columns else pa.nulls(taken.num_rows, field.type)
        if not any(field.name in change for change in changes):
            return old
        pieces = []
        for i, change in enumerate(changes):
            value = change.get(field.name)
            if field.name in change and isinstance(value, str) and _is_list(field.type):
                value = with_caption(old[i].as_py() or [], value)
                if pa.types.is_fixed_size_list(field.type):
                    value += [None] * (field.type.list_size - len(value))
            pieces.append(pa.array([value], field.type) if field.name in change else old.slice(i, 1))
        return pa.chunked_array(pieces, field.type)

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending), row_group_size=GROUP_ROWS)
            self._pending = []
