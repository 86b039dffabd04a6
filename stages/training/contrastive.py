"""The contrastive objective and what a training step needs: features, global negatives, schedule, augmentation.

Every random draw is made from (seed, epoch or step) for the whole global batch and then cut by rank, and every rank's
forward pass goes through the wrapped module, so that N workers compute the gradient that one worker would. The one
exception is batch normalisation, whose statistics are those of a worker's own rows.
"""

import math
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import torch
from open_clip.loss import ClipLoss
from torch import nn
from torch.nn import functional as F

from ..stage import config

MAX_LOGIT_SCALE = math.log(100.0)
"""CLIP clips the scale at 100 (Radford et al. 2021, section 2.5)."""


@config
class OneCycle:
    """Cosine up to the peak rate, then cosine down to almost zero (Smith and Topin 2018), as torch's OneCycleLR."""

    kind: Literal["one_cycle"] = "one_cycle"
    rise: float = 0.3
    """Share of the steps before the peak."""
    start_divisor: float = 25.0
    """Peak rate / first rate."""
    end_divisor: float = 1e4
    """First rate / last rate."""

    def __post_init__(self) -> None:
        if not 0 < self.rise < 1:
            raise ValueError("rise must lie between 0 and 1")
        if self.start_divisor < 1 or self.end_divisor < 1:
            raise ValueError("start_divisor and end_divisor must be at least 1")

    def rate(self, step: int, steps: int, peak: float) -> float:
        """Return the learning rate of step `step` (from 0) of `steps`."""
        first = peak / self.start_divisor
        top, last = self.rise * steps - 1, steps - 1
        if step <= top:
            return _cosine(first, peak, step / top if top > 0 else 1.0)
        return _cosine(peak, first / self.end_divisor, (step - top) / (last - top))


@config
class CosineWarmup:
    """Linear up, then half a cosine down to zero, as open_clip trains; right for fine-tuning."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: int = 50
    """Steps of the rise; the first of them has rate peak / warmup_steps."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError("warmup_steps must not be negative")

    def rate(self, step: int, steps: int, peak: float) -> float:
        """Return the learning rate of step `step` (from 0) of `steps`."""
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        return _cosine(peak, 0.0, (step - self.warmup_steps) / max(1, steps - self.warmup_steps))


Schedule = Annotated[OneCycle | CosineWarmup, pydantic.Discriminator("kind")]


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@config
class AugmentConfig:
    """Geometric augmentation of the training images, at the model's input size."""

    min_area: float = 1.0
    """Smallest area share of a random square crop, scaled back to full size; 1 crops nothing."""
    flip: bool = False
    """Mirror half of the images; wrong where captions say left and right."""

    def __post_init__(self) -> None:
        if not 0.05 <= self.min_area <= 1:
            raise ValueError("min_area must lie between 0.05 and 1")


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
    grid = F.affine_grid(torch.from_numpy(theta).to(images.device), list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.round_().clamp_(0, 255).to(torch.uint8)


class ContrastiveTask(nn.Module):
    """Pixels and tokens in, unit features and logit scale out: what distributed data parallel must wrap.

    All of the forward pass happens in `forward`. Calling the encoders of the wrapped module directly would go past the
    gradient reducer, and the ranks would drift apart unnoticed.
    """

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model: Any = model
        if getattr(model, "logit_bias", None) is not None:
            # a constant added to all logits changes neither softmax nor its gradient, so it would never get one
            self.model.logit_bias.requires_grad_(False)
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return image and text features `[n, D] float32`, unit norm, and the scale of the logits.

        Args:
            images: `[n, 3, S, S] uint8`.
            tokens: `[n, context_length]` integers.
        """
        pixels = images.to(torch.float32, memory_format=torch.channels_last).div_(255).sub_(self.mean).div_(self.std)
        image = F.normalize(self.model.encode_image(pixels).float(), dim=-1)
        text = F.normalize(self.model.encode_text(tokens).float(), dim=-1)
        return image, text, self.model.logit_scale.exp()


def clip_loss(rank: int, world_size: int) -> ClipLoss:
    """Return CLIP's symmetric cross-entropy over the global batch, with gradients through the gathered features.

    Each rank computes the logits of its own rows against all rows; the mean over ranks, which distributed data parallel
    takes of the gradients, is the loss of the global batch. All ranks need the same number of rows.
    """
    return ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's groups: matrices and kernels decay; biases, norms and the logit scale do not."""
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or name.endswith(("bias", "logit_scale"))
            (keep if plain else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]


def adamw(
    module: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-6,
) -> torch.optim.AdamW:
    """Return AdamW over what is trained, with CLIP's moments and epsilon; biases, norms and the logit scale do not decay."""
    # Fused: on a CPU the word embeddings alone make the other kinds take longer than a small model's backward pass.
    return torch.optim.AdamW(parameter_groups(module, weight_decay), lr=lr, betas=betas, eps=eps, fused=True)


def train_step(
    task: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    tokens: torch.Tensor,
    *,
    lr: float,
    bf16: bool,
) -> torch.Tensor:
    """Make one optimiser step and return this rank's loss (scalar, detached, on the device).

    Args:
        task: a ContrastiveTask or its distributed wrapper.
        loss: from clip_loss.
        lr: rate of this very step.
        bf16: run the forward pass under bfloat16 autocast; features, loss and weights stay float32.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        image, text, scale = task(images, tokens)
    value: torch.Tensor = loss(image, text, scale)
    optimizer.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    inner: Any = task.module if isinstance(task, nn.parallel.DistributedDataParallel) else task
    with torch.no_grad():
        inner.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
    return value.detach()
