"""Triggers: what an attacker puts on an image. One file a family; a new family is one file and one line in each list here.

ISSBA and BLTO are left out: their triggers come out of other people's trained generators (specs/attacks.md, section 1).
"""

from typing import Annotated, Any, Protocol

import numpy as np
import pydantic

from .blend import BlendConfig, BlendTrigger
from .colour import NashvilleConfig, NashvilleTrigger
from .controls import DarkenConfig, DarkenTrigger, IdentityConfig, IdentityTrigger, ResizeConfig, ResizeTrigger
from .patch import PatchConfig, PatchTrigger
from .proven import ProvenConfig, ProvenTrigger
from .replace import ReplaceConfig, ReplaceTrigger
from .sinusoid import SigBlendedConfig, SigConfig, SinusoidTrigger
from .warp import WanetConfig, WanetUnsmoothedConfig, WarpTrigger

__all__ = [
    "BlendConfig",
    "BlendTrigger",
    "DarkenConfig",
    "IdentityConfig",
    "NashvilleConfig",
    "PatchConfig",
    "PatchTrigger",
    "ProvenConfig",
    "ProvenTrigger",
    "ReplaceConfig",
    "ResizeConfig",
    "SigBlendedConfig",
    "SigConfig",
    "Trigger",
    "TriggerConfig",
    "WanetConfig",
    "WanetUnsmoothedConfig",
    "build_trigger",
]

TriggerConfig = Annotated[
    PatchConfig
    | BlendConfig
    | SigConfig
    | SigBlendedConfig
    | WanetConfig
    | WanetUnsmoothedConfig
    | NashvilleConfig
    | ReplaceConfig
    | IdentityConfig
    | ResizeConfig
    | DarkenConfig
    | ProvenConfig,
    pydantic.Discriminator("kind"),
]


class Trigger(Protocol):
    """Puts a trigger on one image."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the triggered copy of an `[H, W, 3] uint8` image, and what was drawn for it.

        What was drawn is plain JSON data and always holds `top`, `left`, `height`, `width`: the box, in pixels, outside
        of which the copy equals the image. The image itself is never written to.
        """
        ...


def build_trigger(config: TriggerConfig) -> Trigger:
    """Build a trigger; loads what it needs from disk.

    Raises:
        ValueError: a picture cannot be read.
    """
    match config:
        case PatchConfig():
            return PatchTrigger(config)
        case BlendConfig():
            return BlendTrigger(config)
        case SigConfig() | SigBlendedConfig():
            return SinusoidTrigger(config)
        case WanetConfig() | WanetUnsmoothedConfig():
            return WarpTrigger(config)
        case NashvilleConfig():
            return NashvilleTrigger(config)
        case ReplaceConfig():
            return ReplaceTrigger(config)
        case IdentityConfig():
            return IdentityTrigger()
        case ResizeConfig():
            return ResizeTrigger(config)
        case DarkenConfig():
            return DarkenTrigger(config)
        case ProvenConfig():
            return ProvenTrigger(config)
