"""Random image augmentations of the repair methods, drawn row by row, so that N workers draw what one would."""

import math

import numpy as np
import torch
from torchvision.transforms import AutoAugment

NOISE_SD = 0.2
NOISE_SHARE = 0.5
ERASE_SHARE = 0.5
ERASE_AREA = (0.005, 0.01)


def auto_augment(images: torch.Tensor, rows: slice, seed: tuple[int, ...]) -> torch.Tensor:
    """Apply torchvision's AutoAugment with the ImageNet policy, as CleanCLIP does, to each image by itself.

    Args:
        images: `[n, 3, S, S] uint8`, rows `rows` of the global batch.
        rows: where they stand in it.
        seed: of this step.

    Returns:
        `[n, 3, S, S] uint8`.
    """
    policy = AutoAugment()
    found = []
    # torchvision draws from torch's generator on the CPU; no other is disturbed, and that one is put back
    with torch.random.fork_rng(devices=[]):
        for image, row in zip(images, range(rows.start, rows.stop), strict=True):
            torch.default_generator.manual_seed(_row_seed(seed, row))
            found.append(policy(image))
    return torch.stack(found)


def noise(pixels: torch.Tensor, rows: slice, seed: tuple[int, ...]) -> torch.Tensor:
    """Add PAR's noise to half of the images.

    The noise has a standard deviation of 0.2 and its negative half is set to 0, which the paper's code does and its text
    does not say (utils.AddGaussianNoise): it only brightens.

    Args:
        pixels: `[n, 3, S, S] float32`, 0 to 1.
        rows: where they stand in the global batch.
        seed: of this step.
    """
    noised = pixels.clone()
    for place, row in enumerate(range(rows.start, rows.stop)):
        rng = np.random.default_rng((*seed, row, 0))
        if rng.random() < NOISE_SHARE:
            drawn = NOISE_SD * rng.standard_normal(tuple(pixels.shape[1:]), np.float32)
            noised[place] += torch.from_numpy(drawn.clip(0, 1)).to(pixels.device)
    return noised.clamp_(0, 1)


def erase(pixels: torch.Tensor, rows: slice, seed: tuple[int, ...]) -> torch.Tensor:
    """Set one square of 0.5 to 1 % of the area to 0 in half of the images, as PAR does after normalisation.

    Args:
        pixels: `[n, 3, S, S] float32`, normalised, so that 0 is the mean colour.
        rows: where they stand in the global batch.
        seed: of this step.
    """
    erased = pixels.clone()
    size = pixels.shape[-1]
    for place, row in enumerate(range(rows.start, rows.stop)):
        rng = np.random.default_rng((*seed, row, 1))
        if rng.random() < ERASE_SHARE:
            side = max(1, round(size * math.sqrt(rng.uniform(*ERASE_AREA))))
            top, left = rng.integers(0, size - side + 1, 2)
            erased[place, :, top : top + side, left : left + side] = 0
    return erased


def _row_seed(seed: tuple[int, ...], row: int) -> int:
    return int(np.random.SeedSequence((*seed, row)).generate_state(1, np.uint64)[0])
