"""Cutting units finer: the same pairs in the same order, in pieces whose number depends on the data alone."""

import csv
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsan.stages.sources import (
    FolderSource,
    ParquetSource,
    SourceConfig,
    TableSource,
    WebDataset,
    list_pieces,
    list_units,
    read_unit,
)
from clipsan.stages.sources.common import LEAST_ROWS, PIECES, inside, rows_a_piece, thinned
from clipsan.stages.sources.parquet import GROUP_PIECES

ROWS = 700


def images(count: int, size: int = 10) -> list[bytes]:
    return [b"\xff\xd8\xff" + number.to_bytes(4, "big") * (size // 4) for number in range(count)]


def parquet(folder: Path) -> SourceConfig:
    table = pa.table({"image": images(ROWS), "caption": [f"caption {n}" for n in range(ROWS)]})
    pq.write_table(table, folder / "one-group.parquet")
    pq.write_table(table, folder / "small-groups.parquet", row_group_size=50)
    (folder / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    return ParquetSource(path=str(folder), unit_rows=300)


def tar(folder: Path) -> SourceConfig:
    with tarfile.open(folder / "large.tar", "w") as out:
        for number, image in enumerate(images(200, 50_000)):
            for suffix, data in ((".jpg", image), (".txt", f"caption {number}".encode())):
                info = tarfile.TarInfo(f"{number:05d}{suffix}")
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
    return WebDataset(path=str(folder), unit_bytes=6 * 2**20)


def table(folder: Path) -> SourceConfig:
    with (folder / "pairs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "caption"])
        for number, image in enumerate(images(ROWS)):
            (folder / f"{number}.jpg").write_bytes(image)
            rows.writerow([f"{number}.jpg", f"caption {number}"])
    return TableSource(path=str(folder / "pairs.csv"), image="filepath", unit_rows=ROWS)


def classes(folder: Path) -> SourceConfig:
    for name, count in (("cat", 300), ("dog", 20)):
        (folder / name).mkdir()
        for number, image in enumerate(images(count)):
            (folder / name / f"{number:03d}.jpg").write_bytes(image)
    return FolderSource(path=str(folder), template="a photo of a {}")


@pytest.mark.parametrize("made", [parquet, tar, table, classes])
def test_pieces_hold_the_pairs_of_their_units_in_order(made: Callable[[Path], SourceConfig], tmp_path: Path) -> None:
    source = made(tmp_path)
    units, pieces = list_units(source), list_pieces(source)
    assert len(pieces) > len(units)
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    owner = [
        unit.index
        for piece in pieces
        for unit in units
        if unit.path == piece.path and unit.shard == piece.shard and inside(unit, piece.start)
    ]
    assert owner == sorted(owner)
    assert len(owner) == len(pieces)
    whole = [(pair.uid, pair.caption, pair.image) for unit in units for pair in read_unit(source, unit)]
    cut = [[(pair.uid, pair.caption, pair.image) for pair in read_unit(source, piece)] for piece in pieces]
    assert [pair for part in cut for pair in part] == whole
    if not isinstance(source, WebDataset):
        assert max(map(len, cut)) <= 1.5 * LEAST_ROWS


def test_a_large_set_is_cut_into_whole_batches_and_a_larger_one_not_at_all(tmp_path: Path) -> None:
    assert rows_a_piece(5_000) == LEAST_ROWS
    assert rows_a_piece(1_000_000) == 2048
    source = parquet(tmp_path)
    (unit, *_) = list_units(source)
    many = [unit] * PIECES
    assert source.pieces(many) == many


def test_a_row_group_is_read_from_its_start_by_few_pieces(tmp_path: Path) -> None:
    count = 2 * GROUP_PIECES * LEAST_ROWS
    pq.write_table(pa.table({"image": [b"x"] * count, "caption": ["x"] * count}), tmp_path / "a.parquet")
    assert len(list_pieces(ParquetSource(path=str(tmp_path)))) == GROUP_PIECES


def test_cuts_are_thinned_to_a_bounded_number(tmp_path: Path) -> None:
    source = table(tmp_path)
    fine = TableSource(path=str(tmp_path / "pairs.csv"), image="filepath", unit_rows=1).list_units()
    found = thinned(list_units(source), fine)
    assert len(found) <= PIECES
    assert found[0].start == 0
    assert found[-1].stop == -1
