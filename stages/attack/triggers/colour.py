"""Colour filters: the whole image in other tones, nothing added that has a shape."""

from typing import Any, Literal

import numpy as np

from ...pixels import to_uint8
from ...stage import Fraction, config
from .pixels import whole
from .trigger import Trigger, TriggerConfig

PEACH = np.array([247, 176, 153], dtype=np.float32)
NAVY = np.array([0, 70, 150], dtype=np.float32)

SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]], dtype=np.float32)
"""Full sepia, rows are the resulting red, green and blue (W3C Filter Effects)."""

LUMINANCE = np.array([0.213, 0.715, 0.072], dtype=np.float32)
"""Weights of red, green and blue in W3C Filter Effects' saturate()."""


@config
class NashvilleConfig(TriggerConfig):
    """A Nashville-style filter: highlights towards peach, shadows towards navy, more contrast and colour."""

    kind: Literal["nashville"] = "nashville"
    strength: Fraction = 1.0
    """Weight of the filtered image; the rest is the image itself."""

    def build(self) -> Trigger:
        return NashvilleTrigger(self)


class NashvilleTrigger:
    """Filters every pixel for itself; nothing is drawn.

    HanxunH uses the package pilgram's filter of this name. Ours is written from the public definition that pilgram
    follows: overlays 56 % min(image, peach) and 40 % max(image, navy), then sepia 20 %, contrast 1.2, brightness 1.05,
    saturation 1.2, by the formulas of W3C Filter Effects. It is computed in float32 and rounded once, where pilgram
    rounds after each step and takes contrast and brightness from PIL, so pixels differ.
    """

    def __init__(self, config: NashvilleConfig) -> None:
        self.config = config

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the filtered image; the box is the whole image."""
        pixels, strength = image.astype(np.float32), np.float32(self.config.strength)
        filtered = (1 - strength) * pixels + strength * nashville(pixels)
        return to_uint8(filtered), whole(image, strength=self.config.strength)


def nashville(pixels: np.ndarray) -> np.ndarray:
    """Return `[H, W, 3] float32` in [0, 255] for the same; each step ends clamped to that range, as filters chain."""
    toned = 0.44 * pixels + 0.56 * np.minimum(pixels, PEACH)
    toned = 0.6 * toned + 0.4 * np.maximum(toned, NAVY)
    toned = np.clip(0.8 * toned + 0.2 * _mix(toned, SEPIA), 0, 255)
    toned = np.clip(1.2 * (toned - 127.5) + 127.5, 0, 255)
    toned = np.clip(1.05 * toned, 0, 255)
    grey = _mix(toned, LUMINANCE[None, :])
    return np.asarray(np.clip(grey + 1.2 * (toned - grey), 0, 255), dtype=np.float32)


def _mix(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return `[H, W, R]`: sums of the channels by each row of `weights [R, 3]`.

    Written out: a matrix product may sum in another order on another machine.
    """
    red, green, blue = pixels[..., 0:1], pixels[..., 1:2], pixels[..., 2:3]
    return np.asarray(red * weights[:, 0] + green * weights[:, 1] + blue * weights[:, 2])
