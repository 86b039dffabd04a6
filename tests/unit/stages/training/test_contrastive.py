"""The contrastive step: loss against float64 by hand, the clamp of the scale, and N workers against one."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from clipsan.stages.training.augment import AugmentConfig, augment
from clipsan.stages.training.contrastive import Contrastive, ContrastiveObjective
from clipsan.stages.training.objective import Setting, clip_loss
from clipsan.stages.training.optimise import OneCycle
from tests.unit.stages.repair.helpers import ROWS, batch_of, tiny_clip


def objective_of(
    rank: int = 0, world_size: int = 1, *, bf16: bool = False, augmented: AugmentConfig | None = None
) -> ContrastiveObjective:
    settings = Contrastive(lr=1e-3, schedule=OneCycle(), weight_decay=0.1, augment=augmented or AugmentConfig())
    setting = Setting(rank=rank, world_size=world_size, bf16=bf16)
    objective = settings.build(tiny_clip(), setting)
    assert objective.train() is objective
    return objective


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


def test_images_are_augmented_by_the_place_of_a_row_in_the_batch() -> None:
    settings = AugmentConfig(min_area=0.5, flip=True)
    objective, plain = objective_of(augmented=settings), objective_of()
    batch = batch_of(objective.clip)
    moved = augment(batch.images, batch.rows, batch.total, settings, batch.seed)
    assert objective(batch).item() == plain(replace(batch, images=moved)).item()
    assert objective(batch).item() != plain(batch).item()


def test_moments_and_epsilon_are_clips() -> None:
    (decaying, plain) = objective_of().optimizer().param_groups
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert (decaying["betas"], decaying["eps"], decaying["lr"]) == ((0.9, 0.98), 1e-6, 1e-3)


def test_the_logit_scale_is_clamped() -> None:
    objective = objective_of()
    for start, expected in ((9.0, math.log(100)), (-3.0, 0.0)):
        with torch.no_grad():
            objective.model.logit_scale.fill_(start)
        objective.after_step()
        assert objective.model.logit_scale.item() == pytest.approx(expected)


def test_training_fits_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipsan.stages.precision.has_bf16", lambda device: True)
    losses = []
    objective = objective_of()
    optimizer = objective.optimizer()
    for bf16 in (False, True):
        objective.setting = replace(objective.setting, bf16=bf16)
        for _ in range(40):
            optimizer.zero_grad(set_to_none=True)
            loss = objective(batch_of(objective.clip))
            loss.backward()
            optimizer.step()
            objective.after_step()
            losses.append(loss.item())
    assert losses[0] > 1.5
    assert losses[-1] < 0.2


def gradients_of_rank(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    rows = slice(rank * ROWS // world_size, (rank + 1) * ROWS // world_size)
    found = {}
    for name in ("wrapped", "bypassed"):
        objective = objective_of(rank, world_size)
        wrapped = DistributedDataParallel(objective)
        # calling the inner module is what a published defence does; its gradients never meet
        (wrapped if name == "wrapped" else objective)(batch_of(objective.clip, rows)).backward()
        found[name] = {name: p.grad.clone() for name, p in objective.named_parameters()}
    torch.save(found, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


def test_two_workers_compute_the_gradient_of_one(tmp_path: Path) -> None:
    objective = objective_of()
    objective(batch_of(objective.clip)).backward()
    expected = {name: p.grad for name, p in objective.named_parameters()}
    os.environ["OMP_NUM_THREADS"] = "1"
    multiprocessing.spawn(gradients_of_rank, (2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert expected.keys() == first["wrapped"].keys()
    for name, grad in expected.items():
        torch.testing.assert_close(first["wrapped"][name], grad, rtol=1e-4, atol=1e-6)
        assert torch.equal(first["wrapped"][name], second["wrapped"][name])
    # the comparison would notice ranks that are not synchronised
    assert not torch.allclose(first["bypassed"]["model.visual.proj"], second["bypassed"]["model.visual.proj"])
