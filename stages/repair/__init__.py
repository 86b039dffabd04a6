"""Repair of a backdoored CLIP: one file a method, all of them trained by one loop (see objective.py)."""

from typing import Annotated

import pydantic

from ..model.clip import Clip
from .cleanclip import CleanClip, CleanClipObjective, CleanClipSupervised, CleanClipSupervisedObjective
from .eftclip import EftClip, EftClipObjective
from .finetune import FineTune, FineTuneObjective
from .objective import Batch, Objective, Role, Setting
from .par import Par, ParObjective
from .rvpt import Rvpt, RvptObjective
from .unlearn import Unlearn, UnlearnObjective

__all__ = ["Batch", "Objective", "RepairConfig", "Role", "Setting", "build"]

RepairConfig = Annotated[
    FineTune | CleanClip | CleanClipSupervised | Par | Rvpt | EftClip | Unlearn, pydantic.Discriminator("kind")
]


def build(
    config: FineTune | CleanClip | CleanClipSupervised | Par | Rvpt | EftClip | Unlearn, clip: Clip, setting: Setting
) -> Objective:
    """Return the objective of a method on a freshly loaded model, which it trains in place.

    Raises:
        ValueError: the method learns from labels and the setting names fewer than two classes.
        ModelError: the method does not fit the architecture.
        ThesaurusError: the thesaurus cannot be read.
    """
    if config.labelled and len(setting.classes) < 2:
        raise ValueError(f"{config.kind} learns from labels; it needs the names of at least two classes")
    match config:
        case FineTune():
            return FineTuneObjective(config, clip, setting)
        case CleanClip():
            return CleanClipObjective(config, clip, setting)
        case CleanClipSupervised():
            return CleanClipSupervisedObjective(config, clip, setting)
        case Par():
            return ParObjective(config, clip, setting)
        case Rvpt():
            return RvptObjective(config, clip, setting)
        case EftClip():
            return EftClipObjective(config, clip, setting)
        case Unlearn():
            return UnlearnObjective(config, clip, setting)
