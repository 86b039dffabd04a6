"""How an update of a detector is shared out among the workers."""

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from clipsan.pipeline.core.pass_ import Done, Work
from clipsan.pipeline.scan.passes import _updated, parts_of
from clipsan.stages.detectors.streaming import Shares, StreamingDetector
from clipsan.stages.samples import Unit


class Sums(StreamingDetector):
    """Adds up numbers, those of a share apart."""

    reads = frozenset({"n"})
    columns: ClassVar[dict[str, Any]] = {}
    rounds = 1

    def shares(self, state: int, summary: Sequence[int]) -> Shares:
        return Shares(10, (pa.table({"n": [n]}) for n in summary))

    def work_out(self, common: int, share: pa.Table) -> int:
        return common * int(share.column("n")[0].as_py())

    def update(self, state: int, summary: Sequence[int]) -> int:
        return self.update_with(state, summary, [10 * n for n in summary])

    def update_with(self, state: int, summary: Sequence[int], shared: Sequence[int]) -> int:
        assert len(shared) == len(summary)
        return state + sum(shared)

    def score(self, state: int, table: pa.Table) -> dict[str, Any]:
        return {}


class Elsewhere:
    """A pass whose work travels as it does to other processes."""

    def __init__(self, alone: bool) -> None:
        self.is_alone = alone
        self.done: list[int] = []

    def each(self, pieces: Sequence[int], work: Work) -> Iterator[Done]:
        for piece in pieces:
            self.done.append(piece)
            yield pickle.loads(pickle.dumps(work)).do(piece, None)


@pytest.mark.parametrize(("alone", "numbers"), [(True, [1, 2, 5]), (False, [1, 2, 5]), (False, [])])
def test_shares_are_worked_out_by_a_pass_and_leave_nothing_behind(
    tmp_path: Path, alone: bool, numbers: list[int]
) -> None:
    spread = Elsewhere(alone)
    scan: Any = SimpleNamespace(
        folder=SimpleNamespace(work=tmp_path),
        plan=SimpleNamespace(score_fingerprint="made of this"),
        records=lambda name: spread,
    )
    assert _updated(scan, "learn 3", Sums(), 4, numbers) == 4 + 10 * sum(numbers)
    assert spread.done == ([] if alone else list(range(len(numbers))))
    assert not list(tmp_path.iterdir())


def test_a_unit_has_the_pieces_that_begin_in_it_and_every_piece_has_a_unit() -> None:
    def cut(shard: str, *bounds: int) -> list[tuple[str, int, int]]:
        return [(shard, start, stop) for start, stop in zip(bounds, [*bounds[1:], -1], strict=True)]

    def numbered(cuts: list[tuple[str, int, int]]) -> list[Unit]:
        return [Unit(i, shard, f"/data/{shard}", start, stop, 9) for i, (shard, start, stop) in enumerate(cuts)]

    units = numbered([*cut("a.tar", 0), *cut("b.tar", 0, 100), *cut("c.tar", 0)])
    pieces = numbered([*cut("a.tar", 0, 7), *cut("b.tar", 0, 40, 100, 130), *cut("c.tar", 0)])
    assert parts_of(units, pieces) == {0: [0, 1], 1: [2, 3], 2: [4, 5], 3: [6]}
