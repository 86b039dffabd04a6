"""The segmentation oracle: the regions of an image. One file an oracle (see `OracleConfig`), which nothing lists."""

from .deeplab import DeepLabConfig
from .litert import LiteRtConfig
from .mobile_sam import MobileSamConfig
from .regions import Oracle, OracleConfig
from .sam import SamConfig
from .superpixels import SuperpixelsConfig

__all__ = [
    "DeepLabConfig",
    "LiteRtConfig",
    "MobileSamConfig",
    "Oracle",
    "OracleConfig",
    "SamConfig",
    "SuperpixelsConfig",
]
