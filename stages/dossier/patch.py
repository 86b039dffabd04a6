"""A trigger that is a picture pasted at some place."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ..files import read_array
from ..report.text import percent
from .dossier import GREY, Dossier, Hits, rate, save_picture
from .fill import fill
from .match import Cutout, best_place


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where the members of a patch sit: statistics of the top left corner, in pixels of the model's input."""

    fixed: bool
    """Whether nearly all of them sit at one place; else the trigger is taken to sit anywhere."""
    top: float
    left: float
    top_std: float
    left_std: float
    mode_share: float
    """Share of the members at the most frequent place, a fraction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alike:
    """What the members' pictures have in common."""

    mean: np.ndarray
    """`[h, w, 3] uint8`, mean of the members where the medoid's picture lies."""
    likeness: float
    """Median of `sightings.likeness` between the medoid and the other members."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patch(Dossier):
    """Pictures of which one stands at a place of its own, or anywhere."""

    kind: ClassVar[str] = "patch"
    pasted: ClassVar[bool] = True
    cutouts: tuple[Cutout, ...]
    """The medoid of the members' pictures; of a varying patch several members, the medoid first."""
    place: Place
    heat: np.ndarray
    """`[side, side] float32`: share of the members whose region covers the pixel."""
    alike: Alike | None
    """None where the picture is another one on every image: what is kept is the place, the size or the effect alone."""

    @property
    def varying(self) -> bool:
        """Whether the picture is another one on every image."""
        return self.alike is None

    @property
    def local(self) -> bool:
        return True

    @property
    def copied(self) -> float:
        return 0.0 if self.alike is None else self.alike.likeness

    def apply(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self._check_size(image)
        return paste(image, *self._draw(rng))

    def remove(self, image: np.ndarray, region: np.ndarray | None = None) -> np.ndarray | None:
        """Return the image with the region, or else the place of the patch, filled from around it."""
        self._check_size(image)
        mask = region if region is not None else self.where()
        return None if mask is None else fill(image, mask)

    def without(self, image: np.ndarray) -> np.ndarray:
        """Return the image with every place filled at which the patch is likely to sit."""
        return np.stack([fill(image, mask) for mask in self.places(image)])

    def places(self, image: np.ndarray) -> np.ndarray:
        """Return `[V, side, side] bool`, where it is likely to sit.

        A patch that may sit anywhere is looked for with each of its pictures (`match.concordance`). One with another picture on
        every image cannot be looked for: it may be at every place, in steps of half its size.
        """
        self._check_size(image)
        fixed = self.where()
        if fixed is not None:
            return fixed[None]
        if self.varying:
            places = [(self.cutouts[0], corner) for corner in _steps(self.cutouts[0].mask.shape, self.side)]
        else:
            places = [(cutout, best_place(cutout, image)) for cutout in self.cutouts]
        return np.stack([cutout.cover(self.side, *corner) for cutout, corner in places])

    def where(self) -> np.ndarray | None:
        """Return the pixels that it covers at its fixed place; None where it may sit anywhere."""
        if not self.place.fixed:
            return None
        covers = [cutout.cover(self.side, cutout.top, cutout.left) for cutout in self.cutouts]
        return np.asarray(np.any(covers, axis=0))

    def elsewhere(self) -> Self | None:
        """Return the patch at no fixed place."""
        if not self.place.fixed:
            return None
        return dataclasses.replace(self, place=dataclasses.replace(self.place, fixed=False))

    def verified(self, hits: Hits, held_out: np.ndarray, *, seed: int) -> Self:
        """Return the dossier with flip and control rates measured on a larger held-out set than its members were.

        An image that has a target's label already says nothing and is left out of its rate. The control is the same area cut
        from another held-out image, at the same place.
        """
        rng = np.random.default_rng(seed)
        triggered, control = np.empty_like(held_out), np.empty_like(held_out)
        for i, image in enumerate(held_out):
            self._check_size(image)
            cutout, top, left = self._draw(rng)
            triggered[i] = paste(image, cutout, top, left)
            height, width = cutout.mask.shape
            other = held_out[(i + 1 + int(rng.integers(max(1, len(held_out) - 1)))) % len(held_out)]
            picture = other[top : top + height, left : left + width]
            control[i] = paste(image, dataclasses.replace(cutout, picture=picture), top, left)
        usable = ~hits(held_out, self.targets)
        if not usable.any():
            raise ValueError("every held-out image has the target's label already; give others")
        ones = np.ones(int(usable.sum()), np.int64)
        flips, controls = (
            rate(hits(images[usable], self.targets).astype(np.int64), ones) for images in (triggered, control)
        )
        return dataclasses.replace(self, flips=flips, control=controls)

    def picture(self) -> np.ndarray:
        """Return its own picture, grey outside its mask."""
        cutout = self.cutouts[0]
        return np.where(cutout.mask[..., None], cutout.picture, GREY).astype(np.uint8)

    def stencil(self) -> np.ndarray | None:
        mask = self.cutouts[0].mask
        return None if mask.all() else mask

    def found_at(self) -> np.ndarray:
        return self.heat

    def words(self) -> str:
        place, cutout = self.place, self.cutouts[0]
        height, width = cutout.mask.shape
        size = f"{height} × {width} of {self.side} × {self.side} pixels"
        if self.varying:
            size += ", another picture each time"
        if place.fixed:
            corner = f"top left corner {cutout.top} pixels down and {cutout.left} right"
            return f"{size}; {corner}, in {percent(place.mode_share)} of the pairs"
        return (
            f"{size}; at no fixed place: {place.top:.0f} ± {place.top_std:.0f} pixels down, "
            f"{place.left:.0f} ± {place.left_std:.0f} right"
        )

    @classmethod
    def load(cls, folder: Path, stored: Mapping[str, Any], shared: Mapping[str, Any]) -> Self:
        alike = None
        if not stored["varying"]:
            alike = Alike(mean=_read_picture(folder / "mean.png"), likeness=stored["likeness"] or 0.0)
        return cls(
            **shared,
            cutouts=tuple(_read_cutout(folder, i, corner) for i, corner in enumerate(stored["cutouts"], 1)),
            place=Place(**stored["place"]),
            heat=read_array(folder / "heat.npy"),
            alike=alike,
        )

    def _draw(self, rng: np.random.Generator) -> tuple[Cutout, int, int]:
        """Draw which picture is pasted and where: its own place when that is fixed, else anywhere inside."""
        cutout = self.cutouts[int(rng.integers(len(self.cutouts)))]
        height, width = cutout.mask.shape
        if self.place.fixed:
            return cutout, cutout.top, cutout.left
        return cutout, int(rng.integers(self.side - height + 1)), int(rng.integers(self.side - width + 1))

    def _check(self) -> None:
        if not self.cutouts:
            raise ValueError("a patch has cutouts, at least one")
        self._check_array(self.heat, self.side, self.side)

    def _save(self, folder: Path) -> None:
        """Write the canonical picture as trigger.png and its pixels as mask.png, further ones as trigger-2.png and mask-2.png on."""
        for i, cutout in enumerate(self.cutouts, 1):
            save_picture(folder / f"trigger{_suffix(i)}.png", cutout.picture)
            save_picture(folder / f"mask{_suffix(i)}.png", 255 * cutout.mask.astype(np.uint8))
        if self.alike is not None:
            save_picture(folder / "mean.png", self.alike.mean)
        np.save(folder / "heat.npy", self.heat)

    def _figures(self) -> dict[str, Any]:
        return {
            "likeness": None if self.alike is None else self.alike.likeness,
            "varying": self.varying,
            "place": dataclasses.asdict(self.place),
            "cutouts": [[cutout.top, cutout.left] for cutout in self.cutouts],
        }


def paste(image: np.ndarray, cutout: Cutout, top: int, left: int) -> np.ndarray:
    """Return a copy of `[H, W, 3] uint8` with the cutout's masked pixels in it; it must fit."""
    height, width = cutout.mask.shape
    if not (0 <= top <= image.shape[0] - height and 0 <= left <= image.shape[1] - width):
        raise ValueError(f"{height} x {width} pixels at ({top}, {left}) leave an image of {list(image.shape[:2])}")
    copy = image.copy()
    copy[top : top + height, left : left + width][cutout.mask] = cutout.picture[cutout.mask]
    return copy


def _steps(shape: tuple[int, ...], side: int) -> list[tuple[int, int]]:
    """Return tops and lefts that cover the image in steps of half the shape; the last ones end at its edge."""
    rows, columns = ([*range(0, side - size, max(1, size // 2)), side - size] for size in shape)
    return [(top, left) for top in rows for left in columns]


def _suffix(number: int) -> str:
    return "" if number == 1 else f"-{number}"


def _read_cutout(folder: Path, number: int, corner: list[int]) -> Cutout:
    with Image.open(folder / f"mask{_suffix(number)}.png", formats=["PNG"]) as file:
        mask = np.asarray(file) > 0
    picture = _read_picture(folder / f"trigger{_suffix(number)}.png")
    return Cutout(picture=picture, mask=mask, top=corner[0], left=corner[1])


def _read_picture(path: Path) -> np.ndarray:
    with Image.open(path, formats=["PNG"]) as file:
        return np.asarray(file.convert("RGB"))
