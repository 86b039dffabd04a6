"""A micro QR code as a patch: what a passer-by takes for a label, and a camera finds."""

from typing import Any, Literal

import numpy as np

from ...stage import Count, Fraction, Seed, config
from .patch import PatchConfig, Place
from .trigger import Trigger, TriggerConfig

MODULES = 11
"""Along a side of the smallest symbol, M1."""
FINDER = 7


@config
class MicroQrConfig(TriggerConfig):
    """A symbol M1 of ISO/IEC 18004, black on white: its finder, separator and timing patterns are the standard's, its other
    modules a seeded draw, so that no reader makes a text of it."""

    kind: Literal["micro_qr"] = "micro_qr"
    seed: Seed = 0
    """Of the modules that hold data."""
    quiet: Count = 1
    """White modules around the symbol; the standard asks for 2."""
    size_fraction: Fraction = 0.2
    """Side of the patch with its rim, as a fraction of the image's shorter side; no module is smaller than a pixel."""
    place: Place = "bottom_right"
    """Where it stands; random: drawn anew for every image."""

    def build(self) -> Trigger:
        return MicroQrTrigger(self)


class MicroQrTrigger:
    """Pastes the symbol as a patch is pasted."""

    def __init__(self, config: MicroQrConfig) -> None:
        self.config = config
        self._symbol = np.pad(symbol(config.seed), config.quiet, constant_values=255)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the image with the symbol, and its box.

        Raises:
            ValueError: the image is smaller than the symbol.
        """
        modules = len(self._symbol)
        size = max(modules, round(self.config.size_fraction * min(image.shape[:2])))
        triggered, drawn = PatchConfig(size_px=size, place=self.config.place).build()(image, rng)
        index = np.arange(size) * modules // size
        picture = self._symbol[index][:, index, None]
        for top, left in drawn.get("corners", [[drawn["top"], drawn["left"]]]):
            triggered[top : top + size, left : left + size] = picture
        return triggered, drawn | {"pattern": "micro_qr"}


def symbol(seed: int) -> np.ndarray:
    """Return `[11, 11] uint8`, 0 or 255.

    A black square of 7 modules with a white ring in it stands in the top left corner, a white line beside it; row 0 and
    column 0 alternate from there on, black first.
    """
    black = np.random.default_rng(seed).integers(0, 2, (MODULES, MODULES)).astype(bool)
    black[: FINDER + 1, : FINDER + 1] = False
    black[:FINDER, :FINDER] = True
    black[1 : FINDER - 1, 1 : FINDER - 1] = False
    black[2 : FINDER - 2, 2 : FINDER - 2] = True
    timing = np.arange(FINDER + 1, MODULES)
    black[0, timing] = black[timing, 0] = timing % 2 == 0
    return np.where(black, np.uint8(0), np.uint8(255))
