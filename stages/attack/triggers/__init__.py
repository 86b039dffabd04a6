"""Triggers: what an attacker puts on an image. One file a family of triggers (see trigger.py), which nothing lists.

ISSBA and BLTO are left out: their triggers come out of other people's trained generators.
"""

from .adaptive import AdaptiveBlendConfig, AdaptivePatchConfig
from .blend import BlendConfig, BlendTrigger
from .colour import NashvilleConfig
from .controls import DarkenConfig, IdentityConfig, ResizeConfig
from .frequency import FrequencyConfig
from .micro_qr import MicroQrConfig
from .patch import PatchConfig, PatchTrigger
from .proven import ProvenConfig
from .replace import ReplaceConfig
from .sinusoid import SigBlendedConfig, SigConfig
from .trigger import Trigger, TriggerConfig
from .warp import WanetConfig, WanetUnsmoothedConfig

__all__ = [
    "AdaptiveBlendConfig",
    "AdaptivePatchConfig",
    "BlendConfig",
    "BlendTrigger",
    "DarkenConfig",
    "FrequencyConfig",
    "IdentityConfig",
    "MicroQrConfig",
    "NashvilleConfig",
    "PatchConfig",
    "PatchTrigger",
    "ProvenConfig",
    "ReplaceConfig",
    "ResizeConfig",
    "SigBlendedConfig",
    "SigConfig",
    "Trigger",
    "TriggerConfig",
    "WanetConfig",
    "WanetUnsmoothedConfig",
]
