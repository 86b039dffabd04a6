"""A table of parts is divided by the data alone: every part once, no small remainder."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from clipsan.pipeline.core.commit import write_part
from clipsan.pipeline.core.parts import MAX_CHUNKS, MIN_CHUNK_ROWS, Parts, has_any

sizes = st.lists(st.integers(0, 3 * MIN_CHUNK_ROWS), min_size=1, max_size=60)


def chunks(rows: dict[int, int]) -> list[list[int]]:
    return Parts(Path(), rows).chunks()


@given(sizes)
def test_chunks_are_neighbours_and_hold_every_part_once(found: list[int]):
    assert [part for parts in chunks(dict(enumerate(found))) for part in parts] == list(range(len(found)))


@given(sizes)
def test_no_chunk_is_small_beside_another(found: list[int]):
    rows = dict(enumerate(found))
    held = [sum(rows[part] for part in parts) for parts in chunks(rows)]
    if len(held) > 1:
        assert min(held) >= MIN_CHUNK_ROWS / 2


def test_the_number_of_chunks_is_bounded():
    rows = dict.fromkeys(range(5000), 1000)
    assert MAX_CHUNKS / 2 < len(chunks(rows)) <= MAX_CHUNKS


def test_division_depends_on_the_data_alone():
    rows = dict.fromkeys(range(40), 10000)
    shuffled = {part: rows[part] for part in np.random.default_rng(0).permutation(40).tolist()}
    assert chunks(shuffled) == chunks(rows)


def test_parts_are_read_in_the_order_of_the_data_set(tmp_path: Path):
    for number, values in ((10, [4.0]), (2, [1.0, 2.0]), (3, [])):
        write_part(tmp_path, number, pa.table({"score": pa.array(values, pa.float32())}), "f")
    parts = Parts.of(tmp_path)
    assert (parts.numbers, parts.total) == ([2, 3, 10], 3)
    assert parts.column("score").tolist() == [1.0, 2.0, 4.0]
    assert Parts(tmp_path, {}).column("score").tolist() == []


def test_some_columns_are_read_in_the_order_of_the_part(tmp_path: Path):
    names = ["uid", "layer.b", "image", "layer.a"]
    write_part(tmp_path, 0, pa.table({name: [1, 2] for name in names}), "f")
    parts = Parts.of(tmp_path)
    assert parts.read(0).column_names == names
    assert parts.read(0, frozenset({"layer.*", "uid"})).column_names == ["uid", "layer.b", "layer.a"]
    assert parts.read(0, ["image", "uid"]).column_names == ["image", "uid"]


def test_lists_are_searched_without_an_object_a_row():
    lists = [["a"], [], ["b", "a"], ["c"], ["b", "b"]]
    column = pa.chunked_array([pa.array(lists[:2], pa.list_(pa.string())), pa.array(lists[2:], pa.list_(pa.string()))])
    assert has_any(column, frozenset({"b", "d"})).tolist() == [False, False, True, False, True]
    assert not has_any(column.slice(1, 1), frozenset({"a"})).any()
    assert has_any(column.slice(2), frozenset({"a"})).tolist() == [True, False, False]
    assert not has_any(column, frozenset()).any()
