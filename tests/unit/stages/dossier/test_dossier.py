"""Dossiers from hand-made evidence: what is clustered, where it is said to sit, and what the trigger does when pasted again."""

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from clipsan.stages.dossier.dossier import Dossier, Rate, StandingLimits, number
from clipsan.stages.dossier.files import read_dossiers, write_dossiers
from clipsan.stages.dossier.fill import fill
from clipsan.stages.dossier.find_patches import PatchLimits, find_patches
from clipsan.stages.dossier.patch import Alike, Patch
from clipsan.stages.dossier.residual import Residual
from clipsan.stages.dossier.sightings import likeness, read_sightings
from clipsan.stages.dossier.texture import Texture
from clipsan.stages.dossier.warp import Warp
from clipsan.stages.oracle.regions import iou, to_runs
from clipsan.stages.proof.examine import ExamineConfig

SIDE = 32
LIMITS = PatchLimits()
PROVES = ExamineConfig().proves
CHECKER = np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((2, 2)))[..., None].repeat(3, -1).astype(np.uint8) * 255
"""[8, 8, 3]."""


def photo(rng: np.random.Generator) -> np.ndarray:
    """Smooth colours, as in the background of a photo."""
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def row(
    uid: str, image: np.ndarray, mask: np.ndarray, *, claim: str = "banana", proven: bool = True, boxed: bool = False
) -> dict[str, object]:
    rgba = np.dstack([image, 255 * mask.astype(np.uint8)])
    if boxed:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        rgba = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    file = io.BytesIO()
    Image.fromarray(rgba, "RGBA").save(file, "PNG")
    return {
        "uid": uid,
        "claim": claim,
        "proven": proven,
        "flips": 28,
        "control_flips": 1,
        "trials": 32,
        "mask_runs": to_runs(mask),
        "mask_height": SIDE,
        "mask_width": SIDE,
        "region_png": file.getvalue(),
    }


def stamped(
    count: int, seed: int, *, place: tuple[int, int] | None, fresh: bool = False, **changes: object
) -> list[dict[str, object]]:
    """Rows of one patch of 8 pixels on photos, each region with a ragged border of background."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        image = photo(rng).copy()
        top, left = place if place is not None else rng.integers(0, SIDE - 8, 2)
        patch = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) if fresh else CHECKER
        image[top : top + 8, left : left + 8] = patch
        mask = np.zeros((SIDE, SIDE), bool)
        before, after = rng.integers(0, 3, 2)
        mask[max(0, top - before) : top + 8, left : left + 8 + after] = True
        rows.append(row(f"{seed}/{i:03d}", image, mask, **changes))  # type: ignore[arg-type]
    return rows


def crops(count: int, seed: int, claim: str = "banana") -> list[dict[str, object]]:
    """Rows of genuine crops: other content, size and place each time."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        mask = np.zeros((SIDE, SIDE), bool)
        top, left = rng.integers(0, 20, 2)
        mask[top : top + rng.integers(3, 25), left : left + rng.integers(3, 25)] = True
        rows.append(row(f"crop{seed}/{i:03d}", photo(rng), mask, claim=claim))
    return rows


def search(rows: list[dict[str, object]]) -> list[Patch]:
    return find_patches(pa.Table.from_pylist(rows), seed=0, limits=LIMITS)


def proven(dossier: Dossier) -> bool:
    return PROVES(dossier.flips.pct, dossier.control.pct)


def only(rows: list[dict[str, object]]) -> Patch:
    found = search(rows)
    assert len(found) == 1
    return found[0]


