"""A pass in two halves: decoders and encoders are processes of their own, what lies between them is bounded, and lost ones cost nothing."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.data import DataContext, ExecutionResources

from clipsan.pipeline.core.cluster import ClusterConfig, PoolConfig
from clipsan.pipeline.core.commit import read_part
from clipsan.pipeline.core.pass_ import Done, Pass, Work
from clipsan.pipeline.core.pool import WorkerLostError
from clipsan.pipeline.core.run_folder import RunFolder
from clipsan.pipeline.core.stream import _operators
from clipsan.pipeline.scan.work import EmbedWork
from clipsan.stages.embed import EmbedConfig
from clipsan.stages.files import Unreachable
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.sources import ParquetSource, list_units
from tests.closed_form import Case
from tests.integration.conftest import part_bytes

pytestmark = pytest.mark.ray

CLUSTER = ClusterConfig(workers=2, alone_below_pairs=0)
BLOCK_BYTES = 4 * 2**20
STORE_BYTES = 48 * 2**20
"""What may lie between decoders and encoders in the test of back-pressure."""


@dataclass(frozen=True)
class Noted(Work):
    """Passes blocks of some bytes on; leaves a file for each that it decoded or encoded, and dies where it is told to."""

    folder: Path
    dies: str = ""
    """The note after which a process dies, once."""
    always: bool = False
    """Whether it dies each time."""
    encode_s: float = 0.0

    def do(self, piece: int, tools: None) -> Done:
        raise AssertionError("this pass is a stream")

    def open_reader(self) -> str:
        return "reader"

    def read(self, piece: int, tools: str) -> Iterator[tuple[int, int, np.ndarray]]:
        assert tools == "reader"
        for number in range(piece):
            yield piece, number, np.full(BLOCK_BYTES, number, np.uint8)
            self._note("decoded", piece, number)

    def open_encoder(self) -> str:
        return "encoder"

    def encode(self, block: tuple[int, int, np.ndarray], tools: str) -> tuple[pa.Table, pa.Table]:
        assert tools == "encoder"
        piece, number, values = block
        assert not values.flags.owndata
        time.sleep(self.encode_s)
        self._note("encoded", piece, number)
        return pa.table({"sum": [int(values[:: 2**20].sum())]}), pa.table({"bad": [f"{piece}-{number}"]})

    def _note(self, what: str, piece: int, number: int) -> None:
        name = f"{what}-{piece}-{number}"
        with (self.folder / name).open("a", encoding="ascii") as file:
            file.write(f"{os.getpid()} {time.monotonic()}\n")
        died = self.folder / "died"
        if name == self.dies and (self.always or not died.exists()):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def streamed(work: Noted, root: Path, pieces: list[int], encoders: int = 1) -> Pass:
    one = Pass(
        name="embed",
        cluster=CLUSTER,
        run=RunFolder(root),
        folder="parts",
        rejected="rejected",
        fingerprint="f",
        encoders=PoolConfig(workers=encoders),
    )
    done = one.do({blocks: blocks for blocks in pieces}, work)
    assert sorted(found.pairs for found in done) == sorted(2 * blocks for blocks in pieces)
    assert sum(found.errors for found in done) == sum(pieces)
    for blocks in pieces:
        sums = [4 * number for number in range(blocks)]
        assert read_part(one.home, blocks).column("sum").to_pylist() == sums
        named = [f"{blocks}-{number}" for number in range(blocks)]
        assert read_part(root / "rejected", blocks).column("bad").to_pylist() == named
    assert not (root / "work" / "blocks").exists() or not any((root / "work" / "blocks").iterdir())
    assert one.do({blocks: blocks for blocks in pieces}, work) == []
    return one


def processes(folder: Path, what: str) -> Counter[str]:
    lines = [line for path in folder.glob(f"{what}-*") for line in path.read_text(encoding="ascii").splitlines()]
    return Counter(line.split()[0] for line in lines)


@pytest.mark.parametrize("dies", ["", "encoded-3-1", "decoded-3-1"])
def test_halves_are_processes_of_their_own_and_a_lost_one_costs_nothing(
    ray_cluster: None, tmp_path: Path, dies: str
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    streamed(Noted(notes, dies), tmp_path / "run", [1, 2, 3, 5])
    assert (notes / "died").exists() == bool(dies)
    decoded, encoded = processes(notes, "decoded"), processes(notes, "encoded")
    assert not decoded.keys() & encoded.keys()
    assert sum(encoded.values()) >= 11


@pytest.mark.parametrize("dies", ["encoded-2-1", "decoded-2-1"])
def test_what_kills_every_process_ends_the_pass(ray_cluster: None, tmp_path: Path, dies: str) -> None:
    with pytest.raises(WorkerLostError, match="died"):
        streamed(Noted(tmp_path, dies, always=True), tmp_path / "run", [2])


def test_ray_data_takes_an_encoder_with_a_share_of_a_gpu(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it asks of operators with GPUs it asks when they are described, whether or not there is one."""
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    cluster = ClusterConfig(gpus_per_worker=0.5)
    described = _operators(ray.data, [(0, 1)], [ray.put(None)], cluster, PoolConfig())
    assert "MapBatches(_Encode)" in str(described)


