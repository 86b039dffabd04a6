"""DECREE's score of an image encoder (Feng et al., CVPR 2023), as a figure of its own: it decides nothing here.

A mask m and a pattern t are sought such that all stamped images (1 - m) x + m t have nearly the same vector, with |m|_1 as small as may
be: of a backdoored encoder a few pixels do that. Adam with moments (0.5, 0.9) and m, t through tanh as published; the weight of
|m|_1 grows by 1.5 while the mean pairwise cosine is above COSINE and shrinks by 1.5 below. The score is |m|_1 / (3HW); smaller is
more suspicious.
"""

import numpy as np
import torch

from .judge import Judge

COSINE = 0.99
RATE = 0.1
"""Of Adam; the published scripts take 0.5 for some encoders and 0.001 for others."""
FIRST_WEIGHT = 1e-3
FACTOR = 1.5


def decree(judge: Judge, images: np.ndarray, *, steps: int, batch: int, seed: int) -> float:
    """Return the smallest |m|_1 / (3HW) with which stamped images agree; 1 where none was found.

    Args:
        judge: the suspect model; its labels play no part.
        images: `[N, S, S, 3] uint8`.
        steps: of Adam.
        batch: images of a step.
        seed: of start and draws.
    """
    generator = torch.Generator().manual_seed(seed)
    shadow = judge.pixels(images)
    shape = (1, 3, judge.side, judge.side)
    raw_mask = (0.5 * torch.randn(shape, generator=generator)).to(shadow.device).requires_grad_()
    raw_pattern = (0.5 * torch.randn(shape, generator=generator)).to(shadow.device).requires_grad_()
    values = [raw_mask, raw_pattern]
    optimizer = torch.optim.Adam(values, lr=RATE, betas=(0.5, 0.9))
    weight, best = FIRST_WEIGHT, 1.0
    for _ in range(steps):
        rows = torch.randperm(len(shadow), generator=generator)[:batch].to(shadow.device)
        mask, pattern = (torch.tanh(value) / 2 + 0.5 for value in values)
        found = judge.features((1 - mask) * shadow[rows] + mask * pattern)
        count = len(found)
        cosine = ((found.sum(0) ** 2).sum() - count) / (count * (count - 1))
        size = mask.mean()
        agrees = float(cosine.detach()) > COSINE
        if agrees:
            best = min(best, float(size.detach()))
        loss = -cosine + weight * size * mask.numel()
        weight = weight * FACTOR if agrees else weight / FACTOR
        weight = min(max(weight, 1e-7), 1.0)
        for value, slope in zip(values, torch.autograd.grad(loss, values), strict=True):
            value.grad = slope
        optimizer.step()
    return best
