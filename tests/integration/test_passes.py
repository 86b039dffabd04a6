"""A pass on CPUs: each process opens a work once a pass, and never does a piece with what another pass opened."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.commit import FingerprintError, read_part
from clipsan.pipeline.core.pass_ import Done, Pass, Work, in_this_process
from clipsan.pipeline.core.pool import WorkerLostError
from clipsan.pipeline.core.run_folder import RunFolder

pytestmark = pytest.mark.ray

CLUSTER = ClusterConfig(workers=2)
PIECES = list(range(24))


@dataclass(frozen=True)
class Counting(Work):
    """Leaves a file for each time that it is opened."""

    name: str
    folder: Path

    def open(self) -> str:
        number = len(list(self.folder.glob(f"{self.name}-{os.getpid()}-*")))
        (self.folder / f"{self.name}-{os.getpid()}-{number}").touch()
        return self.name

    def do(self, piece: int, tools: str) -> Done:
        return Done(pairs=1, record=(piece, tools, os.getpid()))


def test_a_process_opens_a_work_once_a_pass(ray_cluster: None, tmp_path: Path) -> None:
    for name in ("first", "second"):
        for loads_model in (True, False):
            called = f"{name}-{loads_model}"
            one = Pass(name=called, cluster=CLUSTER, loads_model=loads_model, ordered=True)
            done = one.do(PIECES, Counting(called, tmp_path))
            assert [d.record[0] for d in done] == PIECES
            assert {d.record[1] for d in done} == {called}
            assert all(d.node for d in done)
            processes = {d.record[2] for d in done}
            assert {path.name for path in tmp_path.glob(f"{called}-*")} == {f"{called}-{pid}-0" for pid in processes}


@dataclass(frozen=True)
class Doubling(Work):
    """A part for each key of a piece."""

    def do(self, piece: list[int], tools: None) -> Done:
        parts = tuple(pa.table({"twice": [2 * value]}) for value in piece)
        return Done(pairs=len(piece), errors=1, parts=parts, rejected=pa.table({"reason": ["odd"]}))


def test_parts_are_committed_under_their_keys_and_not_made_again(ray_cluster: None, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    doubling = Pass(
        name="double", cluster=CLUSTER, run=run, folder="work/twice", rejected="rejected", fingerprint="one"
    )
    pieces = {("left/part-00001", "left/part-00002"): [1, 2], ("right/part-00001",): [3]}
    done = doubling.do(pieces, Doubling())
    assert sum(d.pairs for d in done) == 3
    assert all(d.parts == () and d.rejected is None for d in done)
    keys = {"left/part-00001": 2, "left/part-00002": 4, "right/part-00001": 6}
    assert {key: read_part(doubling.home, key).column("twice")[0].as_py() for key in keys} == keys
    assert read_part(tmp_path / "rejected", "left/part-00001").column("reason").to_pylist() == ["odd"]
    (doubling.home / "left" / "part-00002.parquet").unlink()
    with in_this_process():
        (again,) = doubling.do(pieces, Doubling())
        assert again.pairs == 2
        assert doubling.do(pieces, Doubling()) == []
        other = Pass(name="double", cluster=CLUSTER, run=run, folder="work/twice", fingerprint="two")
        with pytest.raises(FingerprintError):
            other.do(pieces, Doubling())


@dataclass(frozen=True)
class Dying(Work):
    """Ends its process at one piece, the first `times` that it is done."""

    folder: Path
    times: int

    def do(self, piece: int, tools: None) -> Done:
        died = len(list(self.folder.glob("died-*")))
        if piece == 3 and died < self.times:
            (self.folder / f"died-{died}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Done(pairs=1, record=piece)


def test_a_lost_worker_costs_what_it_had_in_hand_and_one_that_is_lost_again_and_again_ends_the_pass(
    ray_cluster: None, tmp_path: Path
) -> None:
    one = Pass(name="dying", cluster=CLUSTER, ordered=True)
    assert [done.record for done in one.do(PIECES, Dying(tmp_path, times=2))] == PIECES
    with pytest.raises(WorkerLostError, match="died on the same piece"):
        one.do(PIECES, Dying(tmp_path, times=100))
    assert [done.record for done in one.do(PIECES[:3], Dying(tmp_path, times=0))] == PIECES[:3]
