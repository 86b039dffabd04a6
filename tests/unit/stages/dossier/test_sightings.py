"""Two regions are compared pixel by pixel, whatever the size of the image and wherever the patch stands."""

from itertools import pairwise

import numpy as np
import pytest

from clipsan.stages.dossier.find_patches import PatchLimits
from clipsan.stages.dossier.sightings import Sighting, likeness
from clipsan.stages.proof.localise import box_mask

LIMITS = PatchLimits()


def sighting(image: np.ndarray, box: tuple[int, int, int, int]) -> Sighting:
    mask = box_mask(box, len(image))
    shown = np.where(mask[..., None], image, np.uint8(0))
    return Sighting(uid="", claim="", mask=mask, picture=shown, flips=9, control_flips=0, trials=9)


def stamped(patch: np.ndarray, side: int, rng: np.random.Generator) -> tuple[Sighting, tuple[int, int]]:
    """A patch at any pixel of a noisy image, and its top left corner; the box is a pixel too large below or right."""
    image = (rng.integers(0, 256, 3) + rng.integers(-40, 41, (side, side, 3))).clip(0, 255).astype(np.uint8)
    size = len(patch)
    top, left = (int(v) for v in rng.integers(0, side - size + 1, 2))
    image[top : top + size, left : left + size] = patch
    below, right = (int(v) for v in rng.integers(0, 2, 2))
    box = top, left, min(side, top + size + below) - top, min(side, left + size + right) - left
    return sighting(image, box), (top, left)


@pytest.mark.parametrize("side", [64, 128, 224, 448])
@pytest.mark.parametrize("size", [16, 24])
def test_a_patch_of_fine_grain_is_known_at_any_place_and_resolution(side: int, size: int) -> None:
    rng = np.random.default_rng(side + size)
    patch = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    found = [stamped(patch, side, rng) for _ in range(12)]
    for (a, corner), (b, other) in pairwise(found):
        score, down, right = likeness(a, b, LIMITS.likeness)
        assert score >= LIMITS.min_likeness
        assert (down, right) == (other[0] - corner[0], other[1] - corner[1])


@pytest.mark.parametrize("side", [64, 128, 224])
def test_other_pictures_are_no_matches_at_any_resolution(side: int) -> None:
    rng = np.random.default_rng(side)
    found = [stamped(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), side, rng)[0] for _ in range(8)]
    assert max(likeness(a, b, LIMITS.likeness)[0] for i, a in enumerate(found) for b in found[:i]) < 0.5


def test_the_cost_is_that_of_the_regions_and_not_of_the_image() -> None:
    rng = np.random.default_rng(0)
    patch = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for side in (64, 448):
        image = np.zeros((side, side, 3), np.uint8)
        image[3:19, 5:21] = patch
        assert sighting(image, (3, 5, 16, 16)).room == 32
    small, large = (sighting(image, (3, 5, height, 20)) for height in (16, 33))
    assert (small.room, large.room) == (64, 128)
    # No shift wraps around: whatever the overlap, the sums are those of the pixels.
    score, down, right = likeness(small, large, LIMITS.likeness)
    assert (score, down, right) == (pytest.approx(1, abs=1e-3), 0, 0)


def test_a_pattern_that_repeats_itself_is_found_at_its_own_place_first() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), 32)[None, :, None].repeat(64, 0).repeat(3, -1)
    a, b = sighting(stripes, (8, 8, 16, 16)), sighting(stripes, (8, 4, 16, 24))
    assert likeness(a, b, LIMITS.likeness)[1:] == (0, 0)
