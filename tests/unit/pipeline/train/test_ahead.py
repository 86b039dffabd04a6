"""Rows that are drawn ahead: the same ones in the same order, no further ahead than told, and nothing left running."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from clipsan.pipeline.repair.held import table_of
from clipsan.pipeline.train.ahead import DEPTH, ahead, in_thread
from clipsan.pipeline.train.feed import CachedFeed, Captions, Rows, Share
from clipsan.pipeline.train.loop import Pace, train
from clipsan.pipeline.train.task import Task
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.repair.finetune import FineTune
from clipsan.stages.training.batch import Batch
from clipsan.stages.training.optimise import CosineWarmup
from tests.conftest import caption


def numbers(drawn: list[int], fails_at: int | None = None) -> Iterator[int]:
    for number in range(10):
        if number == fails_at:
            raise RuntimeError("the data changed")
        drawn.append(number)
        yield number


def test_items_come_in_order_and_no_more_than_a_few_are_on_their_way() -> None:
    drawn: list[int] = []
    for expected, found in enumerate(in_thread(numbers(drawn), lambda n: (n, threading.current_thread().name))):
        assert found[0] == expected
        assert found[1].startswith("feed")
        assert len(drawn) <= expected + 1 + DEPTH
    assert drawn == list(range(10))


def test_an_error_is_raised_in_its_place() -> None:
    running = in_thread(numbers([], fails_at=5), lambda n: n)
    assert [next(running) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="the data changed"):
        next(running)


def test_who_stops_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    drawn: list[int] = []
    running = in_thread(numbers(drawn), lambda n: n)
    assert next(running) == 0
    running.close()
    assert threading.active_count() == before
    assert len(drawn) <= 1 + DEPTH


def test_on_a_cpu_rows_are_yielded_as_they_are_drawn() -> None:
    own = torch.arange(2)
    rows = Rows(own[:, None], own[:, None], Captions.of(["a", "b"]), own, own, own)
    (found,) = ahead(iter([rows]), torch.device("cpu"))
    assert found is rows


def test_the_weights_are_those_of_a_plain_loop_to_the_bit(tiny_checkpoint: Path) -> None:
    """The loop, its feed and what is drawn ahead change nothing of what is learned."""
    method = FineTune(lr=1e-3, schedule=CosineWarmup(warmup_steps=2), batch_size=8)
    task = Task(model=ModelConfig(path=str(tiny_checkpoint)), method=method, bf16=False, seed=3)
    device, share = torch.device("cpu"), Share(0, 1, 8)
    course = task.begin(device, share)
    rng = np.random.default_rng(0)
    columns = {
        "order": rng.permutation(20),
        "image": rng.integers(0, 256, (20, 3, 32, 32), np.uint8),
        "tokens": course.clip.tokenize([caption(i) for i in range(20)]).to(torch.int32).numpy(),
        "caption": np.array([caption(i) for i in range(20)], object),
        "label": np.full(20, -1),
        "accused": np.full(20, -1),
        "role": np.zeros(20, np.uint8),
    }
    pace = Pace(total_steps=5, batch_size=8, pairs=20, seed=3)
    for _ in train(course, CachedFeed(table_of(columns), share, 3), pace, share, device, points={5}):
        pass

    objective = task.objective().train()
    optimizer = objective.optimizer()
    placed = np.argsort(columns["order"])
    for step in range(5):
        epoch, number = divmod(step, 2)
        rows = placed[np.random.default_rng([3, epoch]).permutation(20)[8 * number : 8 * number + 8]]
        images = torch.from_numpy(columns["image"][rows])
        tokens = objective.clip.shorten(torch.from_numpy(columns["tokens"][rows])).long()
        nothing = torch.full((8,), -1)
        said, roles = columns["caption"][rows].tolist(), torch.zeros(8, dtype=torch.uint8)
        for group in optimizer.param_groups:
            group["lr"] = objective.rate(step, 5)
        optimizer.zero_grad()
        objective(Batch(images, tokens, said, nothing, nothing, roles, slice(0, 8), 8, (3, step))).backward()
        optimizer.step()
        objective.after_step()
    for name, value in objective.state_dict().items():
        assert torch.equal(value, course.state()["weights"][name]), name
