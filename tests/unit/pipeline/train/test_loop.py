"""The loop: measured where it is asked to be, gone on with in the middle of an epoch, stopped when it diverges."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from clipsan.pipeline.train.feed import Captions, Rows, Share
from clipsan.pipeline.train.loop import Pace, Point, train
from clipsan.stages.training.batch import Batch

PACE = Pace(total_steps=7, batch_size=2, accumulate=2, pairs=13, seed=9)
"""Three steps an epoch, the last of three epochs cut short."""


class Numbered:
    """Rows that tell epoch and place of their batch in all of the training."""

    def epoch(self, epoch: int, steps: int, first: int) -> Iterator[Rows]:
        for number in range(first, first + steps):
            own = torch.tensor([epoch, number])
            yield Rows(own[:, None, None, None], own[:, None], Captions.of(["", ""]), own, own, own)


class Recorder:
    """Learns nothing, and keeps what it was given; its loss is the number of the step."""

    def __init__(self, diverges_at: int | None = None) -> None:
        self.seen: list[tuple[int, list[list[int]], list[tuple[int, ...]]]] = []
        self._diverges_at = diverges_at

    def step(self, batches: Sequence[Batch], step: int, steps: int) -> tuple[torch.Tensor, float]:
        assert steps == PACE.total_steps
        self.seen.append((step, [batch.labels.tolist() for batch in batches], [batch.seed for batch in batches]))
        return torch.tensor(float("nan") if step == self._diverges_at else float(step)), 0.1 * step

    def shorten(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens


def points(trained: Recorder, at: set[int], done: int = 0, told: list | None = None) -> list[Point]:
    tell = None if told is None else lambda step, loss: told.append((step, loss.item()))
    share, device = Share(0, 1, PACE.batch_size), torch.device("cpu")
    return list(train(trained, Numbered(), PACE, share, device, points=at, done=done, tell=tell))


def test_a_pace_by_hand() -> None:
    assert (PACE.steps, PACE.epochs) == (3, 3)
    assert [PACE.steps_of(epoch) for epoch in range(3)] == [3, 3, 1]
    assert [PACE.steps_after(epochs) for epochs in range(4)] == [0, 3, 6, 7]
    beside = Pace(total_steps=4, batch_size=8, beside_rows=2, accumulate=2, pairs=66, seed=0)
    assert beside.steps == 66 // 12


def test_a_measurement_is_the_mean_of_the_steps_since_the_last() -> None:
    told: list[tuple[int, float]] = []
    found = points(Recorder(), {2, 6, 7}, told=told)
    assert [(point.step, point.loss, point.lr) for point in found] == [
        (2, 0.5, pytest.approx(0.1)),
        (6, 3.5, pytest.approx(0.5)),
        (7, 6.0, pytest.approx(0.6)),
    ]
    assert told == [(step + 1, float(step)) for step in range(7)]


def test_batches_are_numbered_through_all_epochs() -> None:
    trained = Recorder()
    points(trained, {7})
    for step, labels, seeds in trained.seen:
        assert labels == [[step // 3, 2 * step], [step // 3, 2 * step + 1]]
        assert seeds == [(9, 2 * step), (9, 2 * step + 1)]


@pytest.mark.parametrize("done", [1, 3, 5, 6])
def test_it_goes_on_in_the_middle_of_an_epoch_as_if_it_had_never_stopped(done: int) -> None:
    whole, rest = Recorder(), Recorder()
    points(whole, {7})
    (last,) = points(rest, {7}, done=done)
    assert rest.seen == whole.seen[done:]
    assert last.loss == pytest.approx(np.mean(range(done, 7)))


def test_a_loss_that_is_no_number_ends_it() -> None:
    with pytest.raises(RuntimeError, match="the loss is nan at step 6: training diverged; lower lr"):
        points(Recorder(diverges_at=4), {3, 6, 7})
