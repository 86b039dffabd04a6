"""How a scan divides its parts: by the data alone, every part once, no small remainder."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipsan.pipeline.core.parts import MIN_CHUNK_ROWS, Parts
from clipsan.pipeline.scan import work as scan_passes
from clipsan.pipeline.scan.work import GROUP_ROWS, mean_ranks, super_groups

sizes = st.lists(st.integers(0, 3 * MIN_CHUNK_ROWS), min_size=1, max_size=60)


def numbered(sizes: list[int]) -> dict[int, int]:
    return dict(enumerate(sizes))


@given(sizes, st.integers(0, 5), st.integers(0, 3))
def test_super_groups_hold_every_part_once(found: list[int], seed: int, permutation: int):
    groups = super_groups(numbered(found), seed, permutation)
    assert sorted(part for parts in groups for part in parts) == list(range(len(found)))
    assert all(parts == sorted(parts) for parts in groups)


def test_division_depends_on_the_data_alone():
    rows = dict.fromkeys(range(40), 10000)
    shuffled = {part: rows[part] for part in np.random.default_rng(0).permutation(40).tolist()}
    assert super_groups(shuffled, 3, 1) == super_groups(rows, 3, 1)


def test_every_seed_and_permutation_draws_its_own_groups():
    rows = dict.fromkeys(range(40), 10000)
    draws = [super_groups(rows, seed, permutation) for seed in (0, 1) for permutation in (0, 1, 2)]
    assert all(a != b for i, a in enumerate(draws) for b in draws[:i])
    # Not neighbours: a group of neighbouring shards would compare the pairs of one source with each other alone.
    assert any(np.diff(group).max() > 1 for group in draws[0])


@pytest.mark.parametrize("parts", [7, 8, 13, 14, 20, 27, 33])
def test_super_groups_are_full_and_bounded(parts: int):
    rows = dict.fromkeys(range(parts), 10_000)
    held = [10_000 * len(group) for group in super_groups(rows, 0, 0)]
    assert max(held) <= 1.5 * GROUP_ROWS + 10_000
    if len(held) > 1:
        assert min(held) >= GROUP_ROWS / 2


def test_a_small_data_set_is_one_group_and_one_chunk():
    rows = dict.fromkeys(range(9), 100)
    assert super_groups(rows, 5, 2) == [list(range(9))] == Parts(Path(), rows).chunks()


def test_ranks_are_averaged_row_by_row():
    first, second = pa.table({"dao": [0.1, 0.3]}), pa.table({"dao": [0.3, 0.9]})
    np.testing.assert_allclose(mean_ranks([first, second])["dao"], [0.2, 0.6])
    assert mean_ranks([]) == {}


def test_summaries_merge_detector_by_detector():
    class Join:
        def merge(self, left: str, right: str) -> str:
            return left + right

    assert scan_passes.merge_all([Join(), Join()], ["a", "b"], ["c", "d"]) == ["ac", "bd"]