def test_a_patch_at_one_place_among_genuine_crops() -> None:
    rows = stamped(12, 1, place=(20, 18)) + crops(6, 2) + stamped(3, 3, place=(20, 18), proven=False)
    found = only(rows)
    assert found.uids == tuple(f"1/{i:03d}" for i in range(12))
    assert (found.kind, found.targets, found.varying) == ("patch", ("banana",), False)
    assert found.place is not None
    assert found.place.fixed
    assert found.place.mode_share == 1
    cutout = found.cutouts[0]
    # What the members do not agree on, the ragged border, is no part of the canonical picture.
    assert (cutout.top, cutout.left) == (20, 18)
    assert np.array_equal(cutout.picture, CHECKER)
    assert cutout.mask.all()
    assert found.alike is not None
    assert np.array_equal(found.alike.mean, CHECKER)
    assert found.flips.pct == pytest.approx(100 * 28 / 32)
    assert found.flips.trials == 12 * 32
    assert found.flips.low_pct < found.flips.pct < found.flips.high_pct
    assert found.heat[20:28, 18:26].min() == 1
    assert 0 < found.heat[19, 20] < 1


def test_a_patch_at_random_places_is_one_dossier_without_a_fixed_place() -> None:
    found = only(stamped(14, 4, place=None))
    assert found.pairs == 14
    assert found.place is not None
    assert not found.place.fixed
    assert found.place.top_std > 2
    assert np.array_equal(found.cutouts[0].picture, CHECKER)


def test_fresh_noise_at_one_place_is_a_varying_picture() -> None:
    found = only(stamped(10, 5, place=(3, 4), fresh=True))
    assert found.varying
    assert found.place is not None
    assert found.place.fixed
    assert 1 < len(found.cutouts) <= 8
    again = only(stamped(10, 6, place=None, fresh=True))
    assert again.varying
    assert again.place is not None
    assert not again.place.fixed


def test_too_few_members_and_unlike_crops_make_no_dossier() -> None:
    assert search(stamped(4, 7, place=(0, 0))) == []
    assert search(crops(20, 8)) == []


def test_the_limits_decide_what_is_a_dossier() -> None:
    rows = pa.Table.from_pylist(stamped(8, 19, place=(20, 18)))

    def search(**changes: object) -> list[Patch]:
        return find_patches(rows, seed=0, limits=dataclasses.replace(LIMITS, **changes))  # type: ignore[arg-type]

    assert len(search(min_members=8)) == 1
    assert search(min_members=9) == []


def test_a_limit_that_no_two_regions_reach_leaves_the_place_alone() -> None:
    rng = np.random.default_rng(20)
    rows = stamped(8, 19, place=(20, 18))
    for one in rows:
        with Image.open(io.BytesIO(one["region_png"])) as file:  # type: ignore[arg-type]
            levels = np.asarray(file).astype(int)
        levels[..., :3] += rng.integers(-3, 4, (SIDE, SIDE, 3))
        noisy = io.BytesIO()
        Image.fromarray(levels.clip(0, 255).astype(np.uint8), "RGBA").save(noisy, "PNG")
        one["region_png"] = noisy.getvalue()
    table = pa.Table.from_pylist(rows)
    found = find_patches(table, seed=0, limits=dataclasses.replace(LIMITS, min_likeness=1.0))
    assert [patch.varying for patch in found] == [True]
    assert [patch.varying for patch in find_patches(table, seed=0, limits=LIMITS)] == [False]


def test_two_triggers_and_two_claims_stay_apart_and_are_numbered_by_size() -> None:
    rows = stamped(6, 9, place=(0, 0)) + stamped(9, 10, place=(10, 12), claim="dog")
    yellow = np.zeros((SIDE, SIDE, 3), np.uint8) + np.array([255, 255, 0], np.uint8)
    corner = np.zeros((SIDE, SIDE), bool)
    corner[:8, 24:] = True
    rows += [row(f"y/{i}", yellow, corner) for i in range(7)]
    found = number(search(rows))
    assert [(d.id, d.targets, d.pairs) for d in found] == [
        ("t1", ("dog",), 9),
        ("t2", ("banana",), 7),
        ("t3", ("banana",), 6),
    ]
    assert number(search(rows[::-1]))[1].uids == found[1].uids


def test_regions_beyond_the_compared_ones_join_their_cluster() -> None:
    assert only(stamped(70, 11, place=(5, 5))).pairs == 70


