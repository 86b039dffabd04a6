"""What the searches for a trigger in a group of pictures share: their limits, and who of the group carries it."""

from collections.abc import Sequence
from dataclasses import field
from typing import Annotated

import numpy as np
from pydantic import Field

from ..stage import Count, Positive, Share, config


@config
class ResidualLimits:
    """How what a group has in common is estimated, and proven."""

    controls: Count = 8
    """Random groups whose patterns share the held-out images of the control."""
    strengths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0, 1.5)
    """Factors on the change, tried in this order until one proves it."""
    significance: Positive = 2.0
    """A component of the pattern is kept where its energy is above this times that of a group without trigger."""
    coarse_variance: Positive = 0.1
    """Largest mean energy of such a group under `coarse`, as a share of that of single images. Measured on the groups that the
    scan ranks first in eight concepts of a clean model: up to .23 of it in the worst band, .02 to .1 elsewhere."""
    fine_variance: Positive = 0.01
    """The same above it, beyond the 1/n of a mean of n images."""
    least_separation: Positive = 4.0
    """Members count as two kinds, with and without the trigger, when their means are this many standard deviations apart."""
    rounds: Count = 3
    """How often members are told apart and the estimate made anew."""
    gain_errors: Positive = 6.0
    """Standard errors by which a place must be flatter than the image at large to be taken as covered rather than added to."""
    local_share: Share = 0.6
    """A pattern is localised when this part of its energy lies in `max_local_area` of the image."""
    max_local_area: Share = 0.1
    """A fraction of the image."""


@config
class TextureLimits:
    """What counts as a band of the spectrum that is too strong."""

    excess: Positive = 4.0
    """Times the energy of other images from which on a component belongs to the trigger. Of 86 groups of a clean model (43
    concepts, both sides) 31 have such components, concepts with a texture of their own; the nearest flips 24 of 118 images."""
    kept: Count = 16
    """Textures that a trigger is shown and applied with."""


@config
class GroupLimits:
    """How a group of pictures is searched for a trigger that all of them carry."""

    least_group: Annotated[int, Field(ge=2)] = 8
    """Fewer images have no mean worth the name."""
    least_clean: Annotated[int, Field(ge=2)] = 32
    """Fewer others are no background to compare with."""
    coarse: Positive = 4.0
    """Half waves across the image, under which groups without trigger differ in layout: a bright middle, a dark rim."""
    residual: ResidualLimits = field(default_factory=ResidualLimits)
    """Of what they have in common in the mean."""
    texture: TextureLimits = field(default_factory=TextureLimits)
    """Of what they have in common in the spectrum."""


def carrying(uids: Sequence[str], members: np.ndarray) -> tuple[str, ...]:
    """Return those of `uids [n]` that are members `[n] bool`, sorted."""
    return tuple(sorted(uid for uid, carries in zip(uids, members, strict=True) if carries))
