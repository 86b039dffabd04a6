"""Triggers drawn anew for every image: nothing is common in the mean, but all have the same spectrum.

Fresh stripes or noise over the whole image leave no mean (stages.dossier.find_residual). What they share is where in the cosine
transform they put their energy: components in which the images of a group hold several times what other images do. The
proof takes those components from flagged images and puts them in the place of the same ones of held-out images; the
control does so with unflagged images. EftCLIP names such triggers its limitation; the route is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.fft import dctn

from ..proof.disagreement import Suspect
from .dossier import Proves, rate_of
from .groups import GroupLimits, carrying
from .spectrum import part, put
from .texture import Texture


@dataclass(frozen=True, slots=True)
class TextureProof:
    """What the band of one group's images does to held-out images."""

    keep: np.ndarray
    """`[S, S] float32`, see `Texture.keep`."""
    patterns: np.ndarray
    """`[V, S, S, 3] float32`, see `Texture.patterns`."""
    members: np.ndarray
    """`[n] bool`: images of the group that carry it."""
    flips: int
    control_flips: int
    """With the band of unflagged images."""
    trials: int
    """Held-out images that do not have the label anyway."""
    proven: bool
    """Whether the band flips and its control does not."""

    def dossier(self, claim: str, uids: Sequence[str]) -> Texture:
        """Return the dossier of the trigger; `uids [n]` are those of the group."""
        return Texture(
            id="",
            targets=(claim,),
            side=len(self.keep),
            flips=rate_of(self.flips, self.trials),
            control=rate_of(self.control_flips, self.trials),
            uids=carrying(uids, self.members),
            patterns=self.patterns,
            keep=self.keep,
        )


def prove_texture(
    suspect: Suspect,
    claim: int,
    group: np.ndarray,
    clean: np.ndarray,
    held_out: np.ndarray,
    *,
    seed: int,
    proves: Proves,
    limits: GroupLimits,
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
        proves: which rates prove a trigger.
        limits: of the search.

    Returns:
        None where the group's spectrum is that of other images, or where fewer than `least_group` carry the excess.

    Raises:
        ValueError: too few images, or every held-out image has the label already.
    """
    half = len(clean) // 2
    least, others = limits.least_group, 2 * limits.least_clean
    if len(group) < least or 2 * half < others:
        raise ValueError(f"a texture needs at least {least} images of a group and {others} others")
    background = clean[:half].astype(np.float32)
    centre = background.mean(axis=0)
    usual = _power(background - centre).mean(axis=0)
    own = _power(group.astype(np.float32) - centre)
    members = np.ones(len(group), bool)
    for _ in range(2):
        band = _band(own[members].mean(axis=0), usual, limits)
        if not band.any():
            return None
        # the band's energy of each image, over what is usual
        members = (own[:, band] / usual[band]).mean(axis=1) >= limits.texture.excess / 2
        if members.sum() < least:
            return None
    keep = np.where(band, np.sqrt(usual / own[members].mean(axis=0)), 1).astype(np.float32)
    usable = suspect.others(held_out, claim)
    rng = np.random.default_rng(seed)
    counts = []
    for sources in (group[members], clean[half:]):
        drawn = rng.permutation(len(sources))
        patterns = part(sources[drawn[np.arange(len(usable)) % len(drawn)]], keep)
        counts.append(int(suspect.says(put(usable, keep, patterns), claim).sum()))
    shown = rng.choice(np.flatnonzero(members), min(limits.texture.kept, int(members.sum())), replace=False)
    proven = proves(*(100 * count / len(usable) for count in counts))
    patterns = part(group[np.sort(shown)], keep)
    return TextureProof(keep, patterns, members, counts[0], counts[1], len(usable), proven)


def _power(images: np.ndarray) -> np.ndarray:
    """Return the energy of each component, mean over channels, `[N, S, S]`."""
    return np.asarray(np.square(dctn(images, axes=(1, 2), norm="ortho")).mean(axis=-1))


def _band(own: np.ndarray, usual: np.ndarray, limits: GroupLimits) -> np.ndarray:
    rows, columns = np.indices(own.shape)
    strong = own >= limits.texture.excess * (usual + 1.0)
    return np.asarray(strong & (np.hypot(rows, columns) >= limits.coarse))
