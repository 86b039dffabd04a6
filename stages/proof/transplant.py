"""The proof of a trigger: pasted onto other images it brings the claimed label along, and an equal area does not."""

from dataclasses import dataclass

import numpy as np

from ..samples import seeded_hash
from .disagreement import Suspect


@dataclass(frozen=True, slots=True)
class Flips:
    """What pasting did; counts of held-out images that did not have the label before."""

    trials: int
    flips: int
    """With the region."""
    control_flips: int | None
    """With the control region; None where the region's own flips were too few for it to matter."""


def transplant(suspect: Suspect, image: np.ndarray, mask: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Paste what the mask `[S, S] bool` shows of the image `[S, S, 3] uint8` at its own place onto `[K, S, S, 3] uint8`.

    Returns:
        p(y|x) of the pasted images, `[K, C] float64`.
    """
    return suspect(np.where(mask[None, :, :, None], image[None], onto))


def control_mask(mask: np.ndarray, uid: str, seed: int) -> np.ndarray:
    """Return the mask `[S, S] bool` moved elsewhere in the image: same area and shape, no overlap, place drawn by uid.

    [R] The move is drawn among those that keep the mask in the image; if all of them overlap the region, the mask may
    wrap around the edges; if every move overlaps, the moves that overlap least are drawn from.
    """
    height, width = mask.shape
    spectrum = np.fft.rfft2(mask)
    overlap = np.fft.irfft2(spectrum * spectrum.conj(), s=mask.shape).round().astype(np.int64)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    # A move by d rows on the torus stays inside when it takes the last row no further than the edge, or is a move up.
    down = np.arange(height)
    right = np.arange(width)
    inside_rows = (down + rows[-1] < height) | (down >= height - rows[0])
    inside_columns = (right + columns[-1] < width) | (right >= width - columns[0])
    inside = inside_rows[:, None] & inside_columns[None, :]
    free = inside & (overlap == 0)
    moves = np.argwhere(free if free.any() else overlap == overlap.min())
    draw = int(seeded_hash([uid], seed, "transplant control")[0])
    by = moves[draw % len(moves)]
    return np.roll(mask, (int(by[0]), int(by[1])), axis=(0, 1))


def count_flips(
    suspect: Suspect,
    image: np.ndarray,
    mask: np.ndarray,
    label: int,
    onto: np.ndarray,
    enough: float,
    uid: str,
    seed: int,
) -> Flips:
    """Count the held-out images that become the label (or a synonym) with the region, and with the control.

    [R] Borrowed from SentiNet and PatchSearch; EftCLIP does not say how it proves a region.

    Args:
        suspect: the model.
        image: `[S, S, 3] uint8`.
        mask: `[S, S] bool`, the region.
        label: the claim.
        onto: `[K, S, S, 3] uint8` held-out images that do not have the label.
        enough: share of flips from which on the control is pasted as well, a fraction.
        uid: of the pair; with the seed it places the control.
        seed: of the control's place.
    """

    def flips(pasted: np.ndarray) -> int:
        return int(suspect.labels.is_label(transplant(suspect, image, pasted, onto), label).sum())

    if not len(onto):
        return Flips(0, 0, None)
    found = flips(mask)
    return Flips(len(onto), found, flips(control_mask(mask, uid, seed)) if found >= enough * len(onto) else None)