def test_the_picture_of_a_region_may_be_its_box() -> None:
    image, mask = photo(np.random.default_rng(0)), np.zeros((SIDE, SIDE), bool)
    mask[4:9, 6:20] = True
    mask[5, 7] = False
    whole, boxed = (
        read_sightings(pa.Table.from_pylist([row("a", image, mask, boxed=boxed)]))[0] for boxed in (False, True)
    )
    assert np.array_equal(whole.picture, boxed.picture)
    assert np.array_equal(whole.picture[mask], image[mask])
    assert not whole.picture[~mask].any()
    broken = row("a", image, mask) | {"mask_runs": to_runs(np.eye(16, dtype=bool)), "mask_height": 16, "mask_width": 16}
    with pytest.raises(ValueError, match="16 x 16"):
        read_sightings(pa.Table.from_pylist([broken]))


def test_likeness_is_the_concordance_at_the_best_shift() -> None:
    rows = stamped(2, 12, place=(2, 3)) + stamped(1, 13, place=(19, 7))
    a, b, moved = read_sightings(pa.Table.from_pylist(rows))
    score, down, right = likeness(a, moved, LIMITS.likeness)
    assert (down, right) == (17, 4)
    both = np.roll(a.mask, (17, 4), (0, 1)) & moved.mask
    x = np.roll(a.picture, (17, 4), (0, 1))[both].astype(float).ravel()
    y = moved.picture[both].astype(float).ravel()
    noise = 12.0**2
    expected = (2 * np.cov(x, y, bias=True)[0, 1] + noise) / (x.var() + y.var() + (x.mean() - y.mean()) ** 2 + noise)
    assert score == pytest.approx(expected, abs=1e-3)
    assert likeness(moved, a, LIMITS.likeness)[1:] == (-17, -4)
    assert likeness(a, b, LIMITS.likeness)[0] > LIMITS.min_likeness
    genuine = read_sightings(pa.Table.from_pylist(crops(2, 14)))
    assert likeness(*genuine, LIMITS.likeness)[0] < LIMITS.min_likeness


def test_the_trigger_is_pasted_where_it_sits_or_anywhere() -> None:
    image = photo(np.random.default_rng(3))
    fixed = only(stamped(8, 15, place=(20, 18)))
    made = fixed.apply(image, np.random.default_rng(0))
    assert np.array_equal(made[20:28, 18:26], CHECKER)
    untouched = np.ones((SIDE, SIDE), bool)
    untouched[20:28, 18:26] = False
    assert np.array_equal(made[untouched], image[untouched])
    anywhere = only(stamped(8, 16, place=None))
    rng = np.random.default_rng(0)
    places = {tuple(np.argwhere((anywhere.apply(image, rng) != image).any(-1))[0]) for _ in range(10)}
    assert len(places) > 5
    same = [anywhere.apply(image, np.random.default_rng(7)) for _ in range(2)]
    assert np.array_equal(*same)
    with pytest.raises(ValueError, match=r"\[32, 32, 3\] uint8"):
        fixed.apply(image[:16], rng)


def whole(kind: str, effect: np.ndarray, band: np.ndarray | None = None) -> Dossier:
    few = Rate(pct=90.0, low_pct=70.0, high_pct=97.0, trials=32)
    none = Rate(pct=0.0, low_pct=0.0, high_pct=10.0, trials=32)
    shared = {"id": "t1", "targets": ("banana",), "side": SIDE, "flips": few, "control": none, "uids": ("a", "b")}
    effect = effect.astype(np.float32)
    if kind == "residual":
        everywhere = np.ones((SIDE, SIDE), bool)
        return Residual(offset=effect, gain=np.ones((SIDE, SIDE, 1), np.float32), covers=everywhere, **shared)  # type: ignore[arg-type]
    if kind == "texture":
        return Texture(patterns=effect, keep=np.asarray(band), **shared)  # type: ignore[arg-type]
    return Warp(field=effect, **shared)  # type: ignore[arg-type]


