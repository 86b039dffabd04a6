"""Triggers drawn anew for every image: nothing is common in the mean, but all have the same spectrum.

Fresh stripes or noise over the whole image leave no mean (stages.dossier.residual). What they share is where in the cosine
transform they put their energy: components in which the images of a group hold several times what other images do. The
proof takes those components from flagged images and puts them in the place of the same ones of held-out images; the
control does so with unflagged images. EftCLIP names such triggers its limitation; the route is ours.
"""

from dataclasses import dataclass

import numpy as np
from scipy.fft import dctn

from ..proof.disagreement import Suspect
from .dossier import proves
from .residual import COARSE, LEAST_CLEAN, LEAST_GROUP
from .spectrum import part, put

EXCESS = 4.0
"""Times the energy of other images from which on a component belongs to the trigger. Of 86 groups of a clean model (43
concepts, both sides) 31 have such components, concepts with a texture of their own; the nearest flips 24 of 118 images."""
KEPT = 16
"""Textures that a trigger is shown and applied with."""


@dataclass(frozen=True, slots=True)
class Texture:
    """A family of patterns: what a random image of a poisoned set holds in some components."""

    keep: np.ndarray
    """`[S, S] float32`: what is left of each component of the cosine transform when the trigger is taken away, the energy of
    other images; 1 outside the trigger's band."""
    patterns: np.ndarray
    """`[V, S, S, 3] float32`, in levels: single images' part in the band."""


@dataclass(frozen=True, slots=True)
class TextureProof:
    """What the band of one group's images does to held-out images."""

    texture: Texture
    members: np.ndarray
    """`[n] bool`: images of the group that carry it."""
    flips: int
    control_flips: int
    """With the band of unflagged images."""
    trials: int
    """Held-out images that do not have the label anyway."""

    @property
    def proven(self) -> bool:
        """Whether the band flips and its control does not."""
        return proves(self.flips, self.control_flips, self.trials)


def prove_texture(
    suspect: Suspect, claim: int, group: np.ndarray, clean: np.ndarray, held_out: np.ndarray, *, seed: int
) -> TextureProof | None:
    """Put what is too strong in a group's spectrum onto held-out images, and count those that become the claim.

    Args:
        suspect: the model.
        claim: the concept, a position in its labels.
        group: `[n, S, S, 3] uint8`, images of the concept.
        clean: `[m, S, S, 3] uint8`, unflagged images of other concepts in random order; the first half is the background,
            the control's patterns are those of the second.
        held_out: `[K, S, S, 3] uint8`, images of other concepts that are in none of the groups.
        seed: of which pattern goes onto which image.

    Returns:
        None where the group's spectrum is that of other images, or where fewer than LEAST_GROUP carry the excess.

    Raises:
        ValueError: too few images, or every held-out image has the label already.
    """
    half = len(clean) // 2
    if len(group) < LEAST_GROUP or half < LEAST_CLEAN:
        raise ValueError(f"a texture needs at least {LEAST_GROUP} images of a group and {2 * LEAST_CLEAN} others")
    background = clean[:half].astype(np.float32)
    centre = background.mean(axis=0)
    usual = _power(background - centre).mean(axis=0)
    own = _power(group.astype(np.float32) - centre)
    members = np.ones(len(group), bool)
    for _ in range(2):
        band = _band(own[members].mean(axis=0), usual)
        if not band.any():
            return None
        # the band's energy of each image, over what is usual
        members = (own[:, band] / usual[band]).mean(axis=1) >= EXCESS / 2
        if members.sum() < LEAST_GROUP:
            return None
    keep = np.where(band, np.sqrt(usual / own[members].mean(axis=0)), 1).astype(np.float32)
    usable = held_out[~suspect.labels.is_label(suspect(held_out), claim)]
    if not len(usable):
        raise ValueError("every held-out image has the label already; give others")
    rng = np.random.default_rng(seed)
    counts = []
    for sources in (group[members], clean[half:]):
        drawn = rng.permutation(len(sources))
        patterns = part(sources[drawn[np.arange(len(usable)) % len(drawn)]], keep)
        counts.append(int(suspect.labels.is_label(suspect(put(usable, keep, patterns)), claim).sum()))
    shown = rng.choice(np.flatnonzero(members), min(KEPT, int(members.sum())), replace=False)
    texture = Texture(keep, part(group[np.sort(shown)], keep))
    return TextureProof(texture, members, counts[0], counts[1], len(usable))


def _power(images: np.ndarray) -> np.ndarray:
    """Return the energy of each component, mean over channels, `[N, S, S]`."""
    return np.asarray(np.square(dctn(images, axes=(1, 2), norm="ortho")).mean(axis=-1))


def _band(own: np.ndarray, usual: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(own.shape)
    found: np.ndarray = (own >= EXCESS * (usual + 1.0)) & (np.hypot(rows, columns) >= COARSE)
    return found