@dataclass(frozen=True)
class Unsure(Noted):
    """Whose piece 3 does not answer after its first block: some times, or never."""

    failures: int = 0

    def read(self, piece: int, tools: str) -> Iterator[tuple[int, int, np.ndarray]]:
        blocks = super().read(piece, tools)
        yield next(blocks)
        if piece == 3 and len(list(self.folder.glob("failed-*"))) < self.failures:
            (self.folder / f"failed-{time.monotonic_ns()}").touch()
            raise Unreachable("shard 3: no such file")
        yield from blocks


def test_a_piece_that_does_not_answer_is_read_again_or_left_undone(ray_cluster: None, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    streamed(Unsure(notes, failures=2), tmp_path / "again", [1, 3])
    for path in notes.iterdir():
        path.unlink()
    one = Pass(
        name="embed",
        cluster=CLUSTER,
        run=RunFolder(tmp_path / "run"),
        folder="parts",
        rejected="rejected",
        fingerprint="f",
        encoders=PoolConfig(workers=1),
        leaves_undone=True,
    )
    done = one.do({3: 3, 1: 1}, Unsure(notes, failures=100))
    assert {(found.key, found.undone) for found in done if found.undone} == {(3, "shard 3: no such file")}
    assert [path.name for path in one.home.iterdir()] == ["part-00001.parquet"]
    with pytest.raises(Unreachable, match="shard 3"):
        replace(one, leaves_undone=False).do({3: 3}, Unsure(notes, failures=100))


def test_decoders_do_not_run_away_from_the_encoder(ray_cluster: None, tmp_path: Path) -> None:
    options = DataContext.get_current().execution_options
    before = options.resource_limits
    options.resource_limits = ExecutionResources.for_limits(object_store_memory=STORE_BYTES)
    notes = tmp_path / "notes"
    notes.mkdir()
    try:
        streamed(Noted(notes, encode_s=0.05), tmp_path / "run", list(range(8, 14)))
    finally:
        options.resource_limits = before
    events = [
        (float(line.split()[1]), 1 if path.name.startswith("decoded") else -1)
        for path in notes.iterdir()
        for line in path.read_text(encoding="ascii").splitlines()
    ]
    ahead = np.cumsum([step for _, step in sorted(events)])
    # what the store may hold, and what each decoder has in hand
    assert ahead.max() <= STORE_BYTES // BLOCK_BYTES + 3 * CLUSTER.worker_count()
    assert ahead[-1] == 0


def test_embeddings_of_the_stream_are_those_of_one_process(ray_cluster: None, backdoored: Case, tmp_path: Path) -> None:
    source = ParquetSource(path=str(backdoored.data / "*.parquet"), label="label", key="key", unit_rows=600)
    work = EmbedWork(source, ModelConfig(path=str(backdoored.checkpoint)), EmbedConfig(), "cpu")
    units = {unit.index: unit for unit in list_units(source)}
    made = []
    for name, encoders in (("together", None), ("apart", PoolConfig(workers=1))):
        one = Pass(
            name="embed",
            cluster=CLUSTER,
            run=RunFolder(tmp_path / name),
            folder="embeddings",
            rejected="rejected",
            fingerprint="f",
            loads_model=True,
            encoders=encoders,
        )
        assert sum(done.pairs for done in one.do(units, work)) == 1200
        made.append(part_bytes(tmp_path / name))
    assert made[0] == made[1]
    assert len(made[0]) == 2 * len(units)
