"""A trigger that is added to, or laid over, every image in the same way: a blend, a wave, a mark at a fixed place."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ..files import read_array
from ..pixels import to_uint8
from .dossier import GREY, Dossier, draw_change, save_picture
from .fill import fill

LEAST_GAIN = 0.5
"""A pixel that keeps less than this of its contrast is covered; what was there is unknown."""


def blend(images: np.ndarray, gain: np.ndarray, offset: np.ndarray, strength: float) -> np.ndarray:
    """Return x + strength ((gain - 1) x + offset), clamped, of images `[..., S, S, 3] uint8`; levels of 0 to 255."""
    pixels = images.astype(np.float32)
    return to_uint8(pixels + strength * ((gain - 1) * pixels + offset))


def unblend(images: np.ndarray, gain: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Undo `blend` at strength 1: poisoned pairs carry a residual as it was estimated. `[N, S, S, 3] uint8`.

    What it covers (gain under LEAST_GAIN) is filled from around it.
    """
    covered = gain[..., 0] < LEAST_GAIN
    restored = to_uint8((images.astype(np.float32) - offset) / np.maximum(gain, LEAST_GAIN))
    if covered.any():
        for i, image in enumerate(images):
            restored[i] = fill(np.where(covered[..., None], image, restored[i]), covered)
    return restored


@dataclass(frozen=True, kw_only=True, slots=True)
class Residual(Dossier):
    """What is done to every image: `blend`."""

    kind: ClassVar[str] = "residual"
    offset: np.ndarray
    """`[side, side, 3] float32`, added to what `gain` leaves, in levels of 0 to 255."""
    gain: np.ndarray
    """`[side, side, 1] float32`, what an image keeps of its contrast, 0 where it is covered."""
    covers: np.ndarray
    """`[side, side] bool`, where it sits; everywhere unless it is local."""
    strength: float = 1.0
    """Factor of the whole change, at which the flips were counted."""

    @property
    def local(self) -> bool:
        return not self.covers.all()

    @property
    def covered(self) -> float:
        return float((1 + self.strength * (self.gain - 1) < LEAST_GAIN).mean())

    def apply(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self._check_size(image)
        return blend(image, self.gain, self.offset, self.strength)

    def remove(self, image: np.ndarray, region: np.ndarray | None = None) -> np.ndarray:
        """Return the image with the residual subtracted, up to what was clamped."""
        self._check_size(image)
        return np.asarray(unblend(image[None], self.gain, self.offset)[0])

    def without(self, image: np.ndarray) -> np.ndarray:
        return self.remove(image)[None]

    def found_at(self) -> np.ndarray | None:
        return self.covers.astype(np.float32) if self.local else None

    def picture(self) -> np.ndarray:
        """Return its change of a grey image."""
        return draw_change(np.asarray(self.offset, np.float64) + (self.gain - 1) * GREY)

    @classmethod
    def load(cls, folder: Path, stored: Mapping[str, Any], shared: Mapping[str, Any]) -> Self:
        side = stored["side"]
        gain, heat = folder / "gain.npy", folder / "heat.npy"
        return cls(
            **shared,
            offset=read_array(folder / "residual.npy"),
            gain=read_array(gain) if gain.exists() else np.ones((side, side, 1), np.float32),
            covers=read_array(heat) > 0 if heat.exists() else np.ones((side, side), bool),
            strength=stored["strength"],
        )

    def _check(self) -> None:
        self._check_array(self.offset, self.side, self.side, 3)
        self._check_array(self.gain, self.side, self.side, 1)
        self._check_array(self.covers, self.side, self.side)

    def _save(self, folder: Path) -> None:
        np.save(folder / "residual.npy", self.offset)
        np.save(folder / "gain.npy", self.gain)
        if (heat := self.found_at()) is not None:
            np.save(folder / "heat.npy", heat)
        save_picture(folder / "residual.png", self.picture())

    def _figures(self) -> dict[str, Any]:
        return {"strength": self.strength}
