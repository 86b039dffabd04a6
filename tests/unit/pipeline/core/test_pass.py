"""A pass in this process: what is committed, what is done again, and when workers are asked for."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from clipsan.pipeline.core import pass_ as module
from clipsan.pipeline.core.cluster import ClusterConfig, PoolConfig
from clipsan.pipeline.core.commit import FingerprintError, part_path, read_part
from clipsan.pipeline.core.pass_ import Done, Pass, Work, in_this_process
from clipsan.pipeline.core.run_folder import RunFolder
from clipsan.stages.files import Unreachable

SMALL = 100


@dataclass(frozen=True)
class Doubling(Work):
    """Doubles a number; negative ones cannot be used."""

    folder: Path

    def open(self) -> list[int]:
        (self.folder / f"opened-{len(list(self.folder.glob('opened-*')))}").touch()
        return []

    def do(self, piece: int, tools: list[int]) -> Done:
        tools.append(piece)
        rejected = pa.table({"piece": [piece] if piece < 0 else []})
        part = pa.table({"double": [2 * piece], "threads": [torch.get_num_threads()]})
        return Done(pairs=1, errors=rejected.num_rows, parts=(part,), rejected=rejected, record=list(tools))


@pytest.fixture
def doubling(tmp_path: Path) -> Pass:
    return Pass(
        name="double",
        cluster=ClusterConfig(workers=1, alone_below_pairs=SMALL),
        run=RunFolder(tmp_path / "run"),
        folder="doubles",
        rejected="rejected",
        fingerprint="f",
        pairs=SMALL - 1,
    )


def test_pieces_are_committed_with_what_they_rejected_and_not_done_again(doubling: Pass, tmp_path: Path) -> None:
    work = Doubling(tmp_path)
    first = doubling.do({0: 5, 1: -3}, work)
    assert [done.record for done in first] == [[5], [5, -3]]
    assert all(done.parts == () and done.rejected is None for done in first)
    assert read_part(doubling.home, 1)["double"].to_pylist() == [-6]
    assert read_part(tmp_path / "run" / "rejected", 1)["piece"].to_pylist() == [-3]
    again = doubling.do({0: 5, 1: -3, 2: 7}, work)
    assert [done.record for done in again] == [[7]]
    assert len(list(tmp_path.glob("opened-*"))) == 2
    assert json.loads((tmp_path / "run/work/passes.json").read_text()) == {"double": {"folder": "doubles", "parts": 3}}
    with pytest.raises(FingerprintError, match="doubles holds results of another configuration"):
        replace(doubling, fingerprint="g").do({0: 5}, work)


@pytest.mark.parametrize("folder", ["doubles", "rejected"])
@pytest.mark.parametrize("harm", ["gone", "cut off", "a bit"])
def test_a_damaged_part_of_any_folder_is_named_and_made_again_and_no_other(
    doubling: Pass, tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str, harm: str
) -> None:
    work = Doubling(tmp_path)
    doubling.do({0: 5, 1: -3}, work)
    path = part_path(tmp_path / "run" / folder, 1)
    before = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(before[:-9] if harm == "cut off" else bytes([before[0], before[1] ^ 4]) + before[2:])
    capsys.readouterr()
    assert [done.record for done in doubling.do({0: 5, 1: -3}, work)] == [[-3]]
    assert (f"{path} is damaged" in capsys.readouterr().err) == (harm != "gone")
    assert path.read_bytes() == before


@dataclass(frozen=True)
class Splitting(Work):
    """Makes two parts of a piece."""

    def do(self, piece: tuple[int, int], tools: None) -> Done:
        return Done(pairs=2, parts=tuple(pa.table({"n": [n]}) for n in piece))


def test_a_piece_of_two_parts_is_done_again_when_one_is_missing(doubling: Pass) -> None:
    split = replace(doubling, rejected=None)
    pieces = {("low/part-00001", "high/part-00001"): (1, 2)}
    assert len(split.do(pieces, Splitting())) == 1
    assert read_part(split.home, "high/part-00001")["n"].to_pylist() == [2]
    assert split.do(pieces, Splitting()) == []
    part_path(split.home, "low/part-00001").unlink()
    assert len(split.do(pieces, Splitting())) == 1


def test_threads_are_those_of_a_worker_and_come_back(doubling: Pass, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    doubling.do({0: 1}, Doubling(tmp_path))
    assert read_part(doubling.home, 0)["threads"].to_pylist() == [doubling.cluster.threads_per_worker]
    assert torch.get_num_threads() == before


@dataclass(frozen=True)
class Meeting(Work):
    """Two pieces that wait for each other: each is done only where the other is under way."""

    met: Path

    def open(self) -> object:
        return object()

    def do(self, piece: int, tools: object) -> Done:
        (self.met / str(piece)).touch()
        for _ in range(1000):
            if len(list(self.met.iterdir())) == 2:
                return Done(pairs=1, record=(piece, id(tools), torch.get_num_threads()))
            time.sleep(0.01)
        raise TimeoutError("nobody came")


def test_pieces_of_a_small_set_are_done_side_by_side_each_with_tools_of_its_own(doubling: Pass, tmp_path: Path) -> None:
    (tmp_path / "met").mkdir()
    two = replace(doubling, folder=None, cluster=ClusterConfig(workers=2, alone_below_pairs=SMALL))
    done = [found.record for found in two.do([0, 1], Meeting(tmp_path / "met"))]
    assert [piece for piece, _, _ in done] == [0, 1]
    assert len({tools for _, tools, _ in done}) == 2
    assert {threads for _, _, threads in done} == {1}


def test_what_a_piece_raises_ends_the_pass(doubling: Pass, tmp_path: Path) -> None:
    many = replace(doubling, cluster=ClusterConfig(workers=3, alone_below_pairs=SMALL))
    with pytest.raises(TypeError):
        many.do({0: 1, 1: "two", 2: 3, 3: 4}, Doubling(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"pairs": SMALL},
        {"pairs": None},
        {"cluster": ClusterConfig(alone_below_pairs=0)},
        {"cluster": ClusterConfig(alone_below_pairs=SMALL, address="auto")},
        {"cluster": ClusterConfig(alone_below_pairs=SMALL, gpus_per_worker=0.5)},
        {"pool": PoolConfig(resources={"oracle": 1.0})},
        {"pool": PoolConfig(gpus_per_worker=1.0)},
    ],
)
def test_workers_are_asked_for_where_there_is_much_to_do_or_a_place_to_do_it(
    doubling: Pass, tmp_path: Path, changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Ray is started")

    monkeypatch.setattr(module, "workers", refuse)
    large = replace(doubling, **changes)
    with pytest.raises(RuntimeError, match="Ray is started"):
        large.do({0: 1}, Doubling(tmp_path))
    with in_this_process():
        assert len(large.do({0: 1}, Doubling(tmp_path))) == 1


@dataclass(frozen=True)
class Failing(Work):
    """A piece whose input is gone for some tries."""

    folder: Path
    times: int

    def do(self, piece: int, tools: None) -> Done:
        tries = len(list(self.folder.glob("tried-*")))
        if piece == 1 and tries < self.times:
            (self.folder / f"tried-{tries}").touch()
            raise Unreachable("1.tar: no such file")
        return Done(pairs=1, parts=(pa.table({"n": [piece]}),), rejected=pa.table({"n": [0]}))


def test_a_piece_whose_input_is_gone_is_tried_again_and_then_left_undone_or_ends_the_pass(
    doubling: Pass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSES_S", (0.0, 0.0))
    pieces = {0: 0, 1: 1, 2: 2}
    with pytest.raises(Unreachable, match=r"1\.tar"):
        doubling.do(pieces, Failing(tmp_path, times=100))
    for path in tmp_path.glob("tried-*"):
        path.unlink()
    leaving = replace(doubling, leaves_undone=True)
    done = leaving.do(pieces, Failing(tmp_path, times=3))
    assert [(found.key, found.undone) for found in done if found.undone] == [(1, "1.tar: no such file")]
    assert not part_path(leaving.home, 1).exists()
    assert [found.undone for found in leaving.do(pieces, Failing(tmp_path, times=5))] == [""]
    assert leaving.do(pieces, Failing(tmp_path, times=5)) == []


def test_a_process_that_died_at_a_pass_makes_the_next_one_careful(
    doubling: Pass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    careful: list[bool] = []

    @contextmanager
    def note(wanted: bool) -> Iterator[None]:
        careful.append(wanted)
        yield

    monkeypatch.setattr(module, "carefully", note)
    doubling.do({0: 5}, Doubling(tmp_path))
    with pytest.raises(TypeError):
        doubling.do({1: "one"}, Doubling(tmp_path))
    doubling.do({1: 1}, Doubling(tmp_path))
    doubling.do({2: 2}, Doubling(tmp_path))
    assert careful == [False, False, True, False]
