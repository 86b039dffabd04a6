"""Part of the way from a suspect model's weights to the repaired ones: how far a repair goes before it costs too much.

Weights of one fine-tuning are joined by a line along which the accuracy changes little (Wortsman et al. 2022, arXiv 2109.01903),
so that a repair that has gone too far can be taken back in part.
"""

from collections.abc import Mapping

import torch

Weights = Mapping[str, torch.Tensor]


def between(start: Weights, end: Weights, share: float) -> dict[str, torch.Tensor]:
    """Return start + share (end - start); what is no fraction (counts of batches) is the start's.

    Args:
        start: state of the suspect model.
        end: of the repaired one; the same names and shapes.
        share: 0 is the suspect model, 1 the repaired one, bit by bit.
    """
    if share == 1:
        return {name: value.clone() for name, value in end.items()}
    return {
        name: torch.lerp(value, end[name], share) if value.is_floating_point() else value.clone()
        for name, value in start.items()
    }
