"""Two processes compute the loss and the gradient that one would on the same global batch, for every method."""

import os
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from clipsan.stages.repair.cleanclip import CleanClip, CleanClipSupervised
from clipsan.stages.repair.eftclip import EftClip
from clipsan.stages.repair.finetune import FineTune
from clipsan.stages.repair.par import Par
from clipsan.stages.repair.rvpt import Rvpt
from clipsan.stages.repair.unlearn import Unlearn
from clipsan.stages.training.objective import Objective, Setting
from tests.unit.stages.repair.helpers import CLASSES, ROWS, SIGLIP, batch_of, disturb, tiny_clip

HALF = ROWS // 2
# of the image tower's distance to its frozen copy, see test_par_decides_by_the_global_batch
TAU = 0.235

METHODS = {
    "finetune": FineTune(),
    "cleanclip": CleanClip(),
    "supervised": CleanClipSupervised(),
    "zero_shot": CleanClipSupervised(head="zero_shot"),
    "par": Par(tau=TAU),
    "par_auto": Par(tau="auto", cache_text=True),
    "rvpt": Rvpt(first_block=1, tokens=4),
    "eftclip": EftClip(margin=0.5),
    "unlearn": Unlearn(floor=1.3),
    "siglip_finetune": FineTune(),
    "siglip_cleanclip": CleanClip(),
    "siglip_zero_shot": CleanClipSupervised(head="zero_shot"),
    "siglip_par": Par(tau="auto"),
    "siglip_eftclip": EftClip(margin=0.5),
    "siglip_unlearn": Unlearn(floor=1.3),
}


def objective_of(name: str, rank: int, world_size: int) -> Objective:
    clip = tiny_clip(config=SIGLIP if name.startswith("siglip") else None)
    objective = METHODS[name].build(clip, Setting(classes=CLASSES, rank=rank, world_size=world_size)).train()
    disturb(
        clip.model.visual if name != "rvpt" else objective.prompts, 0.3
    )  # on the way already, so that all terms count
    return objective


def gradients_of_rank(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    found = {}
    for name in METHODS:
        objective = objective_of(name, rank, world_size)
        wrapped = DistributedDataParallel(objective)
        loss = wrapped(batch_of(objective.clip, slice(rank * HALF, (rank + 1) * HALF)))
        loss.backward()
        found[name] = (loss.detach(), {key: p.grad for key, p in objective.trainable().items()})
    torch.save(found, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    os.environ["OMP_NUM_THREADS"] = "1"
    multiprocessing.spawn(gradients_of_rank, (2, str(folder)), nprocs=2)
    return [torch.load(Path(folder) / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", list(METHODS))
def test_two_ranks_compute_the_loss_and_gradient_of_one(name, ranks) -> None:
    objective = objective_of(name, 0, 1)
    loss = objective(batch_of(objective.clip))
    loss.backward()
    (first_loss, first), (second_loss, second) = (rank[name] for rank in ranks)
    assert first_loss != second_loss
    assert ((first_loss + second_loss) / 2).item() == pytest.approx(loss.item(), abs=1e-5)
    expected = objective.trainable()
    assert first.keys() == expected.keys()
    assert max(p.grad.abs().max() for p in expected.values()) > 1e-3
    for key, parameter in expected.items():
        assert parameter.grad is not None, key
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], parameter.grad, rtol=1e-3, atol=1e-5)


def test_par_decides_by_the_global_batch() -> None:
    objective = objective_of("par", 0, 1)

    def distance(rows: slice) -> float:
        pixels = objective._augmented(batch_of(objective.clip, rows))
        with torch.no_grad():
            now, old = objective.image_features(pixels), objective.image_features(pixels, objective._frozen[0])
        return (now - old).square().sum(1).mean().item()

    # one half alone would be decided otherwise, so a decision by rank would fail the comparison above
    halves = [distance(slice(0, HALF)), distance(slice(HALF, ROWS))]
    assert min(halves) < TAU < max(halves)