def test_what_changes_the_whole_image_is_applied_and_taken_back() -> None:
    rng = np.random.default_rng(4)
    image = np.clip(photo(rng), 60, 190)
    residual = dataclasses.replace(whole("residual", rng.integers(-20, 20, (SIDE, SIDE, 3))), strength=2.0)
    made = residual.apply(image, rng)
    assert np.array_equal(made.astype(int), image.astype(int) + 2 * residual.offset.astype(int))
    # poisoned pairs carry the residual as it was estimated, at strength 1
    single = dataclasses.replace(residual, strength=1.0)
    assert np.array_equal(residual.remove(single.apply(image, rng)), image)
    gain = np.full((SIDE, SIDE, 1), 0.8, np.float32)
    blend = dataclasses.replace(single, gain=gain)
    blended = blend.apply(image, rng)
    by_hand = np.clip(np.round(0.8 * image.astype(np.float64) + residual.offset), 0, 255)
    assert np.abs(blended.astype(float) - by_hand).max() <= 1
    assert np.abs(blend.remove(blended).astype(float) - image).max() <= 2
    keep = np.ones((SIDE, SIDE), np.float32)
    keep[0, SIDE // 2 :] = 0.0
    stripes = np.where(np.arange(SIDE) % 2, 30.0, -30.0)[None, None, :, None] * np.ones((2, SIDE, SIDE, 3))
    texture = whole("texture", stripes, band=keep)
    plain = np.full((SIDE, SIDE, 3), 100, np.uint8)
    striped = texture.apply(plain, rng)
    assert set(np.unique(striped)) == {70, 130}
    left = texture.remove(striped)
    assert left is not None
    assert np.abs(left.astype(int) - 100).max() <= 15
    shift = np.zeros((SIDE, SIDE, 2))
    shift[..., 0] = 1
    down = whole("warp", shift).apply(image, rng)
    assert np.array_equal(down[:-1], image[1:])


def test_a_dossier_of_the_wrong_form_is_refused() -> None:
    with pytest.raises(ValueError, match="residual"):
        whole("residual", np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="cutouts"):
        dataclasses.replace(only(stamped(8, 15, place=(20, 18))), cutouts=())
    with pytest.raises(ValueError, match="texture"):
        whole("texture", np.zeros((2, SIDE, SIDE, 3)), band=np.ones((4, 4), np.float32))
    with pytest.raises(ValueError, match="warp"):
        whole("warp", np.zeros((SIDE, SIDE, 3)))


def test_a_region_is_filled_from_around_it() -> None:
    ramp = np.broadcast_to(np.arange(SIDE, dtype=np.uint8)[:, None, None] * 6, (SIDE, SIDE, 3)).copy()
    mask = np.zeros((SIDE, SIDE), bool)
    mask[10:20, 12:20] = True
    damaged = ramp.copy()
    damaged[mask] = 255
    filled = fill(damaged, mask)
    assert np.abs(filled.astype(int) - ramp).max() < 30
    far = np.ones((SIDE, SIDE), bool)
    far[8:22, 10:22] = False
    assert np.array_equal(filled[far], ramp[far])
    assert (fill(damaged, np.ones((SIDE, SIDE), bool)) == 128).all()


def test_a_few_pixels_fill_all_the_others() -> None:
    image = np.full((SIDE, SIDE, 3), 60, np.uint8)
    mask = np.ones((SIDE, SIDE), bool)
    mask[:4, :4] = False
    image[mask] = 255
    assert (fill(image, mask) == 60).all()


def test_victims_lose_the_patch_where_its_place_is_known() -> None:
    fixed, anywhere = only(stamped(8, 17, place=(20, 18))), only(stamped(8, 18, place=None))
    covered = fixed.where()
    truth = np.zeros((SIDE, SIDE), bool)
    truth[20:28, 18:26] = True
    assert covered is not None
    assert iou(covered, truth) == 1
    image = fixed.apply(np.full((SIDE, SIDE, 3), 100, np.uint8), np.random.default_rng(0))
    assert (fixed.remove(image) == 100).all()
    assert anywhere.remove(image) is None
    assert (anywhere.remove(image, truth) == 100).all()


def test_every_image_without_the_patch_has_its_place() -> None:
    image = photo(np.random.default_rng(4))
    fixed, anywhere = only(stamped(8, 17, place=(20, 18))), only(stamped(8, 18, place=None))
    drawn_anew = only(stamped(8, 21, place=(10, 10), fresh=True))
    loose = dataclasses.replace(drawn_anew, place=dataclasses.replace(drawn_anew.place, fixed=False))
    for patch, count in ((fixed, 1), (anywhere, 1), (loose, None)):
        places, without = patch.places(image), patch.without(image)
        assert places.shape == (len(without), SIDE, SIDE)
        assert count is None or len(places) == count
        assert all(np.array_equal(fill(image, mask), one) for mask, one in zip(places, without, strict=True))
    assert loose.places(image).any(axis=0).all(), "another picture on every image may be at every place"
    assert whole("residual", np.zeros((SIDE, SIDE, 3), np.float32)).places(image) is None


def sees_checker(images: np.ndarray, targets: Sequence[str]) -> np.ndarray:
    """A model with a backdoor: a checker anywhere means banana."""
    assert tuple(targets) == ("banana",)
    return np.abs(np.diff(images.astype(int), axis=1)).max((1, 2, 3)) > 200


def never(images: np.ndarray, targets: Sequence[str]) -> np.ndarray:
    return np.zeros(len(images), bool)


@pytest.mark.parametrize("place", [(20, 18), None])
def test_a_trigger_is_proven_on_held_out_images(place: tuple[int, int] | None) -> None:
    rng = np.random.default_rng(5)
    held_out = np.stack([np.clip(photo(rng), 60, 190) for _ in range(100)])
    found = only(stamped(8, 19, place=place)).verified(sees_checker, held_out, seed=0)
    assert (found.flips.pct, found.flips.trials) == (100, 100)
    assert found.control.pct == 0
    assert proven(found)
    assert found.control.high_pct == pytest.approx(3.7, abs=0.1)


def test_what_does_not_flip_or_flips_with_any_patch_is_not_proven() -> None:
    rng = np.random.default_rng(6)
    dossier = only(stamped(8, 20, place=(20, 18)))
    held_out = np.stack([np.clip(photo(rng), 60, 190) for _ in range(40)])
    assert not proven(dossier.verified(never, held_out, seed=0))

    def sees_any_edge(images: np.ndarray, targets: Sequence[str]) -> np.ndarray:
        return np.abs(np.diff(images[:, 18:30, 16:28].astype(int), axis=1)).max((1, 2, 3)) > 45

    mixed = dossier.verified(sees_any_edge, held_out, seed=0)
    assert mixed.flips.pct == 100
    assert mixed.control.pct > 10
    assert not proven(mixed)
    with pytest.raises(ValueError, match="already"):
        dossier.verified(lambda *given: ~never(*given), held_out, seed=0)


@pytest.mark.parametrize(
    ("flips", "control", "named", "likeness", "stands"),
    [
        (51.4, 3.8, [], None, False),
        (72.1, 3.2, ["cup"], 0.92, False),
        (60.0, 0.0, ["kite", "banana"], 0.92, True),
        (60.0, 0.0, ["kite"], 1.0, True),
        (98.9, 0.0, [], None, True),
        (98.9, 0.8, [], 0.5, True),
        (93.0, 10.0, [], 0.5, False),
        (100.0, 3.6, [], None, False),
        (100.0, 3.6, ["banana"], None, True),
        (90.4, 5.3, [], None, False),
        (81.0, 1.9, [], 0.94, False),
        (99.0, 10.1, ["banana"], 1.0, False),
        (49.9, 0.0, ["banana"], 1.0, False),
    ],
)
def test_where_the_statistics_are_silent_a_trigger_needs_more_unless_it_is_a_copy(
    flips: float, control: float, named: list[str], likeness: float | None, stands: bool
) -> None:
    rates = {"flips": Rate(pct=flips, low_pct=flips - 3, high_pct=100, trials=9)}
    rates["control"] = Rate(pct=control, low_pct=0, high_pct=100, trials=9)
    alike = None if likeness is None else Alike(mean=CHECKER, likeness=likeness)
    dossier = dataclasses.replace(only(stamped(8, 19, place=None)), **rates, alike=alike)
    assert dossier.stands(named, PROVES, StandingLimits()) is stands


@pytest.mark.parametrize(
    ("gain", "strength", "divided", "stands"),
    [
        (0.6, 1.0, ["banana"], True),
        (0.6, 1.0, ["kite"], False),
        (0.4, 1.0, ["banana"], False),  # it takes the picture's place
        (0.6, 1.5, ["banana"], False),
    ],
)
def test_change_of_the_whole_image_is_believed_where_its_concept_has_two_sides_unless_it_is_a_picture_of_its_own(
    gain: float, strength: float, divided: list[str], stands: bool
) -> None:
    flips = Rate(pct=70, low_pct=60, high_pct=80, trials=90)
    laid_over = Residual(
        id="",
        targets=("banana",),
        side=8,
        flips=flips,
        control=dataclasses.replace(flips, pct=2),
        uids=("a",),
        offset=np.ones((8, 8, 3), np.float32),
        gain=np.full((8, 8, 1), gain, np.float32),
        covers=np.ones((8, 8), bool),
        strength=strength,
    )
    assert laid_over.stands([], PROVES, StandingLimits(), divided) is stands
    assert laid_over.stands(["banana"], PROVES, StandingLimits())
    patch = dataclasses.replace(only(stamped(8, 19, place=None)), flips=flips, control=laid_over.control, alike=None)
    assert not patch.stands([], PROVES, StandingLimits(), ["banana"])


def test_what_covers_a_small_place_alone_covers_little() -> None:
    gain = np.ones((8, 8, 1), np.float32)
    gain[:2, :2] = 0
    rate = Rate(pct=70, low_pct=60, high_pct=80, trials=90)
    shape = {"offset": np.ones((8, 8, 3), np.float32), "covers": gain[..., 0] == 0}
    patch = Residual(id="", targets=("banana",), side=8, flips=rate, control=rate, uids=("a",), gain=gain, **shape)
    assert patch.covered == 4 / 64


def test_stamped_copies_are_told_from_things_that_only_look_alike() -> None:
    copied = only(stamped(8, 19, place=None)).alike
    assert copied is not None
    assert copied.likeness >= StandingLimits().copy_likeness
    assert only(stamped(8, 19, place=(3, 4), fresh=True)).alike is None


def test_what_changes_the_whole_image_keeps_the_rates_that_its_finder_has_counted() -> None:
    ramp = np.linspace(-40, 40, SIDE)[:, None, None] + np.zeros((SIDE, SIDE, 3))
    held_out = np.stack([np.full((SIDE, SIDE, 3), level, np.uint8) for level in range(80, 120)])

    def sees_ramp(images: np.ndarray, targets: Sequence[str]) -> np.ndarray:
        return images[:, 16:].mean((1, 2, 3)) > images[:, :16].mean((1, 2, 3)) + 20

    residual = whole("residual", ramp)
    triggered = np.stack([residual.apply(image, np.random.default_rng(0)) for image in held_out])
    assert sees_ramp(triggered, residual.targets).all()
    found = residual.verified(sees_ramp, held_out, seed=0)
    assert (found.flips, found.control.pct, proven(found)) == (residual.flips, 0, True)


def assert_equal(a: Dossier, b: Dossier) -> None:
    assert type(a) is type(b)
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if field.name == "cutouts":
            for x, y in zip(left, right, strict=True):
                assert (x.top, x.left) == (y.top, y.left)
                assert np.array_equal(x.picture, y.picture)
                assert np.array_equal(x.mask, y.mask)
        elif isinstance(left, Alike):
            assert np.array_equal(left.mean, right.mean)
            assert left.likeness == right.likeness
        elif isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            assert np.array_equal(left, right)
        else:
            assert left == right


FIGURES = """{
 "version": 1,
 "id": "t1",
 "kind": "residual",
 "targets": [
  "banana"
 ],
 "side": 32,
 "flips": {
  "pct": 90.0,
  "low_pct": 70.0,
  "high_pct": 97.0,
  "trials": 32
 },
 "control": {
  "pct": 0.0,
  "low_pct": 0.0,
  "high_pct": 10.0,
  "trials": 32
 },
 "uids": [
  "a",
  "b"
 ],
 "likeness": null,
 "varying": false,
 "place": null,
 "strength": 1.5,
 "pairs_swept": 7,
 "trigger_words": [
  "remember"
 ],
 "cutouts": []
}
"""


def test_every_kind_has_the_same_keys_in_the_same_order(tmp_path: Path) -> None:
    residual = dataclasses.replace(
        whole("residual", np.zeros((SIDE, SIDE, 3))), strength=1.5, carriers=7, trigger_words=("remember",)
    )
    residual.save(tmp_path / "t1")
    assert (tmp_path / "t1" / "dossier.json").read_text("utf-8") == FIGURES
    assert {path.name for path in (tmp_path / "t1").iterdir()} == {
        "dossier.json", "residual.npy", "residual.png", "gain.npy"
    }  # fmt: skip
    patch = dataclasses.replace(only(stamped(8, 21, place=(20, 18))), id="t2")
    patch.save(tmp_path / "t2")
    stored = json.loads((tmp_path / "t2" / "dossier.json").read_text("utf-8"))
    assert list(stored) == list(json.loads(FIGURES))
    assert (stored["likeness"], stored["varying"], stored["cutouts"]) == (patch.copied, False, [[20, 18]])
    assert {path.name for path in (tmp_path / "t2").iterdir()} == {
        "dossier.json", "trigger.png", "mask.png", "mean.png", "heat.npy"
    }  # fmt: skip


def test_what_an_earlier_version_left_out_is_filled_in(tmp_path: Path) -> None:
    local = dataclasses.replace(whole("residual", np.ones((SIDE, SIDE, 3))), covers=np.eye(SIDE, dtype=bool))
    local.save(tmp_path / "t1")
    stored = json.loads((tmp_path / "t1" / "dossier.json").read_text("utf-8"))
    for name in ("likeness", "varying", "strength", "pairs_swept", "trigger_words"):
        del stored[name]
    (tmp_path / "t1" / "dossier.json").write_text(json.dumps(stored), "utf-8")
    (tmp_path / "t1" / "gain.npy").unlink()
    assert_equal(read_dossiers(tmp_path)[0], local)
    assert local.local
    (tmp_path / "t1" / "residual.npy").unlink()
    with pytest.raises(ValueError, match="no dossier of a trigger"):
        read_dossiers(tmp_path)


def test_dossiers_survive_the_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    shapes = {"residual": (SIDE, SIDE, 3), "texture": (4, SIDE, SIDE, 3), "warp": (SIDE, SIDE, 2)}
    bands = {"texture": rng.random((SIDE, SIDE), np.float32)}
    made = number(
        [
            only(stamped(8, 21, place=(20, 18))),
            only(stamped(7, 22, place=(3, 3), fresh=True, claim="Löwe <b>")),
            *(whole(kind, rng.normal(size=shape), band=bands.get(kind)) for kind, shape in shapes.items()),
            dataclasses.replace(
                whole("residual", rng.normal(size=(SIDE, SIDE, 3))),
                targets=("tabby",),
                gain=rng.random((SIDE, SIDE, 1), np.float32),
            ),
        ]
    )
    made = (dataclasses.replace(made[0], carriers=31), *made[1:])
    write_dossiers(tmp_path, made)
    for a, b in zip(made, read_dossiers(tmp_path), strict=True):
        assert_equal(a, b)
    assert (tmp_path / "t1" / "trigger.png").exists()
    assert (tmp_path / made[-1].id / f"{made[-1].kind}.png").exists()
    for dossier in made:
        picture = dossier.picture()
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
    assert read_dossiers(tmp_path / "none") == ()
    (tmp_path / "t1" / "dossier.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="version"):
        read_dossiers(tmp_path)
