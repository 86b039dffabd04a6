"""Geometric augmentation of training images, drawn for the whole global batch, so that N workers draw what one would."""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from ..stage import config


@config
class AugmentConfig:
    """Geometric augmentation of the training images, at the model's input size."""

    min_area: Annotated[float, Field(ge=0.05, le=1)] = 1.0
    """Smallest area share of a random square crop, scaled back to full size; 1 crops nothing."""
    flip: bool = False
    """Mirror half of the images; wrong where captions say left and right."""


def augment(
    images: torch.Tensor, rows: slice, total: int, settings: AugmentConfig, seed: tuple[int, ...]
) -> torch.Tensor:
    """Augment a rank's share of a global batch.

    Args:
        images: `[n, 3, S, S] uint8`, rows `rows` of the global batch.
        rows: where they stand in it.
        total: rows of the global batch; the draws are made for all of them.
        settings: which augmentation.
        seed: of this step.

    Returns:
        `[n, 3, S, S] uint8`.
    """
    if settings.min_area == 1 and not settings.flip:
        return images
    draws = np.random.default_rng(seed).random((4, total))[:, rows]
    area = settings.min_area + (1 - settings.min_area) * draws[0]
    scale = np.sqrt(area)
    mirror = np.where(settings.flip & (draws[3] < 0.5), -1.0, 1.0)
    theta = np.zeros((len(scale), 2, 3), np.float32)
    theta[:, 0, 0], theta[:, 1, 1] = scale * mirror, scale
    # grid_sample's coordinates run from -1 to 1, so a crop of side s may move its centre by 1 - s either way
    theta[:, 0, 2], theta[:, 1, 2] = (1 - scale) * (2 * draws[1] - 1), (1 - scale) * (2 * draws[2] - 1)
    crops = torch.from_numpy(theta).to(images.device, non_blocking=True)  # a few bytes, for which no step need wait
    grid = F.affine_grid(crops, list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.round_().clamp_(0, 255).to(torch.uint8)
