"""A trigger that moves pixels: each is read a little beside its place."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from scipy.ndimage import map_coordinates

from ..files import read_array
from ..pixels import to_uint8
from .dossier import Dossier, draw_change, save_picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Warp(Dossier):
    """A smooth field of displacements, the same for every image."""

    kind: ClassVar[str] = "warp"
    field: np.ndarray
    """`[side, side, 2] float32`, how far down and right of its place a pixel is read, in pixels."""

    def apply(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self._moved(image, self.field)

    def remove(self, image: np.ndarray, region: np.ndarray | None = None) -> np.ndarray:
        """Return the image with the warp undone to first order."""
        return self._moved(image, -self.field)

    def without(self, image: np.ndarray) -> np.ndarray:
        return self.remove(image)[None]

    def picture(self) -> np.ndarray:
        """Return its displacement, red down and green right."""
        return draw_change(np.concatenate([self.field, np.zeros_like(self.field[..., :1])], axis=-1))

    @classmethod
    def load(cls, folder: Path, stored: Mapping[str, Any], shared: Mapping[str, Any]) -> Self:
        return cls(**shared, field=read_array(folder / "warp.npy"))

    def _moved(self, image: np.ndarray, field: np.ndarray) -> np.ndarray:
        self._check_size(image)
        rows, columns = np.mgrid[: self.side, : self.side].astype(np.float64)
        source = [rows + field[..., 0], columns + field[..., 1]]
        channels = [
            map_coordinates(image[..., c].astype(np.float64), source, order=1, mode="nearest") for c in range(3)
        ]
        return to_uint8(np.stack(channels, axis=-1))

    def _check(self) -> None:
        self._check_array(self.field, self.side, self.side, 2)

    def _save(self, folder: Path) -> None:
        np.save(folder / "warp.npy", self.field)
        save_picture(folder / "warp.png", self.picture())
