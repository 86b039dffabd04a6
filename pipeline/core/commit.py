"""The shard commit: a part of a pass is there whole, with the fingerprint of what made it, or it is not there.

Ray Data's own checkpointing cannot be used for this job: it keeps every id in memory, re-reads all input, does not know the
configuration that made a result, and its granularity is a write task.

A part is one Parquet file that any reader opens, and it carries its own checksum: the last entry of the footer holds the SHA-256
of all other bytes of the file. Every read computes it again (1 GB/s and more), so no bit of a part changes unnoticed.
"""

import contextlib
import hashlib
import io
import json
import os
import secrets
import socket
import sys
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from .config import ConfigError
from .place import AnyPath, ObjectPath, written

FINGERPRINT_KEY = b"clipsan.fingerprint"
CHECKSUM_KEY = "clipsan.sha256"
CHECKSUM_DIGITS = 64
FOOTER_TAIL = 8
"""Bytes behind a Parquet footer: its length, and the magic number."""

REQUESTS = 16
"""Parts that are asked of an object store at once."""

Key = int | str
"""Names a part of a pass: the number of a unit, or a path below the pass's folder, as perm-1/part-00003."""
K = TypeVar("K", int, str, Key)


class FingerprintError(ConfigError):
    """A folder holds results that other settings made."""


class DamagedPartError(ConfigError):
    """A committed part is not what was written: cut off, or with bits that changed."""


def fingerprint(tree: Any) -> str:
    """Return 64 hexadecimal digits for a plain tree; equal trees give equal digits."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def part_path(folder: AnyPath, key: Key) -> AnyPath:
    """Return the path of a pass's part."""
    return folder / (f"part-{key:05d}.parquet" if isinstance(key, int) else f"{key}.parquet")


def write_part(folder: AnyPath, key: Key, table: pa.Table, fingerprint: str) -> AnyPath:
    """Commit one part with its checksum: write under a temporary name, flush, rename; on an object store one put.

    Two writers of the same part (a retried task) each commit their own file, and both files have the same content.
    """
    path = part_path(folder, key)
    metadata = {**(table.schema.metadata or {}), FINGERPRINT_KEY: fingerprint.encode()}
    table = table.replace_schema_metadata(metadata)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", use_dictionary=_repeating(table.schema)) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({CHECKSUM_KEY: "0" * CHECKSUM_DIGITS})
    write_bytes(path, _sealed(sink.getbuffer()))
    return path


def _repeating(schema: pa.Schema) -> list[str]:
    """Return the columns whose values repeat: all but vectors, for which a dictionary takes four times as long to read."""
    return [f"{x.name}.list.element" if pa.types.is_list(x.type) else x.name for x in schema if not _is_vector(x.type)]


def _is_vector(column: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(column))


