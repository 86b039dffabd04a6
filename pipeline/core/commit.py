"""The shard commit: a part of a pass is there whole, with the fingerprint of what made it, or it is not there.

Ray Data's own checkpointing cannot be used for this job: it keeps every id in memory, re-reads all input, does not know the
configuration that made a result, and its granularity is a write task.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from .config import ConfigError

FINGERPRINT_KEY = b"clipsan.fingerprint"

Key = int | str
"""Names a part of a pass: the number of a unit, or a path below the pass's folder, as perm-1/part-00003."""
K = TypeVar("K", int, str, Key)


class FingerprintError(ConfigError):
    """A folder holds results that other settings made."""


def fingerprint(tree: Any) -> str:
    """Return 64 hexadecimal digits for a plain tree; equal trees give equal digits."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def part_path(folder: Path, key: Key) -> Path:
    """Return the path of a pass's part."""
    return folder / (f"part-{key:05d}.parquet" if isinstance(key, int) else f"{key}.parquet")


def write_part(folder: Path, key: Key, table: pa.Table, fingerprint: str) -> Path:
    """Commit one part: write under a temporary name, flush, rename.

    Two writers of the same part (a retried task) each rename their own file, and both files have the same content.
    """
    path = part_path(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    metadata = {**(table.schema.metadata or {}), FINGERPRINT_KEY: fingerprint.encode()}
    with temporary.open("wb") as sink:
        pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
        sink.flush()
        os.fsync(sink.fileno())
    temporary.replace(path)
    return path


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def missing_parts(folder: Path, keys: Iterable[K], fingerprint: str) -> list[K]:
    """Return the keys of the parts that are not committed yet.

    Raises:
        FingerprintError: a part was made with another configuration, model, input or version of the method.
    """
    return [key for key in keys if not _is_committed(part_path(folder, key), fingerprint)]


def read_parts(folder: Path, keys: Iterable[Key], columns: list[str] | None = None) -> Iterable[pa.Table]:
    """Yield the committed parts in order."""
    for key in keys:
        yield read_part(folder, key, columns)


def read_part(folder: Path, key: Key, columns: list[str] | None = None) -> pa.Table:
    """Read one committed part, without following the folder's other files."""
    # A file object: pq.read_table on a path would try to read the folder as a partitioned data set.
    with part_path(folder, key).open("rb") as source:
        return pq.read_table(source, columns=columns)


def _is_committed(path: Path, fingerprint: str) -> bool:
    if not path.is_file():
        return False
    metadata = pq.read_schema(path).metadata or {}
    found = metadata.get(FINGERPRINT_KEY, b"").decode()
    if found != fingerprint:
        raise FingerprintError(
            f"{path.parent} holds results of another configuration, model, input or version (fingerprint {found[:12] or 'none'}, "
            f"this run has {fingerprint[:12]}); give another `out`, or remove that folder"
        )
    return True
