"""The dossier of a trigger: what it looks like, where it sits, what it makes of an image, and how surely."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from ..attack.triggers.pixels import to_uint8
from ..evaluation.intervals import rate_interval
from ..proof.disagreement import Suspect
from .spectrum import put, take_away

Kind = Literal["patch", "residual", "texture", "warp"]
LEAST_GAIN = 0.5
"""A pixel that keeps less than this of its contrast is covered; what was there is unknown."""

Hits = Callable[[np.ndarray, Sequence[str]], np.ndarray]
"""Images `[N, S, S, 3] uint8` and targets -> `[N] bool`: the suspect model's label is a target or a synonym of one."""

MIN_FLIPS_PCT = 50.0
MAX_CONTROL_PCT = 10.0
"""A trigger is proven from these rates on: half of the pictures with it flip, and of those with a control a tenth at most."""
ALONE_FLIPS_PCT = 90.0
"""And where no statistic names a target of it and its picture is no copy, when the 95 % interval lies above this one: the
success from which `clipsan bench` admits an attack. A small thing that always looks alike is a cause too: pasted onto pictures
of other things drawn cups make 51 to 81 % of them their own class, drawn cars 90 % (87 to 93), drawn butterflies all of them,
with no poison about. Of the backdoors measured, the one that no statistic named flips 99 % (98 to 100)."""
ALONE_CONTROL_PCT = 1.0
"""And when its control flips at most so many. A thing has parts and edges that the found region leaves out, and they speak for
its class too: the controls of those cups, cars and butterflies flip 1.9 to 5.3 %. Beside a stamp there is nothing of it: the
controls of the backdoors measured flip 0 to 0.8 %."""
COPY_LIKENESS = 0.95
"""A picture is a copy from this median likeness of its members on. Stamped patches lie at 1.00, things that were drawn
anew at 0.92 at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A share of trials, with its 95 % interval."""

    pct: float
    low_pct: float
    high_pct: float
    trials: int


def proves(flips: int, control_flips: int, trials: int) -> bool:
    """Tell whether a trigger that flips so many held-out images, and its control so many, is proven."""
    return 100 * flips >= MIN_FLIPS_PCT * trials and 100 * control_flips <= MAX_CONTROL_PCT * trials


def rate(hits: np.ndarray, trials: np.ndarray) -> Rate:
    """Return the pooled rate of `hits [N]` in `trials [N]`, both whole numbers; what is resampled is the row.

    Raises:
        ValueError: there is no trial.
    """
    low, high = rate_interval(hits, trials)
    total = int(trials.sum())
    return Rate(pct=100 * float(hits.sum()) / total, low_pct=100 * low, high_pct=100 * high, trials=total)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cutout:
    """One picture of a patch, in pixels of the model's input."""

    picture: np.ndarray
    """`[h, w, 3] uint8`."""
    mask: np.ndarray
    """`[h, w] bool`: which of its pixels belong to the trigger."""
    top: int
    left: int

    def __post_init__(self) -> None:
        if self.picture.dtype != np.uint8 or self.picture.shape != (*self.mask.shape, 3) or not self.mask.any():
            raise ValueError("a cutout is a picture [h, w, 3] uint8 with a mask [h, w] that is not empty")


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
class Dossier:
    """One trigger. Positions and sizes are in pixels of the model's input, `side` x `side`."""

    id: str
    """"t1", "t2", ...; "" until `number` gives one."""
    kind: Kind
    targets: tuple[str, ...]
    """Labels that it makes of an image."""
    side: int
    flips: Rate
    """Held-out images that become a target with the trigger."""
    control: Rate
    """Those that do with an equal area of something else (of a residual: with another group's pattern)."""
    uids: tuple[str, ...]
    """Pairs that the proof rests on, sorted."""
    cutouts: tuple[Cutout, ...] = ()
    """Patches: the medoid of the members' pictures; of a varying patch several members, the medoid first."""
    mean: np.ndarray | None = None
    """Patches: `[h, w, 3] uint8`, mean of the members where the medoid's picture lies."""
    likeness: float | None = None
    """Patches of one picture: median of `sightings.likeness` between the medoid and the other members."""
    varying: bool = False
    """Patches: the picture is another one on every image; what is kept is the place, the size or the effect alone."""
    place: Place | None = None
    """Patches only."""
    heat: np.ndarray | None = None
    """`[side, side] float32`: share of the members whose region covers the pixel; None: the whole image."""
    effect: np.ndarray | None = None
    """residual: `[side, side, 3] float32`, added to what `gain` leaves, in levels of 0 to 255. texture: `[V, side, side, 3]
    float32`, patterns of which one takes the place of the image's own part in `band`. warp: `[side, side, 2] float32`, how
    far down and right of its place a pixel is read, in pixels."""
    gain: np.ndarray | None = None
    """residual: `[side, side, 1] float32`, what an image keeps of its contrast, 0 where it is covered; None: everything."""
    band: np.ndarray | None = None
    """texture: `[side, side] float32`, see stages.dossier.spectrum."""
    strength: float = 1.0
    """Factor of a residual's whole change."""
    pairs_swept: int | None = None
    """Pairs that carry it by the sweep back; None before that."""

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("a dossier names at least one target")
        if self.kind == "patch":
            if not self.cutouts or self.place is None or self.effect is not None:
                raise ValueError("a patch has cutouts and a place, and no effect on the whole image")
            return
        shape = (self.side, self.side, 2 if self.kind == "warp" else 3)
        texture = self.kind == "texture"
        if (
            self.cutouts
            or self.effect is None
            or self.effect.shape[texture:] != shape
            or texture != (self.band is not None)
        ):
            many = "V, " if texture else ""
            raise ValueError(
                f"a trigger of kind {self.kind} is an array [{many}{', '.join(map(str, shape))}], without cutouts"
                + (", and a band" if texture else "")
            )

    @property
    def pairs(self) -> int:
        """Pairs before the sweep back."""
        return len(self.uids)

    @property
    def proven(self) -> bool:
        """Whether the trigger flips held-out images and its control does not."""
        return self.flips.pct >= MIN_FLIPS_PCT and self.control.pct <= MAX_CONTROL_PCT

    def stands(self, named: Collection[str]) -> bool:
        """Tell whether it is proven, where the statistics name the concepts `named`."""
        copied = self.likeness is not None and self.likeness >= COPY_LIKENESS
        vouched = copied or not set(named).isdisjoint(self.targets)
        alone = self.flips.low_pct >= ALONE_FLIPS_PCT and self.control.pct <= ALONE_CONTROL_PCT
        return self.proven and (vouched or alone)


