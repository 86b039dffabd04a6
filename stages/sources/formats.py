"""The file formats of pairs: which reader and writer goes with which configuration."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import pydantic

from ..files import absolute as absolute_path
from ..samples import RawPair, Unit
from . import folder as folders
from . import parquet, table, webdataset
from .common import UnitWriter
from .folder import FolderSource
from .parquet import ParquetSource
from .table import TableSource
from .webdataset import WebDataset

FormatConfig = Annotated[WebDataset | ParquetSource | TableSource | FolderSource, pydantic.Discriminator("kind")]


def list_units(source: FormatConfig) -> list[Unit]:
    """Return the units of work of a data set, in an order that depends on names and sizes alone.

    Raises:
        stages.files.PathError: nothing matches, or the store cannot be reached.
        SourceError: a file does not have the columns that the source names.
    """
    match source:
        case WebDataset():
            return webdataset.list_units(source)
        case ParquetSource():
            return parquet.list_units(source)
        case TableSource():
            return table.list_units(source)
        case FolderSource():
            return folders.list_units(source)


def read_unit(source: FormatConfig, unit: Unit) -> Iterator[RawPair]:
    """Yield every pair of a unit exactly once, in the order of the source; unusable ones with `reject` set.

    A break in a shard is one record more, with reject SHARD_DAMAGED and a key that names the byte or row; what was
    read before it stays. Errors of a device or a network in the middle of a tar are raised: they are not the data's.
    """
    match source:
        case WebDataset():
            return webdataset.read_unit(source, unit)
        case ParquetSource():
            return parquet.read_unit(source, unit)
        case TableSource():
            return table.read_unit(source, unit)
        case FolderSource():
            return folders.read_unit(source, unit)


def open_writer(source: FormatConfig, unit: Unit, folder: Path) -> UnitWriter:
    """Return the context manager that writes pairs of a unit below `folder`, in the source's own format.

    Its `copy` and `replace` take pairs in the order in which `read_unit` yields them (leaving some out is fine) and
    return the uid that the pair has in the written data set.
    """
    match source:
        case WebDataset():
            return webdataset.WebDatasetWriter(source, unit, folder)
        case ParquetSource():
            return parquet.ParquetWriter(source, unit, folder)
        case TableSource():
            return table.TableWriter(source, unit, folder)
        case FolderSource():
            return folders.FolderWriter(source, unit, folder)


def rewritten(source: FormatConfig, folder: Path) -> FormatConfig:
    """Return the source that reads what the writers wrote below `folder`."""
    return replace(source, path=str(folder))


def content(source: FormatConfig) -> dict[str, Any]:
    """Return the configuration as plain data, without the path."""
    return asdict(replace(source, path=""))


def absolute(source: FormatConfig) -> FormatConfig:
    """Return the source with paths that hold in whatever folder a worker runs."""
    if isinstance(source.path, str):
        return replace(source, path=absolute_path(source.path))
    return replace(source, path=[absolute_path(path) for path in source.path])
