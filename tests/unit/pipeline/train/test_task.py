"""A step of a training: accumulated gradients are the mean over batches, with any number of workers; a state goes on as it was."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from clipsan.pipeline.train.feed import Share
from clipsan.pipeline.train.task import Course, Task
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.repair.finetune import FineTune
from clipsan.stages.training.batch import Batch
from clipsan.stages.training.optimise import CosineWarmup
from tests.conftest import caption

ROWS, STEPS = 8, 6


def task(checkpoint: Path) -> Task:
    # SGD-like steps would be easier to compare, but it is AdamW that is shipped; a high rate makes differences visible
    method = FineTune(lr=1e-3, schedule=CosineWarmup(warmup_steps=2), batch_size=ROWS)
    return Task(model=ModelConfig(path=str(checkpoint)), method=method, bf16=False, seed=0)


def batch(course: Course, number: int, share: Share) -> Batch:
    rng = np.random.default_rng(number)
    images = torch.from_numpy(rng.integers(0, 256, (ROWS, 3, 32, 32), np.uint8))
    captions = [caption(int(i)) for i in rng.integers(0, 100, ROWS)]
    nothing = torch.full((ROWS,), -1)
    own = share.rows
    return Batch(
        images=images[own],
        tokens=course.clip.tokenize(captions)[own],
        captions=captions[own],
        labels=nothing[own],
        accused=nothing[own],
        roles=torch.zeros(ROWS, dtype=torch.uint8)[own],
        rows=own,
        total=ROWS,
        seed=(0, number),
    )


def weights(course: Course) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in course.clip.model.state_dict().items()}


def alone(checkpoint: Path) -> tuple[Course, Share]:
    share = Share(0, 1, ROWS)
    return task(checkpoint).begin(torch.device("cpu"), share), share


def test_a_step_takes_the_mean_gradient_of_its_batches(tiny_checkpoint: Path) -> None:
    course, share = alone(tiny_checkpoint)
    batches = [batch(course, number, share) for number in range(3)]
    objective = task(tiny_checkpoint).objective().train()
    optimizer = objective.optimizer()
    rate = objective.rate(0, STEPS)
    for group in optimizer.param_groups:
        group["lr"] = rate
    losses = torch.stack([objective(some) for some in batches])
    losses.mean().backward()
    optimizer.step()
    objective.after_step()
    loss, used = course.step(batches, 0, STEPS)
    assert used == rate
    assert loss.item() == pytest.approx(losses.mean().item(), rel=1e-5)
    for name, value in objective.model.state_dict().items():
        torch.testing.assert_close(course.clip.model.state_dict()[name], value, rtol=0, atol=2e-5)


def test_a_restored_state_goes_on_to_the_same_bits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    course, share = alone(tiny_checkpoint)
    for step in range(2):
        course.step([batch(course, step, share)], step, STEPS)
    torch.save(course.state(), tmp_path / "state.pt")
    course.step([batch(course, 2, share)], 2, STEPS)
    other, _ = alone(tiny_checkpoint)
    other.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    other.step([batch(other, 2, share)], 2, STEPS)
    for name, value in weights(course).items():
        assert torch.equal(weights(other)[name], value), name


def one_of_two(rank: int, checkpoint: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    share = Share(rank, 2, ROWS)
    course = task(Path(checkpoint)).begin(torch.device("cpu"), share)
    course.step([batch(course, number, share) for number in range(2)], 0, STEPS)
    grads = {name: p.grad for name, p in course.clip.model.named_parameters() if p.grad is not None}
    torch.save(grads, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


def test_two_workers_accumulate_the_gradient_of_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    course, share = alone(tiny_checkpoint)
    course.step([batch(course, number, share) for number in range(2)], 0, STEPS)
    expected = {name: p.grad for name, p in course.clip.model.named_parameters() if p.grad is not None}
    os.environ["OMP_NUM_THREADS"] = "1"
    multiprocessing.spawn(one_of_two, (str(tiny_checkpoint), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert expected.keys() == first.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(first[name], grad, rtol=1e-4, atol=1e-6)
        assert torch.equal(first[name], second[name])