def number(dossiers: Sequence[Dossier]) -> tuple[Dossier, ...]:
    """Return them with ids t1, t2, ..., those with the most pairs first."""
    ordered = sorted(dossiers, key=lambda d: (-d.pairs, d.targets, d.kind, d.uids))
    return tuple(dataclasses.replace(dossier, id=f"t{i}") for i, dossier in enumerate(ordered, 1))


def paste(image: np.ndarray, cutout: Cutout, top: int, left: int) -> np.ndarray:
    """Return a copy of `[H, W, 3] uint8` with the cutout's masked pixels in it; it must fit."""
    height, width = cutout.mask.shape
    if not (0 <= top <= image.shape[0] - height and 0 <= left <= image.shape[1] - width):
        raise ValueError(f"{height} x {width} pixels at ({top}, {left}) leave an image of {list(image.shape[:2])}")
    copy = image.copy()
    copy[top : top + height, left : left + width][cutout.mask] = cutout.picture[cutout.mask]
    return copy


def _draw(dossier: Dossier, rng: np.random.Generator) -> tuple[Cutout, int, int]:
    """Draw which picture is pasted and where: its own place when that is fixed, else anywhere inside."""
    if dossier.place is None:
        raise ValueError("only a patch has a place")
    cutout = dossier.cutouts[int(rng.integers(len(dossier.cutouts)))]
    height, width = cutout.mask.shape
    if dossier.place.fixed:
        return cutout, cutout.top, cutout.left
    return cutout, int(rng.integers(dossier.side - height + 1)), int(rng.integers(dossier.side - width + 1))


