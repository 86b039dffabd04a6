"""Which rows a worker gets: the same global batches whatever the number of workers, with a second set beside the first."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from clipsan.pipeline.train.feed import Beside, CachedFeed, Captions, Rows, Share, StreamFeed, Table

SEED = 5


class Shard:
    """A Ray data shard of numbered rows; batches come in the order given."""

    def __init__(self, numbers: range, role: int, parts: int = 3) -> None:
        self._numbers = np.array(numbers)
        self._role = role
        self._parts = parts

    def iter_batches(self, **how: Any) -> Iterator[dict[str, np.ndarray]]:
        size = how["batch_size"] if "local_shuffle_seed" in how else -(-len(self._numbers) // self._parts)
        for start in range(0, len(self._numbers), size):
            own = self._numbers[start : start + size]
            yield {
                "order": (own * 7919) % 1009,
                "image": np.broadcast_to(own[:, None, None, None], (len(own), 3, 2, 2)).astype(np.uint8),
                "tokens": np.stack([own, own], 1).astype(np.int32),
                "caption": np.array([f"row {i}" for i in own], object),
                "label": own.astype(np.int64),
                "accused": own.astype(np.int64),
                "role": np.full(len(own), self._role, np.uint8),
            }


def table(count: int, first: int = 0, role: int = 0, parts: int = 3) -> Table:
    return Table(Shard(range(first, first + count), role, parts), count)


def consistent(rows: Rows) -> list[int]:
    """The numbers of the rows, after a look that all columns tell of the same row."""
    numbers = rows.labels.tolist()
    assert list(rows.captions) == [f"row {i}" for i in numbers]
    assert rows.tokens[:, 0].tolist() == rows.accused.tolist() == numbers
    assert rows.images[:, 0, 0, 0].tolist() == numbers
    return numbers


def test_a_table_stands_in_the_order_of_its_hashes() -> None:
    expected = sorted(range(20), key=lambda i: (i * 7919) % 1009)
    assert consistent(table(20).take(np.arange(20))) == expected
    assert consistent(table(20, parts=1).take(np.arange(20))) == expected


def test_a_changed_set_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="found 21 usable pairs, training reads 20"):
        Table(Shard(range(20), 0), 21)


@pytest.mark.parametrize("besides", [0, 3])
def test_a_global_batch_does_not_depend_on_the_number_of_workers(besides: int) -> None:
    def batches(workers: int) -> list[list[int]]:
        second = Beside(table(7, 100, 1), SEED) if besides else None
        feeds = [CachedFeed(table(40), Share(rank, workers, 8), SEED, second, besides) for rank in range(workers)]
        shares = [[consistent(rows) for rows in feed.epoch(2, 5, 10)] for feed in feeds]
        return [[number for part in parts for number in part] for parts in zip(*shares, strict=True)]

    alone = batches(1)
    assert batches(2) == alone
    assert batches(4) == alone
    for batch in alone:
        assert sum(number >= 100 for number in batch) == besides
    main = [number for batch in alone for number in batch if number < 100]
    assert len(set(main)) == len(main)


def test_epochs_are_drawn_anew_and_a_plain_epoch_is_the_seeded_permutation() -> None:
    feed = CachedFeed(table(20), Share(0, 1, 4), SEED)
    first, second = ([n for rows in feed.epoch(epoch, 5, 5 * epoch) for n in consistent(rows)] for epoch in (0, 1))
    order = sorted(range(20), key=lambda i: (i * 7919) % 1009)
    draw = np.random.default_rng([SEED, 0]).permutation(20)
    assert first == [order[i] for i in draw]
    assert sorted(second) == sorted(first)
    assert second != first


def test_the_second_set_goes_round_whole_before_a_row_comes_again() -> None:
    beside = Beside(table(7, 100), SEED)
    seen = [int(place) for step in range(7) for place in beside.places(step, 3)]
    for turn in range(3):
        assert sorted(seen[7 * turn : 7 * turn + 7]) == list(range(7))
    assert seen[:7] != seen[7:14]
    # a step's rows are known without those before: a resumed training goes on with the same ones
    assert seen[12:15] == beside.places(4, 3).tolist()


def test_a_stream_takes_as_many_rows_from_the_second_set_on_each_worker() -> None:
    beside = Beside(table(7, 100, 1), SEED)
    shares = []
    for rank in range(2):
        feed = StreamFeed(Shard(range(rank * 20, rank * 20 + 20), 0), Share(rank, 2, 8), SEED, 0, beside, 4)
        shares.append(list(feed.epoch(0, 3, 0)))
    for step, (left, right) in enumerate(zip(*shares, strict=True)):
        both = consistent(left) + consistent(right)
        assert len(left) == len(right) == 4
        besides = [number for number in both if number >= 100]
        assert besides == consistent(beside.take(beside.places(step, 4)))
        assert torch.cat([left.roles, right.roles]).tolist() == [int(number >= 100) for number in both]


def test_a_stream_that_ends_too_soon_is_an_error() -> None:
    feed = StreamFeed(Shard(range(8), 0), Share(0, 1, 4), SEED, 0)
    with pytest.raises(RuntimeError, match="ended before the last epoch"):
        list(feed.epoch(0, 3, 0))


def test_captions_are_strings_where_they_are_read() -> None:
    captions = Captions.joined([Captions.of(["a", "é"]), Captions.of(np.array(["c"], object))])
    assert list(captions.take(np.array([2, 0, 2]))) == ["c", "a", "c"]
    assert (captions[1], captions[-1], list(captions[:2]), len(captions)) == ("é", "c", ["a", "é"], 3)
