"""Triggers in the frequency domain (FTrojan, Wang et al. 2022): cosines of the same few frequencies added to the colours."""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from scipy.fft import idctn

from ...pixels import to_uint8
from ...stage import Positive, config
from .pixels import whole
from .trigger import Trigger, TriggerConfig

RED, GREEN, BLUE = (1.402, 0.0), (-0.714136, -0.344136), (0.0, 1.772)
"""What a unit of Cr and of Cb adds to each colour, by ITU-R BT.601."""


@config
class FrequencyConfig(TriggerConfig):
    """A constant added to some coefficients of the discrete cosine transform of every block, in Cr and Cb.

    The transform is linear, so one pattern is added to every image: no forward transform is needed. Blocks that the image
    ends in the middle of stay as they are.
    """

    kind: Literal["frequency"] = "frequency"
    block_px: Annotated[int, Field(ge=2)] = 32
    """Side of a block; FTrojan's 32."""
    places: Annotated[tuple[tuple[int, int], ...], Field(min_length=1)] = ((15, 15), (31, 31))
    """Row and column of each coefficient in a block; FTrojan's. A model's preprocessing that resizes removes high ones."""
    magnitude: Positive = 50.0
    """What is added to each coefficient of the orthonormal transform, in grey levels."""

    def __post_init__(self) -> None:
        if any(not 0 <= at < self.block_px for place in self.places for at in place):
            raise ValueError(f"places: each row and column lies in a block, from 0 to {self.block_px - 1}")

    def build(self) -> Trigger:
        return FrequencyTrigger(self)


class FrequencyTrigger:
    """Adds the pattern; nothing is drawn."""

    def __init__(self, config: FrequencyConfig) -> None:
        self.config = config

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the image with the cosines; the box is the whole image.

        Raises:
            ValueError: the image is smaller than a block.
        """
        height, width = image.shape[:2]
        block = cosines(self.config)
        side = len(block)
        if min(height, width) < side:
            raise ValueError(f"a block of {side} px does not fit into {width}x{height} px")
        down, across = height // side, width // side
        added = np.zeros((height, width), np.float32)
        added[: down * side, : across * side] = np.tile(block, (down, across))
        pattern = added[..., None] * np.array([sum(c) for c in (RED, GREEN, BLUE)], np.float32)
        drawn = {"block_px": side, "magnitude": self.config.magnitude}
        return to_uint8(image.astype(np.float32) + pattern), whole(image, **drawn)


def cosines(config: FrequencyConfig) -> np.ndarray:
    """Return `[block_px, block_px] float32`, what is added to Cr and to Cb of a block."""
    coefficients = np.zeros((config.block_px, config.block_px))
    for row, column in config.places:
        coefficients[row, column] = config.magnitude
    return np.asarray(idctn(coefficients, norm="ortho"), np.float32)
