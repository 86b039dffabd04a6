"""The segmentation oracle: regions of an image, what CLIP claims of them, and the proof that one of them is a trigger.

One file an oracle; a new one is one file and one line in each list here.
"""

from typing import Annotated

import pydantic

from .deeplab import DeepLab, DeepLabConfig
from .litert import LiteRt, LiteRtConfig
from .mobile_sam import MobileSam, MobileSamConfig
from .regions import Oracle
from .sam import Sam, SamConfig
from .superpixels import Superpixels, SuperpixelsConfig

__all__ = [
    "DeepLabConfig",
    "LiteRtConfig",
    "MobileSamConfig",
    "Oracle",
    "OracleConfig",
    "SamConfig",
    "SuperpixelsConfig",
    "build_oracle",
]

OracleConfig = Annotated[
    SuperpixelsConfig | SamConfig | MobileSamConfig | DeepLabConfig | LiteRtConfig,
    pydantic.Discriminator("kind"),
]


def build_oracle(config: OracleConfig, device: str = "cpu") -> Oracle:
    """Build what a configuration describes.

    Args:
        config: kind and settings.
        device: a torch device for the oracles that are neural networks; superpixels and litert run on the CPU.

    Raises:
        ModelError: a file of weights is missing or is not what its kind needs.
    """
    match config:
        case SuperpixelsConfig():
            return Superpixels(config)
        case SamConfig():
            return Sam(config, device)
        case MobileSamConfig():
            return MobileSam(config, device)
        case DeepLabConfig():
            return DeepLab(config, device)
        case LiteRtConfig():
            return LiteRt(config)
