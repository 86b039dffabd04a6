"""How a training moves its weights: courses of the learning rate, and AdamW with the groups that CLIP decays."""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field
from torch import nn

from ..stage import config, part_of


@config
class OneCycle:
    """Cosine up to the peak rate, then cosine down to almost zero (Smith and Topin 2018), as torch's OneCycleLR."""

    kind: Literal["one_cycle"] = "one_cycle"
    rise: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the steps before the peak."""
    start_divisor: Annotated[float, Field(ge=1)] = 25.0
    """Peak rate / first rate."""
    end_divisor: Annotated[float, Field(ge=1)] = 1e4
    """First rate / last rate."""

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
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Steps of the rise; the first of them has rate peak / warmup_steps."""

    def rate(self, step: int, steps: int, peak: float) -> float:
        """Return the learning rate of step `step` (from 0) of `steps`."""
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        return _cosine(peak, 0.0, (step - self.warmup_steps) / max(1, steps - self.warmup_steps))


@config
class TwoPhase:
    """PAR's schedule: linear from a high rate to a middle one, then a cosine to almost zero.

    Source: nmndeep/PerturbAndRecover, utils.cosine_scheduler. Rates are given as shares of the peak rate `lr`, here the
    middle one, so that a sweep over `lr` keeps the shape.
    """

    kind: Literal["two_phase"] = "two_phase"
    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the steps in the first phase."""
    start: Annotated[float, Field(ge=0)] = 10.0
    """First rate / lr (3e-5 / 3e-6 in the paper)."""
    end: Annotated[float, Field(ge=0)] = 1e-9 / 3e-6
    """Rate that the cosine tends to / lr."""

    def rate(self, step: int, steps: int, peak: float) -> float:
        """Return the learning rate of step `step` (from 0) of `steps`; `peak` is the rate between the phases."""
        first = part_of(self.share, steps)
        if step < first:
            # both ends included, as numpy.linspace
            return peak * (self.start + (1 - self.start) * (step / (first - 1) if first > 1 else 0.0))
        passed = (step - first) / (steps - first)
        return peak * (self.end + (1 - self.end) * (1 + math.cos(math.pi * passed)) / 2)


Schedule = Annotated[OneCycle | CosineWarmup | TwoPhase, Discriminator("kind")]


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


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
    module: nn.Module, lr: float, weight_decay: float, *, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """Return AdamW over what is trained; biases, norms and the logit scale do not decay."""
    # Fused: on a CPU the word embeddings alone make the other kinds take longer than a small model's backward pass.
    return torch.optim.AdamW(parameter_groups(module, weight_decay), lr=lr, betas=betas, eps=eps, fused=True)