def write_text(path: AnyPath, text: str) -> None:
    """Write a small file whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: AnyPath, tree: Any) -> None:
    """Write a plain tree whole or not at all."""
    write_text(path, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def write_bytes(path: AnyPath, content: bytes | memoryview) -> None:
    """Write a file whole or not at all."""
    if isinstance(path, ObjectPath):
        path.write_bytes(content)
        return
    with whole(path) as temporary, temporary.open("wb") as sink:
        sink.write(content)
        sink.flush()
        os.fsync(sink.fileno())


@contextlib.contextmanager
def whole(path: AnyPath) -> Iterator[Path]:
    """Give the temporary name under which a file is written; it takes its own when the block ends without an error."""
    if isinstance(path, ObjectPath):
        with written(path) as local:
            yield local
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{_writer()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _writer() -> str:
    """Return a name that no other writer has, of this process, machine or container."""
    return f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def clear_temporary(root: AnyPath) -> None:
    """Remove what writers left below a folder when they were killed; those of a living process of this machine stay.

    On an object store there is nothing to remove: what was not put whole is no object. The pieces of a put that never ended are
    dropped by the store itself, where its bucket has a rule for them.
    """
    if isinstance(root, ObjectPath):
        return
    for home, _, names in os.walk(root):
        for name in names:
            if not (name.startswith(".") and name.endswith(".tmp")):
                continue
            machine, _, rest = name.removesuffix(".tmp").rpartition(".")[2].partition("-")
            pid = rest.partition("-")[0]
            if machine == _machine() and pid.isdecimal() and _lives(int(pid)):
                continue
            Path(home, name).unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True


def _sealed(file: memoryview) -> memoryview:
    """Put the checksum of a Parquet file in the place that its footer has for it."""
    place = _checksum_place(file)
    assert place is not None
    file[place : place + CHECKSUM_DIGITS] = _checksum(file, place).encode()
    return file


def _checksum_place(file: bytes | memoryview) -> int | None:
    """Return where the digits of the checksum stand in a Parquet file: at the end of its footer, or nowhere."""
    length = int.from_bytes(file[-FOOTER_TAIL:-4], "little")
    footer_at = max(0, len(file) - FOOTER_TAIL - length)
    found = bytes(file[footer_at:]).rfind(CHECKSUM_KEY.encode())
    # thrift puts the kind of the value and its length between a key and its value
    place = footer_at + found + len(CHECKSUM_KEY) + 2
    return place if found >= 0 and place + CHECKSUM_DIGITS <= len(file) else None


def _checksum(file: bytes | memoryview, place: int) -> str:
    digest = hashlib.sha256(file[:place])
    digest.update(file[place + CHECKSUM_DIGITS :])
    return digest.hexdigest()


def _is_whole(file: bytes) -> bool:
    place = _checksum_place(file)
    return place is not None and bytes(file[place : place + CHECKSUM_DIGITS]) == _checksum(file, place).encode()


def missing_parts(folder: AnyPath, keys: Iterable[K], fingerprint: str) -> list[K]:
    """Return the keys of the parts that are not committed yet; a damaged part is named on stderr, and counts as one of them.

    Raises:
        FingerprintError: a part was made with another configuration, model, input or version of the method.
    """
    wanted = list(keys)
    if isinstance(folder, Path):
        there = [_is_committed(part_path(folder, key), fingerprint) for key in wanted]
    else:  # a store answers slowly, but many at once
        with ThreadPoolExecutor(REQUESTS) as pool:
            there = list(pool.map(lambda key: _is_committed(part_path(folder, key), fingerprint), wanted))
    return [key for key, is_there in zip(wanted, there, strict=True) if not is_there]


def read_parts(folder: AnyPath, keys: Iterable[Key], columns: list[str] | None = None) -> Iterable[pa.Table]:
    """Yield the committed parts in order."""
    for key in keys:
        yield read_part(folder, key, columns)


def read_part(folder: AnyPath, key: Key, columns: Collection[str] | None = None) -> pa.Table:
    """Read one committed part, or some columns of it, and check it.

    Where one of `columns` is a pattern, as `layer.*`, what matches comes in the order of the part.

    Raises:
        DamagedPartError: it is not what was written.
    """
    path = part_path(folder, key)
    content = path.read_bytes()
    if not _is_whole(content):
        raise DamagedPartError(f"{path} is damaged (its checksum differs); the same command again makes it anew")
    if columns is not None and any("*" in column for column in columns):
        names = pq.read_schema(pa.BufferReader(content)).names
        columns = [name for name in names if any(fnmatchcase(name, column) for column in columns)]
    # A file object: of a path the folder would be read as a partitioned data set.
    return parquet_table(pa.BufferReader(content), columns)


def parquet_table(source: Any, columns: Collection[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns, in this thread alone.

    Arrow's own threads are at times still at work after its reader has returned, and a command that ends then is aborted, its work done
    (https://github.com/apache/arrow/issues/39862).
    """
    return pq.read_table(
        source, columns=None if columns is None else list(columns), use_threads=False, pre_buffer=False
    )


def _is_committed(path: AnyPath, fingerprint: str) -> bool:
    if not path.is_file():
        return False
    content = path.read_bytes()
    found = _fingerprint_in(content)
    if _is_whole(content) and found == fingerprint:
        return True
    if found in (None, fingerprint) or (_checksum_place(content) is not None and not _is_whole(content)):
        sys.stderr.write(f"{path} is damaged (its checksum differs) and is made again\n")
        return False
    assert found is not None
    raise FingerprintError(
        f"{path.parent} holds results of another configuration, model, input or version (fingerprint {found[:12] or 'none'}, "
        f"this run has {fingerprint[:12]}); give another `out`, or remove that folder"
    )


def _fingerprint_in(content: bytes) -> str | None:
    """Return the fingerprint of a part, empty where it has none; None where the file cannot be read."""
    try:
        metadata = pq.read_schema(pa.BufferReader(content)).metadata or {}
        return str(metadata.get(FINGERPRINT_KEY, b""), "utf-8")
    except (pa.ArrowException, UnicodeDecodeError, OSError):
        return None
