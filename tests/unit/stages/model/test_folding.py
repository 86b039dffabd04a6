"""Folding changes no output but by rounding, and leaves alone what it would change."""

import copy

import pytest
import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipsan.stages.model.folding import fold_batch_norm


def trained(tower: nn.Module) -> nn.Module:
    """Give every batch normalisation statistics and weights of its own, in float64."""
    generator = torch.Generator().manual_seed(0)
    for module in tower.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(0.5, 2, generator=generator)
                module.bias.normal_(generator=generator)
    return tower.eval().double()


def left(tower: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in tower.modules())


def open_clip_resnet() -> nn.Module:
    return ModifiedResNet([1, 1, 1, 1], output_dim=8, heads=2, image_size=64, width=8)


@pytest.mark.parametrize(
    ("make", "folded", "kept"),
    [
        (open_clip_resnet, 19, 0),
        (lambda: timm.create_model("resnet10t", pretrained=False), 14, 0),
        (lambda: timm.create_model("efficientnet_lite0", pretrained=False), 49, 0),
        (lambda: timm.create_model("mobileone_s0", pretrained=False), 191, 35),
        (lambda: timm.create_model("test_vit", pretrained=False), 0, 0),
    ],
    ids=["open_clip ResNet", "resnet10t", "activations within", "branches", "no normalisation"],
)
def test_the_outputs_stay_the_same(make, folded: int, kept: int) -> None:
    tower = trained(make())
    images = torch.rand(2, 3, 64 if left(tower) else 160, 64 if left(tower) else 160, dtype=torch.float64)
    with torch.no_grad():
        before = tower(images)
        assert fold_batch_norm(tower) == folded
        assert left(tower) == kept
        torch.testing.assert_close(tower(images), before, rtol=1e-10, atol=1e-10 * before.abs().max().item())


class _Small(nn.Module):
    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class _ReadTwice(_Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.norm(x) + x


class _CalledTwice(_Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(self.norm(self.conv(x))))


class _Branching(_Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) if x.mean() > 0 else x


class _Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, padding=self.padding)


@pytest.mark.parametrize(
    "tower",
    [
        _ReadTwice(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)),
        _CalledTwice(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)),
        _Branching(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)),
        _Small(_Standardised(3, 3, 3, padding=1), nn.BatchNorm2d(3)),
        _Small(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)),
    ],
    ids=["read by another", "called twice", "not to be followed", "weights made anew", "of the batch itself"],
)
def test_what_it_would_change_is_left(tower: nn.Module) -> None:
    if tower.norm.running_mean is not None:
        trained(tower)
    tower = tower.eval().double()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    before = copy.deepcopy(tower)(images)
    assert fold_batch_norm(tower) == 0
    assert torch.equal(tower(images), before)


def test_one_that_can_be_folded_is() -> None:
    tower = trained(_Small(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)))
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    norm = tower.norm
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    by_hand = nn.functional.conv2d(images, tower.conv.weight, padding=1) - norm.running_mean[:, None, None]
    by_hand = by_hand * scale[:, None, None] + norm.bias[:, None, None]
    assert fold_batch_norm(tower) == 1
    torch.testing.assert_close(tower.conv(images), by_hand)
    torch.testing.assert_close(tower(images), by_hand)