def apply_trigger(dossier: Dossier, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a copy of the image with the trigger: pasted, added, or the whole image changed by it.

    Args:
        dossier: of any kind.
        image: `[side, side, 3] uint8`, as the model sees it (`Inputs.preprocess`).
        rng: draws the place of a patch without a fixed one, and the picture of what varies.
    """
    _check_size(dossier, image)
    if dossier.kind == "patch":
        return paste(image, *_draw(dossier, rng))
    return _changed(dossier, image, 1.0, rng)


def _changed(dossier: Dossier, image: np.ndarray, sign: float, rng: np.random.Generator | None = None) -> np.ndarray:
    """Return the image with the trigger (sign 1; a texture is drawn by `rng`) or without it (sign -1)."""
    effect = np.asarray(dossier.effect)
    if dossier.kind == "residual":
        return _blended(dossier, image, effect) if sign > 0 else _unblended(dossier, image, effect)
    if dossier.kind == "texture":
        band = np.asarray(dossier.band)
        if rng is None:
            return np.asarray(take_away(image[None], band)[0])
        return np.asarray(put(image[None], band, effect[int(rng.integers(len(effect)))][None])[0])
    rows, columns = np.mgrid[: dossier.side, : dossier.side].astype(np.float64)
    source = [rows + sign * effect[..., 0], columns + sign * effect[..., 1]]
    channels = [map_coordinates(image[..., c].astype(np.float64), source, order=1, mode="nearest") for c in range(3)]
    return to_uint8(np.stack(channels, axis=-1))


def _blended(dossier: Dossier, image: np.ndarray, offset: np.ndarray) -> np.ndarray:
    pixels = image.astype(np.float32)
    gain = 1.0 if dossier.gain is None else dossier.gain
    return to_uint8(pixels + dossier.strength * ((gain - 1) * pixels + offset))


def _unblended(dossier: Dossier, image: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Undo a residual at strength 1: poisoned pairs carry it as it was estimated. What it covers is filled from around it."""
    pixels = image.astype(np.float32) - offset
    if dossier.gain is None:
        return to_uint8(pixels)
    covered = dossier.gain[..., 0] < LEAST_GAIN
    restored = to_uint8(pixels / np.maximum(dossier.gain, LEAST_GAIN))
    return fill(np.where(covered[..., None], image, restored), covered) if covered.any() else restored


def remove_trigger(dossier: Dossier, image: np.ndarray, region: np.ndarray | None = None) -> np.ndarray | None:
    """Return a copy of a victim's image without the trigger, or None when nobody knows where it sits.

    A patch is filled from around it; a residual is subtracted, up to what was clamped; a texture's band is brought down to
    the energy that other images have there; a warp is undone to first order.

    Args:
        dossier: of any kind.
        image: `[side, side, 3] uint8`.
        region: `[side, side] bool`, the pair's own proven region; None for pairs that the sweep back found.
    """
    _check_size(dossier, image)
    if dossier.kind != "patch":
        return _changed(dossier, image, -1.0)
    mask = region if region is not None else where(dossier)
    return None if mask is None else fill(image, mask)


def where(dossier: Dossier) -> np.ndarray | None:
    """Return `[side, side] bool`, the pixels that a patch with a fixed place covers; None where it may sit anywhere."""
    if dossier.place is None or not dossier.place.fixed:
        return None
    covered = np.zeros((dossier.side, dossier.side), bool)
    for cutout in dossier.cutouts:
        height, width = cutout.mask.shape
        covered[cutout.top : cutout.top + height, cutout.left : cutout.left + width] |= cutout.mask
    return covered


def fill(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a copy of `[H, W, 3] uint8` with the masked pixels replaced by a blur of those around them.

    The blur weighs only pixels outside (normalised convolution), in steps of growing width, each filling what the one
    before could not reach. A margin of one pixel is replaced too: a region's edge is seldom exact.
    """
    hidden = gaussian_filter(mask.astype(np.float64), 0.8, truncate=1.5) > 0.05
    weight = (~hidden).astype(np.float64)
    if not weight.any():
        return np.full_like(image, 128)
    filled = image.astype(np.float64)
    todo = hidden
    sigma = 1.0
    while todo.any():
        near = gaussian_filter(weight, sigma, mode="constant")
        blurred = np.stack([gaussian_filter(image[..., c] * weight, sigma, mode="constant") for c in range(3)], axis=-1)
        reached = todo & (near > 0.05)
        filled[reached] = blurred[reached] / near[reached][:, None]
        todo = todo & ~reached
        sigma *= 2
    return to_uint8(filled)


def hits_of(suspect: Suspect) -> Hits:
    """Return what tells whether the suspect model takes images for a target."""
    labels = suspect.labels

    def hits(images: np.ndarray, targets: Sequence[str]) -> np.ndarray:
        probabilities = suspect(images)
        found: np.ndarray = np.any([labels.is_label(probabilities, labels.index(name)) for name in targets], axis=0)
        return found

    return hits


def verify(hits: Hits, dossier: Dossier, held_out: np.ndarray, *, seed: int) -> Dossier:
    """Return the dossier with flip and control rates measured on a larger held-out set than its members were.

    An image that has a target's label already says nothing and is left out of its rate. The control of a patch is the same
    area cut from another held-out image, at the same place; what changes the whole image keeps the control that it came
    with.

    Args:
        hits: the suspect model, see `hits_of`.
        dossier: of any kind.
        held_out: `[N, side, side, 3] uint8`, images without the trigger.
        seed: of the places, of a varying patch's pictures, and of the controls.

    Raises:
        ValueError: every held-out image has a target's label already.
    """
    rng = np.random.default_rng(seed)
    triggered = np.empty_like(held_out)
    control = np.empty_like(held_out)
    for i, image in enumerate(held_out):
        _check_size(dossier, image)
        if dossier.kind == "patch":
            cutout, top, left = _draw(dossier, rng)
            triggered[i] = paste(image, cutout, top, left)
            height, width = cutout.mask.shape
            other = held_out[(i + 1 + int(rng.integers(max(1, len(held_out) - 1)))) % len(held_out)]
            picture = other[top : top + height, left : left + width]
            control[i] = paste(image, dataclasses.replace(cutout, picture=picture), top, left)
            continue
        triggered[i] = _changed(dossier, image, 1.0, rng)
    usable = ~hits(held_out, dossier.targets)
    if not usable.any():
        raise ValueError("every held-out image has the target's label already; give others")
    ones = np.ones(int(usable.sum()), np.int64)
    flips = rate(hits(triggered[usable], dossier.targets).astype(np.int64), ones)
    if dossier.kind != "patch":
        return dataclasses.replace(dossier, flips=flips)
    controls = rate(hits(control[usable], dossier.targets).astype(np.int64), ones)
    return dataclasses.replace(dossier, flips=flips, control=controls)


def _check_size(dossier: Dossier, image: np.ndarray) -> None:
    if image.shape != (dossier.side, dossier.side, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"trigger {dossier.id}: an image must be [{dossier.side}, {dossier.side}, 3] uint8, "
            f"not {list(image.shape)} {image.dtype}"
        )
