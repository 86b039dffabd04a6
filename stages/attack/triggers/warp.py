"""Warps (WaNet, Nguyen and Tran 2021, and its forks for CLIP): every pixel is fetched from a little beside."""

from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from ...pixels import to_uint8
from ...stage import Positive, Seed, config
from .pixels import whole
from .trigger import Trigger, TriggerConfig

SHARED_GRIDS = 16
"""Grids kept in memory, one a size of image."""


@config
class WanetConfig(TriggerConfig):
    """The smooth warp of the paper: a k x k grid of vectors, upsampled bicubic, shared by all images."""

    kind: Literal["wanet"] = "wanet"
    k: Annotated[int, Field(ge=2)] = 4
    """Control points along each side; the paper's 4."""
    s: Positive = 0.5
    """Strength: the mean displacement along each axis is about s / 2 px. The paper's 0.5 was for images of 28 to 64 px;
    the share that it moves of 32 px is moved of 64 px by 1, of 224 px by 3.5."""
    seed: Seed = 0
    """Seed of the grid."""

    def build(self) -> Trigger:
        return WarpTrigger(self)


@config
class WanetUnsmoothedConfig(TriggerConfig):
    """What CleanCLIP, BadCLIP, PAR and HanxunH run under the name WaNet: one random vector a pixel, no smoothing."""

    kind: Literal["wanet_unsmoothed"] = "wanet_unsmoothed"
    s: Positive = 1.0
    """Strength: the displacement along each axis is uniform in -s..s px, so s / 2 px in the mean. The forks' 1."""
    seed: Seed = 0
    """Seed of the grid."""

    def build(self) -> Trigger:
        return WarpTrigger(self)


class WarpTrigger:
    """Samples the image, bilinear, at `clamp(identity + s noise / size, -1, 1)`, where corners are at -1 and 1.

    Images of one size share one grid. The paper's noise mode, which shows extra random warps with true labels while
    training, belongs to a training that the attacker runs; poisoned data alone cannot have it.
    """

    def __init__(self, config: WanetConfig | WanetUnsmoothedConfig) -> None:
        self.config = config

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the warped image and, as drawn, the mean and the largest displacement along an axis, in px."""
        height, width = image.shape[:2]
        k = self.config.k if isinstance(self.config, WanetConfig) else None
        grid, mean_px, max_px = _grid(height, width, k, self.config.s, self.config.seed)
        pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        warped = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=True)
        triggered = to_uint8(warped[0].permute(1, 2, 0).numpy())
        return triggered, whole(image, k=k, s=self.config.s, mean_shift_px=mean_px, max_shift_px=max_px)


@lru_cache(maxsize=SHARED_GRIDS)
def _grid(height: int, width: int, k: int | None, s: float, seed: int) -> tuple[torch.Tensor, float, float]:
    field = displacement(height, width, k, seed)
    grid = sampling_grid(field, s)
    sides = np.array([width - 1, height - 1], dtype=np.float64)
    shift = np.abs(grid - sampling_grid(field, 0.0)) * sides / 2
    return torch.from_numpy(grid)[None], round(float(shift.mean()), 4), round(float(shift.max()), 4)


def displacement(height: int, width: int, k: int | None, seed: int) -> np.ndarray:
    """Return `[H, W, 2] float32`, x before y: uniform noise over its mean size, from k x k points or one for each pixel.

    WaNet section 3.2: psi(upsample(rand_[-1, 1](k, k, 2))), psi dividing by the mean absolute value. As in the paper's
    code the division comes before the upsampling, which is bicubic with aligned corners.
    """
    shape = (2, height, width) if k is None else (2, k, k)
    noise = np.random.default_rng(seed).uniform(-1, 1, shape)
    noise /= np.abs(noise).mean()
    if k is None:
        return np.ascontiguousarray(noise.transpose(1, 2, 0), dtype=np.float32)
    points = torch.from_numpy(noise)[None]
    smooth = F.interpolate(points, size=(height, width), mode="bicubic", align_corners=True)
    return np.ascontiguousarray(smooth[0].permute(1, 2, 0).numpy(), dtype=np.float32)


def sampling_grid(field: np.ndarray, s: float) -> np.ndarray:
    """Return `[H, W, 2] float32`, x before y, in [-1, 1]: where each pixel of the result is taken from.

    An offset is s noise / side along its own axis, so that it is the same number of pixels on both axes of an image
    that is no square; the papers' images all are.
    """
    height, width = field.shape[:2]
    rows = np.linspace(-1, 1, height, dtype=np.float32) if height > 1 else np.zeros(1, dtype=np.float32)
    columns = np.linspace(-1, 1, width, dtype=np.float32) if width > 1 else np.zeros(1, dtype=np.float32)
    grid = np.empty((height, width, 2), dtype=np.float32)
    grid[..., 0] = columns[None, :] + np.float32(s / width) * field[..., 0]
    grid[..., 1] = rows[:, None] + np.float32(s / height) * field[..., 1]
    return np.clip(grid, -1, 1)
