"""Data sets of pairs: listing them as units of work, reading a unit, and writing one in the format that it came in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pydantic

from ..samples import RawPair, Unit
from . import formats, poisoned
from .common import LabelCaptions, SourceError, UnitWriter
from .folder import FolderSource
from .formats import FormatConfig
from .parquet import ParquetSource
from .poisoned import PoisonedSource
from .table import TableSource
from .webdataset import WebDataset

__all__ = [
    "FolderSource",
    "FormatConfig",
    "LabelCaptions",
    "ParquetSource",
    "PoisonedSource",
    "SourceConfig",
    "SourceError",
    "TableSource",
    "UnitWriter",
    "WebDataset",
    "identity",
    "list_units",
    "open_writer",
    "read_unit",
    "rewritten",
]

SourceConfig = Annotated[
    WebDataset | ParquetSource | TableSource | FolderSource | PoisonedSource, pydantic.Discriminator("kind")
]


def list_units(source: SourceConfig) -> list[Unit]:
    """Return the units of work of a data set, in an order that depends on names and sizes alone.

    Raises:
        stages.files.PathError: nothing matches, or the store cannot be reached.
        SourceError: a file does not have the columns that the source names, or a plan no longer fits its clean data.
    """
    return poisoned.list_units(source) if isinstance(source, PoisonedSource) else formats.list_units(source)


def read_unit(source: SourceConfig, unit: Unit) -> Iterator[RawPair]:
    """Yield every pair of a unit exactly once, in the order of the source; unusable ones with `reject` set.

    A break in a shard is one record more, with reject SHARD_DAMAGED and a key that names the byte or row; what was
    read before it stays. Errors of a device or a network in the middle of a tar are raised: they are not the data's.
    """
    return poisoned.read_unit(unit) if isinstance(source, PoisonedSource) else formats.read_unit(source, unit)


def open_writer(source: SourceConfig, unit: Unit, folder: Path) -> UnitWriter:
    """Return the context manager that writes pairs of a unit below `folder`, in the source's own format.

    Its `copy` and `replace` take pairs in the order in which `read_unit` yields them (leaving some out is fine) and
    return the uid that the pair has in the written data set.
    """
    if isinstance(source, PoisonedSource):
        return poisoned.PoisonedWriter(unit, folder)
    return formats.open_writer(source, unit, folder)


def rewritten(source: SourceConfig, folder: Path) -> SourceConfig:
    """Return the source that reads what the writers wrote below `folder`."""
    plain = poisoned.load_plan(source.path).data if isinstance(source, PoisonedSource) else source
    return formats.rewritten(plain, folder)


def identity(source: SourceConfig, units: list[Unit]) -> dict[str, Any]:
    """Return what a data set is, for fingerprints: plain data without the place where it lies.

    Shards, slices and sizes name the files, the configuration says how they are read; of a plan also what it does.
    """
    content = poisoned.content(source) if isinstance(source, PoisonedSource) else formats.content(source)
    return {"units": [[u.shard, u.start, u.stop, u.size_bytes] for u in units], "data": content}
