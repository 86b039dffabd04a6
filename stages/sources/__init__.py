"""Data sets of pairs: listing them as units of work, reading a unit, and writing one in the format that it came in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import unreachable
from ..samples import RawPair, Unit
from .common import LabelCaptions, SourceConfig, SourceError, UnitWriter
from .folder import FolderSource
from .parquet import ParquetSource
from .poisoned import PoisonedSource
from .table import TableSource
from .webdataset import WebDataset

__all__ = [
    "FolderSource",
    "LabelCaptions",
    "ParquetSource",
    "PoisonedSource",
    "SourceConfig",
    "SourceError",
    "TableSource",
    "UnitWriter",
    "WebDataset",
    "identity",
    "list_pieces",
    "list_units",
    "open_writer",
    "read_unit",
    "rewritten",
]


def list_units(source: SourceConfig) -> list[Unit]:
    """Return the units of work of a data set (see `SourceConfig.list_units`)."""
    return source.list_units()


def list_pieces(source: SourceConfig) -> list[Unit]:
    """Return the units of work of a data set, cut as finely as a scan takes them (see `SourceConfig.pieces`)."""
    return source.pieces(source.list_units())


def read_unit(source: SourceConfig, unit: Unit) -> Iterator[RawPair]:
    """Yield every pair of a unit exactly once (see `SourceConfig.read_unit`).

    Raises:
        stages.files.Unreachable: the shard cannot be read for a reason that is not in its bytes.
    """
    try:
        yield from source.read_unit(unit)
    except OSError as error:
        raise unreachable(unit.path, error) from error


def open_writer(source: SourceConfig, unit: Unit, folder: Path) -> UnitWriter:
    """Return the context manager that writes pairs of a unit below `folder` (see `SourceConfig.open_writer`)."""
    return source.open_writer(unit, folder)


def rewritten(source: SourceConfig, folder: Path) -> SourceConfig:
    """Return the source that reads what the writers wrote below `folder`."""
    return source.rewritten(folder)


def identity(source: SourceConfig, units: list[Unit]) -> dict[str, Any]:
    """Return what a data set is, for fingerprints: plain data without the place where it lies.

    Shards, slices and sizes name the files, the configuration says how they are read; of a plan also what it does.
    """
    return {"units": [[u.shard, u.start, u.stop, u.size_bytes] for u in units], "data": source.content()}
