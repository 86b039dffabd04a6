"""Run folders on an object store: the methods of pathlib's that they need, commits by put, and what is refused."""

import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pytest

from clipsan.pipeline.core.commit import (
    DamagedPartError,
    FingerprintError,
    clear_temporary,
    missing_parts,
    part_path,
    read_part,
    whole,
    write_json,
    write_part,
)
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.core.place import AnyPath, ObjectPath, below, is_below, place_of, read_here, remove_tree, written
from clipsan.pipeline.core.run_folder import RunFolder, open_run, part_rows
from clipsan.pipeline.core.tables import read_table, table_names
from clipsan.stages.files import PathError, fetched
from tests.object_store import object_store

TABLE = pa.table({"uid": ["a", "b", "c"], "score": [1.0, 2.0, 3.0]})


@pytest.fixture(scope="module")
def query() -> Iterator[str]:
    with object_store("bucket") as query:
        yield query


@pytest.fixture
def home(query: str, request: pytest.FixtureRequest) -> ObjectPath:
    place = place_of(f"s3://bucket/{request.node.name}/?{query}")
    assert isinstance(place, ObjectPath)
    return place


def test_it_walks_and_reads_as_a_path_does(home: ObjectPath, query: str, tmp_path: Path):
    for root in (home, tmp_path):
        for name in ("run.yaml", "one/run.yaml", "two/run.yaml", "two/deep/part-00001.parquet", "part-00000.parquet"):
            write_json(root / name, {"name": name})

    def seen(root: AnyPath) -> list[list[str]]:
        listed = (
            root.glob("*/run.yaml"),
            root.glob("part-*.parquet"),
            root.rglob("part-*.parquet"),
            root.iterdir(),
            (root / "no").glob("*"),
        )
        return [sorted(str(below(path, root)) for path in found) for found in listed]

    assert seen(home) == seen(tmp_path)
    part = home / "two" / "deep/part-00001.parquet"
    assert (part.name, part.stem, part.parent) == ("part-00001.parquet", "part-00001", home / "two/deep")
    assert str(part) == f"s3://bucket/{home.name}/two/deep/part-00001.parquet?{query}"
    assert part.is_file()
    assert part.exists()
    assert not part.is_dir()
    assert (home / "two").is_dir()
    assert not (home / "three").exists()
    assert part.stat().st_size == (tmp_path / "two/deep/part-00001.parquet").stat().st_size
    assert part.read_text() == (tmp_path / "two/deep/part-00001.parquet").read_text()
    assert pickle.loads(pickle.dumps(part)) == part
    for missing in (lambda: (home / "no").stat(), lambda: (home / "no").read_bytes()):
        with pytest.raises(FileNotFoundError):
            missing()
    remove_tree(home / "two")
    remove_tree(home / "never")
    assert not (home / "two").exists()
    assert (home / "one").is_dir()


def test_a_part_is_put_whole_and_checked_when_it_is_read(home: ObjectPath, tmp_path: Path, capsys):
    path = write_part(home, 3, TABLE, "f")
    assert path.read_bytes() == write_part(tmp_path, 3, TABLE, "f").read_bytes()  # type: ignore[union-attr]
    assert read_part(home, 3, ["score"]).column("score").to_pylist() == [1.0, 2.0, 3.0]
    assert part_rows(home) == {3: 3}
    assert missing_parts(home, [1, 3, 2], "f") == [1, 2]
    with pytest.raises(FingerprintError, match="another configuration"):
        missing_parts(home, [3], "g")
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    part_path(home, 3).write_bytes(bytes(content))
    with pytest.raises(DamagedPartError, match="damaged"):
        read_part(home, 3)
    assert missing_parts(home, [3], "f") == [3]
    assert "is made again" in capsys.readouterr().err


def test_what_fails_halfway_leaves_nothing(home: ObjectPath):
    def half(stop: AbstractContextManager[Path]) -> None:
        with stop as local:
            if local.name == "folder":
                local.mkdir()
                local = local / "half"
            local.write_bytes(b"half")
            raise KeyError

    for stop in (whole(home / "file.npy"), written(home / "folder")):
        with pytest.raises(KeyError):
            half(stop)
    assert not home.exists()
    with written(home / "folder") as local:
        (local / "deep").mkdir(parents=True)
        (local / "deep" / "b").write_bytes(b"b" * 6_000_000)
        (local / "a").write_bytes(b"a")
    assert [str(below(path, home)) for path in home.rglob("*")] == ["folder/a", "folder/deep/b"]
    clear_temporary(home)
    with read_here(home, ["folder/deep", "folder/a", "none"]) as here:
        assert (here / "folder/deep/b").stat().st_size == 6_000_000
        assert (here / "folder/a").read_bytes() == b"a"


def test_a_run_folder_is_opened_again_and_refuses_other_settings(home: ObjectPath):
    folder = open_run(str(home), verb="scan", tree={"seed": 1}, fingerprint="f")
    assert folder == RunFolder(home) == open_run(str(home), verb="scan", tree={"seed": 1}, fingerprint="f")
    with pytest.raises(FingerprintError, match="differs in seed"):
        open_run(str(home), verb="scan", tree={"seed": 2}, fingerprint="g")
    with pytest.raises(ConfigError, match="holds a run of `clipsan scan`"):
        open_run(str(home), verb="train", tree={}, fingerprint="f")
    other = home / "other"
    write_json(other / "mine.json", {})
    with pytest.raises(ConfigError, match="not empty and no run of clipsan"):
        open_run(str(other), verb="scan", tree={}, fingerprint="f")
    write_part(folder.scores, 0, TABLE, "f")
    write_part(folder.scores, 1, TABLE, "f")
    assert table_names(folder) == ["scores"]
    assert read_table(folder, "scores").num_rows == 6


def test_places(tmp_path: Path, query: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert place_of("runs/x") == tmp_path / "runs" / "x"
    assert place_of(f"file://{tmp_path}/x") == tmp_path / "x"
    with pytest.raises(ConfigError, match=r"\*\*\*@bucket.*no credentials") as refused:
        place_of("s3://CANARY:CANARY@bucket/run")
    assert "CANARY" not in str(refused.value)
    with pytest.raises(ConfigError, match="no credentials"):
        place_of("s3://bucket/run?secret_key=CANARY")
    with pytest.raises(ConfigError, match="no support for hdfs"):
        place_of("hdfs://host/run")
    one = place_of(f"s3://bucket/a?{query}")
    assert is_below(one / "b", one)
    assert is_below(one, one)
    assert not is_below(one, one / "b")
    assert not is_below(tmp_path, one)


def test_a_folder_is_fetched_once_for_each_content(home: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name, content in (("weights", b"1"), ("deep/config.json", b"{}")):
        (home / "model" / name).write_bytes(content)
    here = fetched(str(home / "model"))
    assert (here.name, (here / "deep/config.json").read_bytes()) == ("model", b"{}")
    assert fetched(str(home / "model")) == here
    assert fetched(str(home / "model" / "weights")).read_bytes() == b"1"
    (home / "model" / "weights").write_bytes(b"22")
    assert (fetched(str(home / "model")) / "weights").read_bytes() == b"22"
    with pytest.raises(PathError, match="no such file or folder"):
        fetched(str(home / "absent"))
    here.parent.parent.chmod(0o755)
    with pytest.raises(PathError, match="this user alone"):
        fetched(str(home / "model"))
