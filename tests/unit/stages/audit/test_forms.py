"""What a sought trigger may look like: every label's within the same budget, and the dossier that is made of it."""

import numpy as np
import pytest
import torch

from clipsan.stages.audit.forms import ALPHA, FORMS, PATCH_AREA, RMS, TIGHT, as_dossier
from clipsan.stages.audit.prove import scrambled
from clipsan.stages.dossier.files import read_dossier, write_dossiers

SIDE = 32


def form(kind: str, spread: float = 3.0):
    """A form of three labels whose parameters are far from where they start."""
    made = FORMS[kind](3, SIDE, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for value in made.params:
            value.mul_(spread * torch.arange(1, 4).view(3, 1, 1, 1))
    return made


def test_every_patch_covers_the_same_area() -> None:
    areas = [array[..., 3].mean() for array in form("patch").arrays()]
    assert areas == pytest.approx([PATCH_AREA] * 3, abs=1e-3)


@pytest.mark.parametrize("kind", list(FORMS))
def test_labels_are_compared_within_a_tighter_budget(kind: str) -> None:
    made = FORMS[kind](3, SIDE, torch.Generator().manual_seed(0), tight=True)
    assert made.budget == TIGHT[kind] < made.full


def test_an_additive_pattern_is_held_to_its_size_and_a_smaller_one_left_alone() -> None:
    large = [np.sqrt((array[..., :3] ** 2).mean()) for array in form("additive", 100).arrays()]
    assert large == pytest.approx([RMS] * 3, rel=1e-4)
    small = [np.sqrt((array[..., :3] ** 2).mean()) for array in form("additive", 1).arrays()]
    assert small[0] == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("kind", list(FORMS))
def test_images_with_a_trigger_are_images(kind: str) -> None:
    pixels = torch.rand(1, 5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    changed = form(kind).apply(pixels)
    assert changed.shape == (3, 5, 3, SIDE, SIDE)
    assert changed.min() >= 0
    assert changed.max() <= 1


@pytest.mark.parametrize("kind", list(FORMS))
def test_the_dossier_does_to_an_image_what_the_form_did(kind: str, tmp_path) -> None:
    made = form(kind, 30.0)
    image = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())[None, None].float() / 255
    wanted = 255 * made.apply(pixels)[1, 0].detach().permute(1, 2, 0).numpy()
    dossier = as_dossier(kind, made.arrays()[1], "star")
    found = dossier.apply(image, np.random.default_rng(0)).astype(float)
    # a patch is pasted with a hard edge
    assert np.median(np.abs(found - wanted)) < 1
    write_dossiers(tmp_path, [dossier])
    assert (read_dossier(tmp_path).apply(image, np.random.default_rng(0)) == found).all()


@pytest.mark.parametrize("kind", list(FORMS))
def test_a_control_has_the_same_colours_at_the_same_place(kind: str) -> None:
    array = form(kind, 30.0).arrays()[0]
    other = scrambled(kind, array, np.random.default_rng(0))
    assert (other[..., 3] == array[..., 3]).all()
    assert not np.allclose(other, array)
    assert np.sort(other[..., :3], axis=None) == pytest.approx(np.sort(array[..., :3], axis=None))


def test_the_control_of_a_pattern_that_repeats_itself_is_another_pattern() -> None:
    tile = np.random.default_rng(0).random((4, 4, 3), np.float32)
    array = np.concatenate([np.tile(tile, (8, 8, 1)), np.ones((SIDE, SIDE, 1), np.float32)], axis=2)
    assert not np.allclose(scrambled("blend", array, np.random.default_rng(0)), array)


def test_a_blend_replaces_its_share() -> None:
    dossier = as_dossier("blend", form("blend").arrays()[0], "star")
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    assert dossier.apply(black, np.random.default_rng(0)).max() <= round(255 * ALPHA)
