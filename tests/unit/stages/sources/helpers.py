"""What the tests of readers and writers share."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from clipsan.stages.samples import RawPair
from clipsan.stages.sources import SourceConfig, list_units, read_unit

ASSETS = Path(os.environ.get("CLIPSAN_ASSETS", Path(__file__).parents[4] / ".." / "shared" / "assets"))
needs_assets = pytest.mark.skipif(not ASSETS.exists(), reason=f"the real data sets are not at {ASSETS}")


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read_all(source: SourceConfig) -> list[RawPair]:
    return [pair for unit in list_units(source) for pair in read_unit(source, unit)]


def facts(pairs: list[RawPair]) -> list[tuple]:
    return [(pair.key, pair.image, pair.caption, pair.reject, pair.label) for pair in pairs]
