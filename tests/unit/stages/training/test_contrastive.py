"""The contrastive step: loss against float64 by hand, schedules, groups, augmentation, and N workers against one."""

import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from clipsan.stages.model.checkpoints import build_model
from clipsan.stages.training.contrastive import (
    AugmentConfig,
    ContrastiveTask,
    CosineWarmup,
    OneCycle,
    adamw,
    augment,
    clip_loss,
    parameter_groups,
    train_step,
)

VIT = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 6, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}
ROWS = 8


def new_task() -> ContrastiveTask:
    torch.manual_seed(0)
    return ContrastiveTask(build_model(VIT), [0.5, 0.5, 0.5], [0.25, 0.25, 0.25])


def global_batch() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.integers(0, 256, (ROWS, 3, 16, 16), dtype=np.uint8))
    return images, torch.from_numpy(rng.integers(1, 50, (ROWS, 6)))


def test_loss_is_the_symmetric_cross_entropy_in_float64() -> None:
    rng = np.random.default_rng(0)
    image, text = (rng.standard_normal((5, 4)) for _ in range(2))
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    scale = 7.5
    expected = 0.0
    for i in range(5):
        row = [scale * image[i] @ text[j] for j in range(5)]
        column = [scale * image[j] @ text[i] for j in range(5)]
        expected += math.log(sum(map(math.exp, row))) - row[i]
        expected += math.log(sum(map(math.exp, column))) - column[i]
    found = clip_loss(0, 1)(torch.from_numpy(image), torch.from_numpy(text), torch.tensor(scale, dtype=torch.float64))
    assert found.item() == pytest.approx(expected / 10, rel=1e-12)


@pytest.mark.parametrize("steps", [10, 100, 157])
def test_one_cycle_is_torchs_step_for_step(steps: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for step in range(steps):
        expected = optimizer.param_groups[0]["lr"]
        assert OneCycle().rate(step, steps, 2e-3) == pytest.approx(expected, rel=1e-9, abs=1e-15)
        optimizer.step()
        if step + 1 < steps:
            theirs.step()


def test_cosine_rises_from_the_first_step_and_ends_near_zero() -> None:
    schedule = CosineWarmup(warmup_steps=4)
    rates = [schedule.rate(step, 12, 1.0) for step in range(12)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[8] == pytest.approx(0.5)  # half way through the fall
    assert rates[11] == pytest.approx((1 + math.cos(math.pi * 7 / 8)) / 2)
    assert all(a >= b for a, b in pairwise(rates[4:]))  # never rises again


def test_the_shortest_runs_have_a_schedule() -> None:
    for schedule in (OneCycle(), CosineWarmup(warmup_steps=0), CosineWarmup(warmup_steps=50)):
        for steps in (1, 2, 3):
            assert all(0 <= schedule.rate(step, steps, 1.0) <= 1 for step in range(steps))


def test_norms_biases_and_scale_do_not_decay() -> None:
    model = new_task()
    decay, keep = (group["params"] for group in parameter_groups(model, 0.1))
    assert len(decay) + len(keep) == len(list(model.parameters()))
    assert all(parameter.ndim >= 2 for parameter in decay)
    assert any(parameter is model.model.logit_scale for parameter in keep)
    assert [group["weight_decay"] for group in parameter_groups(model, 0.1)] == [0.1, 0.0]


def test_the_logit_scale_is_clamped() -> None:
    task = new_task()
    for start, expected in ((9.0, math.log(100)), (-3.0, 0.0)):
        with torch.no_grad():
            task.model.logit_scale.fill_(start)
        train_step(task, clip_loss(0, 1), adamw(task, 1e-9, 0.0), *global_batch(), lr=1e-9, bf16=False)
        assert task.model.logit_scale.item() == pytest.approx(expected)


def test_training_fits_a_batch() -> None:
    task = new_task()
    optimizer = adamw(task, 3e-3, 0.0)
    losses = [
        train_step(task, clip_loss(0, 1), optimizer, *global_batch(), lr=3e-3, bf16=bf16).item()
        for bf16 in (False, True)
        for _ in range(40)
    ]
    assert losses[0] > 1.5
    assert losses[-1] < 0.2


def test_no_augmentation_leaves_the_pixels_alone() -> None:
    images, _ = global_batch()
    assert augment(images, slice(0, ROWS), ROWS, AugmentConfig(), (0, 0)) is images


def test_a_flip_mirrors_half_of_the_images_exactly() -> None:
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (200, 3, 16, 16), dtype=np.uint8))
    found = augment(images, slice(0, 200), 200, AugmentConfig(flip=True), (0, 3))
    mirrored = [bool((new == old.flip(-1)).all()) for new, old in zip(found, images, strict=True)]
    same = [bool((new == old).all()) for new, old in zip(found, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 70 <= sum(mirrored) <= 130


def test_crops_stay_inside_and_keep_a_constant_image_constant() -> None:
    flat = torch.full((50, 3, 16, 16), 77, dtype=torch.uint8)
    assert (augment(flat, slice(0, 50), 50, AugmentConfig(min_area=0.3), (0,)) == 77).all()
    ramp = (torch.arange(16) * 10).to(torch.uint8).expand(50, 3, 16, 16).contiguous()
    found = augment(ramp, slice(0, 50), 50, AugmentConfig(min_area=0.3), (0,)).float()
    widths = found[:, 0, 0, -1] - found[:, 0, 0, 0]  # what the crop sees of the ramp's 150 levels
    assert widths.min() >= 150 * math.sqrt(0.3) - 15
    assert widths.max() <= 150
    assert widths.std() > 5


def test_augmentation_of_a_share_is_the_share_of_the_augmentation() -> None:
    images, _ = global_batch()
    settings = AugmentConfig(min_area=0.5, flip=True)
    whole = augment(images, slice(0, ROWS), ROWS, settings, (4, 2))
    half = augment(images[4:], slice(4, 8), ROWS, settings, (4, 2))
    assert torch.equal(whole[4:], half)
    assert not torch.equal(whole, augment(images, slice(0, ROWS), ROWS, settings, (4, 3)))


def gradients_of_rank(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    images, tokens = global_batch()
    rows = slice(rank * ROWS // world_size, (rank + 1) * ROWS // world_size)
    found = {}
    for name in ("wrapped", "bypassed"):
        task = new_task()
        wrapped = DistributedDataParallel(task)
        # calling the inner module is what a published defence does; its gradients never meet
        features = wrapped(images[rows], tokens[rows]) if name == "wrapped" else task(images[rows], tokens[rows])
        clip_loss(rank, world_size)(*features).backward()
        found[name] = {name: p.grad.clone() for name, p in task.named_parameters()}
    torch.save(found, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


def test_two_workers_compute_the_gradient_of_one(tmp_path: Path) -> None:
    task = new_task()
    clip_loss(0, 1)(*task(*global_batch())).backward()
    expected = {name: p.grad for name, p in task.named_parameters()}
    os.environ["OMP_NUM_THREADS"] = "1"
    multiprocessing.spawn(gradients_of_rank, (2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert expected.keys() == first["wrapped"].keys()
    for name, grad in expected.items():
        torch.testing.assert_close(first["wrapped"][name], grad, rtol=1e-4, atol=1e-6)
        assert torch.equal(first["wrapped"][name], second["wrapped"][name])
    # the comparison would notice ranks that are not synchronised
    assert not torch.allclose(first["bypassed"]["model.visual.proj"], second["bypassed"]["model.visual.proj"])
