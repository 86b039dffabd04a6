"""The shard commit: a part of a pass is there whole, with the fingerprint of what made it, or it is not there.

Ray Data's own checkpointing cannot be used for this job: it keeps every id in memory, re-reads all input, does not know the
configuration that made a result, and its granularity is a write task.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import ConfigError

FINGERPRINT_KEY = b"clipsan.fingerprint"


class FingerprintError(ConfigError):
    """A folder holds results that other settings made."""


def fingerprint(tree: Any) -> str:
    """Return 64 hexadecimal digits for a plain tree; equal trees give equal digits."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def part_path(folder: Path, index: int) -> Path:
    """Return the path of a pass's part for one unit."""
    return folder / f"part-{index:05d}.parquet"


def write_part(folder: Path, index: int, table: pa.Table, mark: str) -> Path:
    """Commit one part: write under a temporary name, flush, rename.

    Two writers of the same part (a retried task) each rename their own file, and both files have the same content.
    """
    path = part_path(folder, index)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    metadata = {**(table.schema.metadata or {}), FINGERPRINT_KEY: mark.encode()}
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


def missing_parts(folder: Path, indices: Iterable[int], mark: str) -> list[int]:
    """Return the indices that are not committed yet.

    Raises:
        FingerprintError: a part was made with another configuration, model, input or version of the method.
    """
    return [index for index in indices if not _is_committed(part_path(folder, index), mark)]


def read_parts(folder: Path, indices: Iterable[int], columns: list[str] | None = None) -> Iterable[pa.Table]:
    """Yield the committed parts in order."""
    for index in indices:
        yield read_part(folder, index, columns)


def read_part(folder: Path, index: int, columns: list[str] | None = None) -> pa.Table:
    """Read one committed part, without following the folder's other files."""
    # A file object: pq.read_table on a path would try to read the folder as a partitioned data set.
    with part_path(folder, index).open("rb") as source:
        return pq.read_table(source, columns=columns)


def _is_committed(path: Path, mark: str) -> bool:
    if not path.is_file():
        return False
    metadata = pq.read_schema(path).metadata or {}
    found = metadata.get(FINGERPRINT_KEY, b"").decode()
    if found != mark:
        raise FingerprintError(
            f"{path.parent} holds results of another configuration, model, input or version (fingerprint {found[:12] or 'none'}, "
            f"this run has {mark[:12]}); give another `out`, or remove that folder"
        )
    return True
