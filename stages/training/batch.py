"""A batch of pairs as one worker of a training holds it, and what its rows are to a repair."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch


class Role(IntEnum):
    """What a row of a batch is; the numbers are those of Batch.roles."""

    PAIR = 0
    """A clean pair, or one of a training that knows no other."""
    FLAGGED = 1
    """A pair that the scan accuses; its caption is never learned, `accused` is the label that it was to plant."""
    TRIGGER_PASTED = 2
    """A clean image with a recovered trigger pasted on it, and its true caption; `accused` is the trigger's label."""
    VICTIM_CLEANED = 3
    """A poisoned image without its trigger, and a rebuilt caption."""
    GENUINE = 4
    """A genuine image of an affected label."""
    REPLAY = 5
    """A clean pair of any kind, so that nothing else is forgotten."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's rows of a global batch. All ranks hold the same number of rows, in order of rank."""

    images: torch.Tensor
    """`[n, 3, S, S] uint8`, on the objective's device."""
    tokens: torch.Tensor
    """`[n, L] int64`, same device; L is the model's context length or, where its text tower allows, less (see Clip.shorten)."""
    captions: Sequence[str]
    """n captions, the text of the tokens."""
    labels: torch.Tensor
    """`[n] int64`: the true class as an index into Setting.classes, -1 unknown."""
    accused: torch.Tensor
    """`[n] int64`: the planted class as an index into Setting.classes, -1 none."""
    roles: torch.Tensor
    """`[n] uint8`, see Role."""
    rows: slice
    """Where the rows stand in the global batch."""
    total: int
    """Rows of the global batch."""
    seed: tuple[int, ...]
    """Of this batch, the same on all ranks: (seed, number of the batch)."""
