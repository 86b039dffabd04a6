"""Both halves of a stream without Ray: what travels between them, and what is put together from blocks."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipsan.pipeline.core.commit import part_path
from clipsan.pipeline.core.stream import Commit, _Block, _packed, _unpacked, _whole_pieces
from clipsan.pipeline.scan.work import EmbedWork
from clipsan.stages.embed import BLOCK_ROWS, EmbedConfig
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.sources import ParquetSource, list_units
from tests.conftest import picture

PAIRS = BLOCK_ROWS + 40


def test_a_piece_of_two_blocks_has_the_bytes_of_one_that_was_made_whole(tiny_checkpoint: Path, tmp_path: Path) -> None:
    images = [picture(seed) for seed in range(40)]
    rows = range(PAIRS)
    table = {
        "image": [b"no image" if row == 7 else images[row % 40] for row in rows],
        "caption": [f"{row % 9}" for row in rows],
    }
    pq.write_table(pa.table(table), tmp_path / "pairs.parquet")
    source = ParquetSource(path=str(tmp_path / "pairs.parquet"))
    (unit,) = list_units(source)
    work = EmbedWork(source, ModelConfig(path=str(tiny_checkpoint)), EmbedConfig(), "cpu")
    commit = Commit(tmp_path / "parts", tmp_path / "rejected", tmp_path / "blocks", "f")

    done = work.do(unit, work.open())
    assert done.rejected is not None
    commit.piece(0, done.parts[0], done.rejected)

    encoder = work.open_encoder()
    blocks = list(work.read(unit, work.open_reader()))
    assert [len(block.pixels) for block in blocks] == [BLOCK_ROWS, PAIRS - BLOCK_ROWS - 1]
    assert [len(block.tokens) for block in blocks] == [9, 9]
    for number, block in enumerate(blocks):
        ((known, same),) = _unpacked(_packed(_Block(1, number, is_last=number == 1), block))
        assert known == _Block(1, number, is_last=number == 1)
        np.testing.assert_array_equal(same.pixels, block.pixels)
        commit.block(1, number, *work.encode(same, encoder))
    commit.joined(1, 2)

    for folder in ("parts", "rejected"):
        whole, joined = (part_path(tmp_path / folder, key).read_bytes() for key in (0, 1))
        assert whole == joined
    assert not any((tmp_path / "blocks").iterdir())


def test_what_is_large_travels_beside_the_rest_and_is_not_copied() -> None:
    values = np.arange(2**20, dtype=np.uint8)
    table = _packed(_Block(0, 0, is_last=True), {"small": [1], "large": values})
    assert table.column_names == ["head", "large-0"]
    assert table.column("large-0").chunk(0).buffers()[2].address == values.ctypes.data
    assert len(table.column("head")[0].as_py()) < 1000


def test_a_piece_is_whole_when_each_of_its_blocks_is_there_once() -> None:

    blocks = [
        _Block(5, 1, is_last=True, pairs=2),
        _Block(6, 0, is_last=True, pairs=3),
        _Block(5, 1, is_last=True, pairs=2),
        _Block(6, 0, is_last=True, pairs=3),
        _Block(5, 0, is_last=False, pairs=4),
    ]
    found = list(_whole_pieces(iter([{"record": pickle.dumps(block)} for block in blocks])))
    assert [(key, sum(block.pairs for block in own)) for key, own in found] == [(6, 3), (5, 6)]
