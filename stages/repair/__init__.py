"""Repair of a backdoored CLIP: one file a method (see method.py), all of them trained by one loop (see stages/training/objective.py)."""

from typing import Annotated

import pydantic

from .cleanclip import CleanClip, CleanClipSupervised
from .eftclip import EftClip
from .finetune import FineTune
from .par import Par
from .rvpt import Rvpt
from .unlearn import Unlearn

__all__ = ["RepairConfig"]

RepairConfig = Annotated[
    FineTune | CleanClip | CleanClipSupervised | Par | Rvpt | EftClip | Unlearn, pydantic.Discriminator("kind")
]
