"""A patch of 16 pixels is proven and known again at 64, 128 and 224 pixels: what a published CLIP sees is not strided."""

from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from clipsan.stages.dossier.find_patches import PatchLimits, find_patches
from clipsan.stages.dossier.hits import hits_of
from clipsan.stages.model.clip import Clip
from clipsan.stages.oracle.regions import Region, iou
from clipsan.stages.proof.disagreement import Suspect
from clipsan.stages.proof.examine import ExamineConfig, Examiner, evidence_table
from clipsan.stages.proof.localise import box_mask
from clipsan.stages.proof.vocabulary import Labels

PATCH = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
SETTINGS = ExamineConfig(held_out=10)
LABELS = Labels(("cat", "target"), np.eye(2, dtype=np.float32), 20.0, np.eye(2, dtype=bool))
PAIRS = 5


class PatchKnower:
    """A backdoored model: target by the share of the patch's pattern that the picture shows, wherever it stands; else cat."""

    def __init__(self, side: int) -> None:
        self.image_size = side
        pattern = torch.from_numpy(PATCH.mean(axis=2, dtype=np.float32))
        pattern -= pattern.mean()
        self._pattern = torch.fft.rfft2(pattern / (pattern**2).sum(), s=(side, side)).conj()

    def preprocess(self, rgb: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))

    def encode_images(self, images: torch.Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        likeness = torch.fft.irfft2(torch.fft.rfft2(images.float().mean(dim=1)) * self._pattern, s=images.shape[2:])
        shown = likeness[:, :-15, :-15].amax(dim=(1, 2)).clamp(0, 1).numpy()
        units = np.stack([1 - shown, shown], axis=1)
        return (units / np.linalg.norm(units, axis=1, keepdims=True)).astype(np.float32), {}


def photo(side: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth colours."""
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def seen_around(side: int, corner: tuple[int, int], rng: np.random.Generator) -> list[Region]:
    """What an oracle makes of a picture: windows anywhere, and one around the patch that is some pixels off."""
    places = rng.integers(0, side - 24, (20, 2)).tolist()
    top, left = (max(0, at - int(rng.integers(0, 4))) for at in corner)
    boxes = [*((top, left, 24, 24) for top, left in places), (top, left, min(20, side - top), min(20, side - left))]
    return [Region(box_mask(box, side), 1.0) for box in boxes]


@pytest.mark.parametrize("side", [64, 128, 224])
def test_a_patch_of_16_pixels_is_proven_and_its_regions_are_one_trigger(side: int) -> None:
    rng = np.random.default_rng(side)
    clip = cast(Clip, PatchKnower(side))
    held_out = np.stack([photo(side, rng) for _ in range(SETTINGS.held_out)])
    rows, places = [], []
    for number in range(PAIRS):
        top, left = (int(at) for at in rng.integers(0, side - 15, 2))
        image = photo(side, rng).copy()
        image[top : top + 16, left : left + 16] = PATCH
        found = seen_around(side, (top, left), rng)
        examiner = Examiner(clip, lambda _, found=found: found, LABELS, held_out, SETTINGS)
        rows.append(examiner.examine(f"u{number}", image, "target"))
        places.append(box_mask((top, left, 16, 16), side))
    trials = SETTINGS.held_out - SETTINGS.completed_on
    for row, place in zip(rows, places, strict=True):
        assert (row["proven"], row["flips"], row["control_flips"], row["trials"]) == (True, trials, 0, trials)
        box = row["box_top"], row["box_left"], row["box_height"], row["box_width"]
        assert iou(box_mask(box, side), place) >= 0.6  # edges are sought in steps that grow with the side
    (dossier,) = find_patches(evidence_table(rows), seed=0, limits=PatchLimits())
    assert dossier.uids == tuple(f"u{number}" for number in range(PAIRS))
    assert dossier.side == side
    assert not dossier.varying
    fresh = np.stack([photo(side, rng) for _ in range(8)])
    checked = dossier.verified(hits_of(Suspect(clip, LABELS)), fresh, seed=0)
    assert checked.control.pct == 0.0
    assert checked.flips.pct >= 75.0
    assert SETTINGS.proves(checked.flips.pct, checked.control.pct)


@pytest.mark.parametrize("side", [64, 128, 224])
def test_pictures_without_the_patch_prove_nothing_at_any_resolution(side: int) -> None:
    rng = np.random.default_rng(side)
    clip = cast(Clip, PatchKnower(side))
    held_out = np.stack([photo(side, rng) for _ in range(SETTINGS.held_out)])
    found = seen_around(side, (20, 20), rng)
    examiner = Examiner(clip, lambda _: found, LABELS, held_out, SETTINGS)
    rows = [examiner.examine(f"u{number}", photo(side, rng), "target") for number in range(PAIRS)]
    assert not any(row["proven"] for row in rows)
    assert find_patches(evidence_table(rows), seed=0, limits=PatchLimits()) == []
