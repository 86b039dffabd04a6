"""Crops and flips: exact where they can be, inside the image, and a share's are those of the whole batch."""

import math

import numpy as np
import torch

from clipsan.stages.training.augment import AugmentConfig, augment

ROWS = 8


def drawn(rows: int = ROWS) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (rows, 3, 16, 16), dtype=np.uint8))


def test_no_augmentation_leaves_the_pixels_alone() -> None:
    images = drawn()
    assert augment(images, slice(0, ROWS), ROWS, AugmentConfig(), (0, 0)) is images


def test_a_flip_mirrors_half_of_the_images_exactly() -> None:
    images = drawn(200)
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
    images = drawn()
    settings = AugmentConfig(min_area=0.5, flip=True)
    whole = augment(images, slice(0, ROWS), ROWS, settings, (4, 2))
    half = augment(images[4:], slice(4, 8), ROWS, settings, (4, 2))
    assert torch.equal(whole[4:], half)
    assert not torch.equal(whole, augment(images, slice(0, ROWS), ROWS, settings, (4, 3)))
