"""Which pairs a manifest calls poisoned."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.scan.output import manifest_uids


def manifest(folder: Path, **columns: list[str | None]) -> str:
    path = folder / "manifest.parquet"
    pq.write_table(pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}), path)
    return str(path)


def test_pairs_that_cover_an_attack_are_not_poisoned_and_all_of_a_control_are(tmp_path: Path) -> None:
    assert manifest_uids(manifest(tmp_path, uid=["a", "b", "c"], target=["star", None, "star"])).to_pylist() == [
        "a",
        "c",
    ]
    assert manifest_uids(manifest(tmp_path, uid=["a", "b"], target=[None, None])).to_pylist() == ["a", "b"]
    assert manifest_uids(manifest(tmp_path, uid=["a", "b"])).to_pylist() == ["a", "b"]


def test_a_file_without_uids_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a manifest"):
        manifest_uids(manifest(tmp_path, key=["a"]))
