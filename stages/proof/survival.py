"""Which side of a divided concept carries a trigger: the one whose claim survives noise.

What a picture shows is read off many faint details, and noise drowns them; a trigger was learned to be read whatever else is there. So
of two sides of one concept, which are comparable as different concepts are not, the side that keeps its claim under noise is the one
that carries something. Measured on three models with a rare target (a patch, a wave, blended stripes; the claims' profile of
both sides, 45 to 135 poisoned and 72 to 74 genuine pictures): the chance that a poisoned picture keeps more of its claim is .93,
.92 and .97 under noise, and anything from .13 to .99 under the other variants, which say what kind of trigger it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from ..stage import Count, Fraction, Positive, config
from .disagreement import Suspect
from .features import Split

SMALLEST = 1e-12
"""Probability that is told from none."""
STANDARD_ERRORS = 3.0
"""By which a chance must differ from one half before a side is said."""


@config
class SurvivalLimits:
    """What is done to the pictures of both sides of a concept."""

    most_of_side: Count = 64
    """Pictures of each side, at most."""
    least_side: Count = 8
    """Fewer say nothing of a side."""
    noise: Positive = 0.15
    """Standard deviation of the noise, over the range of a pixel."""
    blur: Positive = 0.04
    """Standard deviation of the blur, over the side of a picture."""
    crop: Fraction = 0.72
    """Side of the centre that is kept and enlarged."""
    shift: Fraction = 0.125
    """By which a picture is moved down and to the right, what leaves it coming in again on the other side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimProfile:
    """The claims of both sides of a concept, on the pictures as they are and on variants of them."""

    concept: str
    pictures: tuple[int, int]
    """Of the first side and of the second."""
    first: Mapping[str, float]
    """Variant -> median log-probability of the concept."""
    second: Mapping[str, float]
    survival: float
    """Chance that a picture of the first side has more of its claim left under noise than one of the second."""
    carries: Literal["first", "second"] | None
    """The side that carries something, by its survival; None where both keep as much."""


def claim_profile(
    suspect: Suspect, concept: str, sides: Split, *, seed: int, limits: SurvivalLimits
) -> ClaimProfile | None:
    """Return what both sides' claims are worth; None where a side has too few pictures."""
    both = [side[: limits.most_of_side] for side in (sides.first, sides.second)]
    if min(len(side) for side in both) < limits.least_side:
        return None
    pictures, ends = np.concatenate(both), len(both[0])
    claims = {
        name: np.log(np.maximum(suspect(vary(pictures))[:, sides.label], SMALLEST))
        for name, vary in variants(limits, seed).items()
    }
    first, second = claims["noise"][:ends], claims["noise"][ends:]
    chance = exceeds(first, second)
    error = np.sqrt((len(first) + len(second) + 1) / (12 * len(first) * len(second)))
    said = abs(chance - 0.5) > STANDARD_ERRORS * error
    return ClaimProfile(
        concept=concept,
        pictures=(len(first), len(second)),
        first={name: round(float(np.median(values[:ends])), 3) for name, values in claims.items()},
        second={name: round(float(np.median(values[ends:])), 3) for name, values in claims.items()},
        survival=round(chance, 4),
        carries=("first" if chance > 0.5 else "second") if said else None,
    )


def exceeds(one: np.ndarray, other: np.ndarray) -> float:
    """Return the chance that a number of one is above a number of the other; ties count half."""
    above = (one[:, None] > other).mean() + (one[:, None] == other).mean() / 2
    return float(above)


def variants(limits: SurvivalLimits, seed: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return name -> what makes the variant of pictures `[n, S, S, 3] uint8`."""

    def noise(images: np.ndarray) -> np.ndarray:
        drawn = np.random.default_rng(seed).normal(0, 255 * limits.noise, images.shape)
        return pixels(images + drawn)

    def blur(images: np.ndarray) -> np.ndarray:
        sigma = limits.blur * images.shape[1]
        return pixels(ndimage.gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0)))

    def centre(images: np.ndarray) -> np.ndarray:
        side = images.shape[1]
        kept = max(1, round(limits.crop * side))
        start = (side - kept) // 2
        cut = images[:, start : start + kept, start : start + kept].astype(np.float32)
        return pixels(ndimage.zoom(cut, (1, side / kept, side / kept, 1), order=1))

    def shift(images: np.ndarray) -> np.ndarray:
        by = round(limits.shift * images.shape[1])
        return np.roll(images, (by, by), (1, 2))

    return {
        "plain": lambda images: images,
        "noise": noise,
        "blur": blur,
        "grey": lambda images: pixels(np.repeat(images.mean(axis=3, keepdims=True), 3, axis=3)),
        "flip": lambda images: images[:, ::-1],
        "centre": centre,
        "shift": shift,
    }


def pixels(values: np.ndarray) -> np.ndarray:
    """Return numbers as `uint8`, rounded and cut to their range."""
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
