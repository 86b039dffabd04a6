"""A shard that is gone or does not answer is raised and never taken for damage; damage is never taken for a fault of the network."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsan.stages import files
from clipsan.stages.files import Unreachable, is_passing
from clipsan.stages.samples import Reject
from clipsan.stages.sources import SourceConfig, WebDataset, list_units, read_unit
from tests.conftest import write_shards
from tests.integration.data_sets import make_source


def made(kind: str, folder: Path) -> SourceConfig:
    if kind == "webdataset":
        return WebDataset(path=str(write_shards(folder, shards=1, pairs=5)))
    return make_source(kind, folder, 5)


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "table"])
def test_a_shard_that_vanished_since_it_was_listed_is_raised(kind: str, tmp_path: Path) -> None:
    source = made(kind, tmp_path / "pairs")
    (unit,) = list_units(source)
    Path(unit.path).unlink()
    with pytest.raises(Unreachable, match=f"{Path(unit.path).name}: no such file"):
        list(read_unit(source, unit))


def test_a_folder_that_vanished_is_raised(tmp_path: Path) -> None:
    source = make_source("folder", tmp_path / "pairs", 5)
    (unit, *_) = list_units(source)
    Path(unit.path).unlink()
    with pytest.raises(Unreachable):
        list(read_unit(source, unit))


class Failing:
    """A file whose reads fail, from the second on."""

    def __init__(self, file: Any, error: OSError) -> None:
        self._file, self._error, self._reads = file, error, 0

    def read(self, *args: Any) -> Any:
        self._reads += 1
        if self._reads > 1:
            raise self._error
        return self._file.read(*args)

    def __enter__(self) -> "Failing":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_an_error_of_the_device_in_the_middle_of_a_tar_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = made("webdataset", tmp_path / "pairs")
    (unit,) = list_units(source)
    opened: Callable[[str], Any] = files.open_input

    def failing(path: str) -> Any:
        return Failing(opened(path), OSError(errno.EIO, "Input/output error"))

    monkeypatch.setattr("clipsan.stages.sources.webdataset.open_input", failing)
    with pytest.raises(Unreachable, match="Input/output error"):
        list(read_unit(source, unit))


def test_an_image_whose_device_does_not_answer_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source("table", tmp_path / "pairs", 3)
    (unit,) = list_units(source)

    def fail(path: Path) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(Unreachable, match="Stale file handle"):
        list(read_unit(source, unit))


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ECONNREFUSED, "Connection refused"), True),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (OSError(errno.ENAMETOOLONG, "File name too long"), False),
        (OSError("When reading information for key 'a': AWS Error UNKNOWN (HTTP status 503) during HeadObject"), True),
        (
            OSError("When reading information for key 'a': AWS Error ACCESS_DENIED (HTTP status 403) during GetObject"),
            False,
        ),
        (OSError("Corrupt snappy compressed data."), False),
        (OSError("Couldn't deserialize thrift: TProtocolException: Invalid data"), False),
    ],
)
def test_which_errors_say_nothing_of_the_file(error: OSError, passing: bool) -> None:
    assert is_passing(error) == passing


def test_a_damaged_page_stays_damage(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    pq.write_table(
        pa.table({"image": [bytes(range(256)) * 40] * 50, "caption": ["a kite"] * 50}), path, compression="snappy"
    )
    source = make_source("parquet", tmp_path / "other", 3)
    source = type(source)(path=str(path))
    (unit,) = list_units(source)
    raw = bytearray(path.read_bytes())
    raw[40:400] = b"\xff" * 360
    path.write_bytes(raw)
    assert Reject.SHARD_DAMAGED in {pair.reject for pair in read_unit(source, unit)}


def test_times_change_when_a_shard_or_an_image_is_written_anew(tmp_path: Path) -> None:
    for kind in ("webdataset", "parquet", "table", "folder"):
        source = made(kind, tmp_path / kind) if kind != "folder" else make_source("folder", tmp_path / kind, 3)
        units = list_units(source)
        before = source.times(units)
        assert set(before) == {unit.shard for unit in units}
        assert source.times(units) == before
        changed = tmp_path / kind / "images" / "001.png" if kind == "folder" else Path(units[0].path)
        changed.write_bytes(changed.read_bytes())
        assert source.times(units) != before
