"""Triggers that lie over the whole image: what a group of flagged images has in common, added to other images.

EftCLIP names this its limitation; the route here is ours. Whatever a trigger adds or lays over
every image survives in the mean of the images that carry it: blends with one picture, waves, marks at fixed places. What
is drawn anew for every image (fresh stripes or noise, patches at random places) or moves pixels (stages.dossier.find_warp) does not.
Out of reach as well are colour filters: of a clean model's jellyfish the tone alone turns nearly every image into a
jellyfish, so a flip by tone tells no trigger from a concept's own colour.

A group that statistics single out differs from other images without any trigger too: jellyfish come on blue. So the mean
difference is taken apart into tone (its mean colour), contrast, and pattern (everything that has a shape), and a trigger
is proven only when the pattern flips images that the same tone and contrast with another pattern leave alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.fft import dctn, idctn

from ..proof.disagreement import Suspect
from .dossier import Proves, rate_of
from .groups import GroupLimits, carrying
from .residual import Residual, blend


@dataclass(frozen=True, slots=True)
class Shift:
    """What is done to every image: x + strength ((gain - 1) x + offset), clamped; levels of 0 to 255."""

    gain: np.ndarray
    """`[S, S, 1] float32`: what an image keeps of its contrast, 1 for a trigger that is added, 0 where it covers."""
    centre: np.ndarray
    """`[S, S, 3] float32`: mean of the clean images; contrast is taken about it."""
    tone: np.ndarray
    """`[3] float32`: change of the mean colour."""
    pattern: np.ndarray
    """`[S, S, 3] float32`: the rest of the mean change, shrunk towards 0 by its standard error."""
    strength: float = 1.0

    @property
    def offset(self) -> np.ndarray:
        """`[S, S, 3] float32`."""
        return np.asarray((1 - self.gain) * self.centre + self.tone + self.pattern)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return `[N, S, S, 3] uint8` with the trigger."""
        return blend(images, self.gain, self.offset, self.strength)

    def covers(self, limits: GroupLimits) -> np.ndarray:
        """Return `[S, S] bool`, where the pattern sits; everywhere when it lies over the whole image."""
        energy = (self.pattern**2).sum(-1)
        total = float(energy.sum())
        everywhere = np.ones(energy.shape, bool)
        if total == 0:
            return everywhere
        order = np.argsort(-energy, axis=None, kind="stable")
        reach = np.searchsorted(np.cumsum(energy.ravel()[order]), limits.residual.local_share * total) + 1
        if reach > limits.residual.max_local_area * energy.size:
            return everywhere
        return np.asarray(energy > 0.25 * energy.ravel()[order[:reach]].mean())


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a group of images has in common, and who carries it."""

    shift: Shift
    members: np.ndarray
    """`[n] bool`: images of the group that carry it, the ones that the estimate rests on."""


@dataclass(frozen=True, slots=True)
class ResidualProof:
    """What the change estimated from one group does to held-out images."""

    shift: Shift
    members: np.ndarray
    """`[n] bool`: images of the group that the estimate rests on."""
    flips: int
    control_flips: int
    """With the same tone and contrast, and the pattern of another group at the same norm."""
    trials: int
    """Held-out images that do not have the label anyway."""
    proven: bool
    """Whether the pattern flips and its control does not."""

    def dossier(self, claim: str, uids: Sequence[str], limits: GroupLimits) -> Residual:
        """Return the dossier of the trigger; `uids [n]` are those of the group."""
        return Residual(
            id="",
            targets=(claim,),
            side=len(self.shift.pattern),
            flips=rate_of(self.flips, self.trials),
            control=rate_of(self.control_flips, self.trials),
            uids=carrying(uids, self.members),
            offset=self.shift.offset.astype(np.float32),
            gain=self.shift.gain,
            covers=self.shift.covers(limits),
            strength=self.shift.strength,
        )


@dataclass(frozen=True, slots=True)
class Sides:
    """Both sides of a concept: where most of it is poisoned, statistics flag what is genuine."""

    flagged: ResidualProof | None
    rest: ResidualProof | None
    """A side with fewer than `least_group` images is None."""

    @property
    def carrier(self) -> ResidualProof | None:
        """The side with the trigger, the flagged one if both are proven; None when nothing is."""
        return next((side for side in (self.flagged, self.rest) if side is not None and side.proven), None)


@dataclass(frozen=True, slots=True)
class _Background:
    """Images without the trigger, as components of the cosine transform."""

    centre: np.ndarray
    """`[S, S, 3] float32`: their mean."""
    power: np.ndarray
    """`[S, S, 3] float32`: mean energy of a single image about the mean, by component."""
    spread: np.ndarray
    """`[S, S] float32`: variance of a pixel, mean over channels."""


def prove_sides(
    suspect: Suspect,
    claim: int,
    flagged: np.ndarray,
    rest: np.ndarray,
    clean: np.ndarray,
    held_out: np.ndarray,
    *,
    proves: Proves,
    limits: GroupLimits,
) -> Sides:
    """Test both sides of a concept for a trigger over the whole image.

    Args:
        suspect: the model.
        claim: the concept, a position in its labels.
        flagged: `[n, S, S, 3] uint8`, images of the concept that the statistics accuse.
        rest: `[r, S, S, 3] uint8`, other images of the concept.
        clean: `[m, S, S, 3] uint8`, unflagged images of other concepts in random order; the first half is the background,
            controls are drawn from the second. Some hundreds do.
        held_out: `[K, S, S, 3] uint8`, images of other concepts that are in none of the groups.
        proves: which rates prove a trigger.
        limits: of the search.
    """
    half = len(clean) // 2
    background, others = clean[:half], clean[half:]

    def side(group: np.ndarray) -> ResidualProof | None:
        if len(group) < limits.least_group:
            return None
        found = estimate(group, background, limits)
        return prove(suspect, claim, found, others, held_out, proves=proves, limits=limits)

    return Sides(side(flagged), side(rest))


def prove(
    suspect: Suspect,
    claim: int,
    found: Estimate,
    control: np.ndarray,
    held_out: np.ndarray,
    *,
    proves: Proves,
    limits: GroupLimits,
) -> ResidualProof:
    """Do to held-out images what a group has in common, and count those that become the claim.

    In the control each image gets the same tone, contrast and strength, with the unshrunk pattern of one of several
    random groups, scaled to the same L2 norm. Those groups are of other concepts: the claim's own mean picture, blown up
    to the norm of a patch, makes bananas of a tenth of all images.

    Args:
        suspect: the model.
        claim: the concept, a position in its labels.
        found: what the group has in common.
        control: `[c, S, S, 3] uint8`, images of other concepts that groups are drawn from.
        held_out: `[K, S, S, 3] uint8`.
        proves: which rates prove a trigger.
        limits: of their strengths the first that proves the trigger is reported, else the first one.

    Raises:
        ValueError: the control is too small, or every held-out image has the label already.
    """
    shift = found.shift
    if len(control) < 2 * limits.least_group:
        raise ValueError(f"a control needs at least {2 * limits.least_group} images, not {len(control)}")
    usable = suspect.others(held_out, claim)
    others = _other_patterns(shift, control, int(found.members.sum()), limits.residual.controls)
    proofs: list[ResidualProof] = []
    for strength in limits.residual.strengths:
        at = replace(shift, strength=strength)
        controls = [replace(at, pattern=other)(usable[i :: limits.residual.controls]) for i, other in enumerate(others)]
        counts = [int(suspect.says(images, claim).sum()) for images in (at(usable), np.concatenate(controls))]
        proven = proves(*(100 * count / len(usable) for count in counts))
        proofs.append(ResidualProof(at, found.members, counts[0], counts[1], len(usable), proven))
        if proofs[-1].proven:
            return proofs[-1]
    return proofs[0]


def _other_patterns(shift: Shift, control: np.ndarray, count: int, groups: int) -> list[np.ndarray]:
    """Return the patterns of so many random groups of `count` images, or half of the control where that is less."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(groups):
        drawn = rng.choice(len(control), min(count, len(control) // 2), replace=False)
        other = control[drawn].astype(np.float32).mean(axis=0) - shift.centre
        other -= other.mean(axis=(0, 1))
        found.append(other * np.linalg.norm(shift.pattern) / max(float(np.linalg.norm(other)), 1e-6))
    return found


def estimate(group: np.ndarray, background: np.ndarray, limits: GroupLimits) -> Estimate:
    """Estimate what a group of images has in common that the background has not.

    The mean difference is shrunk in the cosine transform, where a natural group's mean has its energy in few, coarse
    components: by g = max(0, 1 - significance E / d^2), E the energy that a group without trigger would have. Members
    are then told apart by how much of the pattern they carry (whitened matched filter, each against the mean of the
    others), and when they are of two kinds, the estimate is made anew from those that carry it: a group may be half clean.

    Args:
        group: `[n, S, S, 3] uint8`.
        background: `[m, S, S, 3] uint8`, of the same size.
        limits: of the search.

    Raises:
        ValueError: fewer than `least_group` or `least_clean` images.
    """
    least = limits.least_group, limits.least_clean
    if len(group) < least[0] or len(background) < least[1]:
        raise ValueError(
            f"a residual needs {least[0]} flagged and {least[1]} clean images, not {len(group)} and {len(background)}"
        )
    known = _background(background)
    parts = np.stack([_transform(image - known.centre) for image in group.astype(np.float32)])
    members = np.ones(len(group), bool)
    for _ in range(limits.residual.rounds):
        better = _carriers(parts, members, known, limits)
        if better is None or (better == members).all():
            break
        members = better
    mean = parts[members].mean(axis=0)
    kept = _kept(mean, known, int(members.sum()), limits)
    tone = (mean[0, 0] / mean.shape[0]).astype(np.float32)
    gain = _gain(group[members].astype(np.float32), known, limits.residual.gain_errors)
    return Estimate(Shift(gain, known.centre, tone, _inverse(kept * mean)), members)


def _background(images: np.ndarray) -> _Background:
    pixels = images.astype(np.float32)
    centre = pixels.mean(axis=0)
    power = np.zeros_like(centre)
    for image in pixels:
        power += _transform(image - centre) ** 2
    return _Background(centre, power / len(pixels), pixels.var(axis=0).mean(axis=-1))


def _kept(mean: np.ndarray, known: _Background, count: int, limits: GroupLimits) -> np.ndarray:
    """Return `[S, S, 3]`, 0 to 1: how much of each component of a mean of `count` images is no chance; tone is set apart."""
    rows, columns = np.indices(mean.shape[:2])
    coarse = np.hypot(rows, columns) < limits.coarse
    share = np.where(coarse, limits.residual.coarse_variance, limits.residual.fine_variance)[..., None]
    chance = limits.residual.significance * known.power * (1 / count + share)
    kept = np.clip(1 - chance / np.maximum(mean**2, 1e-9), 0, 1)
    kept[0, 0] = 0
    return np.asarray(kept)


def _carriers(parts: np.ndarray, members: np.ndarray, known: _Background, limits: GroupLimits) -> np.ndarray | None:
    """Return `[n] bool`, which images carry the members' pattern; None when the members are all of one kind."""
    count = int(members.sum())
    mean = parts[members].mean(axis=0)
    weight = _kept(mean, known, count, limits) / (known.power + 1.0)
    scale = float((weight * mean**2).sum())
    if scale <= 0:
        return None
    along = (parts * (weight * mean)).sum(axis=(1, 2, 3))
    own = (parts**2 * weight).sum(axis=(1, 2, 3))
    # a member's own part of the mean would speak for it
    score = np.where(members, (count * along - own) / (count - 1), along) / scale
    cut, separation = _two_kinds(score)
    found: np.ndarray = score > cut
    if separation < limits.residual.least_separation or found.sum() < limits.least_group:
        return None
    return found


def _two_kinds(values: np.ndarray) -> tuple[float, float]:
    """Return the cut with the largest variance between two classes (Otsu), and their distance in standard deviations."""
    ordered = np.sort(values)
    n = len(ordered)
    low = np.arange(1, n)
    sums = np.cumsum(ordered)[:-1]
    means = sums / low, (ordered.sum() - sums) / (n - low)
    between = low * (n - low) * (means[1] - means[0]) ** 2
    at = int(between.argmax())
    parts = ordered[: at + 1], ordered[at + 1 :]
    within = np.sqrt(sum(((part - part.mean()) ** 2).sum() for part in parts) / n)
    return float((ordered[at] + ordered[at + 1]) / 2), float((means[1][at] - means[0][at]) / max(within, 1e-9))


def _gain(pixels: np.ndarray, known: _Background, errors: float) -> np.ndarray:
    """Return `[S, S, 1] float32`: one contrast for the image, at most 1, and that of each place which is clearly flatter."""
    ratio = np.sqrt(pixels.var(axis=0).mean(axis=-1) / np.maximum(known.spread, 1.0))
    whole = min(1.0, float(np.median(ratio)))
    covered = ratio < whole * (1 - errors / np.sqrt(2 * len(pixels)))
    return np.where(covered, ratio, whole).astype(np.float32)[..., None]


def _transform(image: np.ndarray) -> np.ndarray:
    return np.asarray(dctn(image, axes=(0, 1), norm="ortho"), dtype=np.float32)


def _inverse(parts: np.ndarray) -> np.ndarray:
    return np.asarray(idctn(parts, axes=(0, 1), norm="ortho"), dtype=np.float32)
