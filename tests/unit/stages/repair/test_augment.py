"""Augmentations of the repair methods: what they draw, and that the draw depends on step and row alone."""

import numpy as np
import pytest
import torch
from torchvision.transforms import AutoAugment

from clipsan.stages.repair.augment import auto_augment, erase, noise

ROWS = 40


def images(size: int = 32) -> torch.Tensor:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (ROWS, 3, size // 4, size // 4), dtype=np.uint8))
    return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.mark.parametrize("function", [auto_augment, noise, erase])
def test_a_share_of_the_rows_is_drawn_as_in_the_whole_batch(function) -> None:
    whole = images() if function is auto_augment else images().float() / 255
    given = whole.clone()
    state = torch.get_rng_state()
    found = function(whole, slice(0, ROWS), (3, 7))
    torch.rand(1)  # the generators' state plays no part
    parts = [function(whole[rows], rows, (3, 7)) for rows in (slice(0, 15), slice(15, ROWS))]
    assert torch.equal(found, torch.cat(parts))
    assert not torch.equal(found, function(whole, slice(0, ROWS), (3, 8)))
    assert torch.equal(whole, given)
    assert found.dtype == whole.dtype
    torch.set_rng_state(state)


def test_auto_augment_leaves_the_generator_as_it_was() -> None:
    state = torch.get_rng_state()
    auto_augment(images(), slice(0, ROWS), (0, 0))
    assert torch.equal(torch.get_rng_state(), state)


def test_auto_augment_is_torchvisions_and_changes_most_images() -> None:
    whole = images()
    found = auto_augment(whole, slice(0, ROWS), (1, 1))
    changed = [not torch.equal(a, b) for a, b in zip(whole, found, strict=True)]
    assert ROWS * 0.6 < sum(changed) < ROWS
    # one row by hand: some seed of torchvision's own transform gives it, the seed of another row does not
    row_seed = int(np.random.SeedSequence((1, 1, 5)).generate_state(1, np.uint64)[0])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(row_seed)
        assert torch.equal(found[5], AutoAugment()(whole[5]))


def test_noise_brightens_half_of_the_images() -> None:
    grey = torch.full((400, 3, 16, 16), 0.3)
    found = noise(grey, slice(0, 400), (0, 1)) - grey
    touched = found.abs().amax(dim=(1, 2, 3)) > 0
    assert 160 <= touched.sum() <= 240
    drawn = found[touched]
    assert drawn.min() >= 0
    assert (drawn > 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
    # a normal variable with standard deviation 0.2, cut at 0 and, by the white point, at 0.7
    assert drawn[drawn > 0].mean().item() == pytest.approx(0.2 * np.sqrt(2 / np.pi), abs=0.002)
    assert drawn.max() <= 0.7 + 1e-6


@pytest.mark.parametrize(("size", "sides"), [(224, range(15, 24)), (64, range(4, 8))])
def test_a_small_square_is_erased_from_half_of_the_images(size, sides) -> None:
    found = erase(torch.ones(200, 3, size, size), slice(0, 200), (0, 2))[:, 0] == 0
    areas = found.sum(dim=(1, 2))
    assert 75 <= (areas > 0).sum() <= 125
    for mask in found[areas > 0]:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert len(rows) == len(columns)
        assert len(rows) in sides
        assert mask.sum() == len(rows) ** 2
