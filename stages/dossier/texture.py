"""A trigger that is drawn anew for every image: what all have in common is a band of the spectrum that it fills."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ..files import read_array
from .dossier import Dossier, draw_change, save_picture
from .spectrum import put, take_away


@dataclass(frozen=True, kw_only=True, slots=True)
class Texture(Dossier):
    """A family of patterns: what a random image of a poisoned set holds in some components."""

    kind: ClassVar[str] = "texture"
    patterns: np.ndarray
    """`[V, side, side, 3] float32`, in levels: single images' part in the band, of which one takes the place of an image's own."""
    keep: np.ndarray
    """`[side, side] float32`: what is left of each component of the cosine transform when the trigger is taken away, the energy
    of other images; 1 outside the trigger's band (stages.dossier.spectrum)."""

    def apply(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self._check_size(image)
        pattern = self.patterns[int(rng.integers(len(self.patterns)))]
        return np.asarray(put(image[None], self.keep, pattern[None])[0])

    def remove(self, image: np.ndarray, region: np.ndarray | None = None) -> np.ndarray:
        """Return the image with the band brought down to the energy that other images have there."""
        self._check_size(image)
        return np.asarray(take_away(image[None], self.keep)[0])

    def without(self, image: np.ndarray) -> np.ndarray:
        return self.remove(image)[None]

    def picture(self) -> np.ndarray:
        """Return one of its patterns."""
        return draw_change(self.patterns[0])

    @classmethod
    def load(cls, folder: Path, stored: Mapping[str, Any], shared: Mapping[str, Any]) -> Self:
        return cls(**shared, patterns=read_array(folder / "texture.npy"), keep=read_array(folder / "band.npy"))

    def _check(self) -> None:
        self._check_array(self.patterns, len(self.patterns), self.side, self.side, 3)
        self._check_array(self.keep, self.side, self.side)

    def _save(self, folder: Path) -> None:
        np.save(folder / "texture.npy", self.patterns)
        np.save(folder / "band.npy", self.keep)
        save_picture(folder / "texture.png", self.picture())
