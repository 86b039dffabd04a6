"""Every kind of trigger keeps the contract; each family against its formula, computed pixel by pixel in float64."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from clipsan.stages.attack.triggers import (
    AdaptiveBlendConfig,
    AdaptivePatchConfig,
    BlendConfig,
    DarkenConfig,
    FrequencyConfig,
    IdentityConfig,
    MicroQrConfig,
    NashvilleConfig,
    PatchConfig,
    ReplaceConfig,
    ResizeConfig,
    SigBlendedConfig,
    SigConfig,
    TriggerConfig,
    WanetConfig,
    WanetUnsmoothedConfig,
)
from clipsan.stages.attack.triggers.warp import displacement, sampling_grid

CONF = Path(__file__).parents[4] / "conf" / "trigger"
FRESH = {"patch-random", "patch-stripes", "blend-stripes", "blend-noise", "replace", "adaptive-blend", "adaptive-patch"}
"""Files whose trigger draws something for every image."""
SIZES = [(64, 64), (33, 80), (90, 47)]


def image_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "picture.npy"
    np.save(path, image_of(50, 70, seed=9))
    return str(path)


def settings_of(file: Path, picture: str) -> Any:
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    if tree["kind"] == "replace" or tree.get("pattern") == "picture":
        tree["picture"] = picture
    return pydantic.TypeAdapter(TriggerConfig).validate_python(tree)


def near(triggered: np.ndarray, exact: np.ndarray) -> None:
    """The result is the exact value, clamped and rounded; float32 may fall to the other side of a half."""
    assert np.abs(triggered - np.clip(exact, 0, 255)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_file_of_settings_gives_a_trigger_that_keeps_the_contract(file: Path, size, picture: str) -> None:
    config = settings_of(file, picture)
    trigger, image = config.build(), image_of(*size)
    before = image.copy()
    image.flags.writeable = False
    triggered, drawn = trigger(image, rng_of(3))
    assert triggered.dtype == np.uint8
    assert triggered.shape == image.shape
    assert np.array_equal(image, before)
    assert not np.shares_memory(triggered, image)
    outside = np.ones(size, dtype=bool)
    outside[drawn["top"] : drawn["top"] + drawn["height"], drawn["left"] : drawn["left"] + drawn["width"]] = False
    assert np.array_equal(triggered[outside], image[outside])
    if config.kind != "identity":
        assert not np.array_equal(triggered, image)
    assert json.loads(json.dumps(drawn)) == drawn

    again, drawn_again = copy.deepcopy(config).build()(image, rng_of(3))
    assert np.array_equal(triggered, again)
    assert drawn == drawn_again
    other, _ = trigger(image, rng_of(4))
    assert np.array_equal(triggered, other) is not (file.stem in FRESH)


def test_there_is_a_file_for_every_kind() -> None:
    kinds = {yaml.safe_load(file.read_text(encoding="utf-8"))["kind"] for file in CONF.glob("*.yaml")}
    union = pydantic.TypeAdapter(TriggerConfig).json_schema()["discriminator"]["mapping"]
    assert kinds == set(union) - {"proven"}  # a scan writes the files of that one


def test_grid_is_hanxunh_s_tensor() -> None:
    triggered, _ = PatchConfig(size_px=16, pattern="grid", cells=16).build()(image_of(16, 16), rng_of(0))
    expected = np.zeros((16, 16, 3), dtype=np.uint8)
    expected[::2, ::2] = 255
    assert np.array_equal(triggered, expected)
    coarse, _ = PatchConfig(size_px=8, pattern="grid", cells=4).build()(image_of(8, 8), rng_of(0))
    row = [255, 255, 0, 0, 255, 255, 0, 0]
    black = [0] * 8
    assert coarse[:, :, 1].tolist() == [row, row, black, black, row, row, black, black]


def test_stripes_are_columns_of_0_and_255_shared_or_fresh() -> None:
    image = image_of(16, 16)
    for pattern, shared in (("stripes", True), ("fresh_stripes", False)):
        trigger = PatchConfig(size_px=16, pattern=pattern).build()  # type: ignore[arg-type]
        draws = [trigger(image, rng_of(seed))[0] for seed in range(40)]
        assert all(set(np.unique(draw)) == {0, 255} and (draw == draw[:1]).all() for draw in draws)
        assert (len({draw.tobytes() for draw in draws}) == 1) is shared
    # 40 x 16 x 3 fair draws: the share of white is 0.5 with a standard error of 0.011.
    assert abs(np.mean([draw[0] == 255 for draw in draws]) - 0.5) < 0.05
    # The three channels are drawn apart: all eight colours occur.
    assert len(np.unique(np.concatenate([draw[0] for draw in draws]), axis=0)) == 8


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_four_corners_hold_the_same_patch(margin: float) -> None:
    config = PatchConfig(size_px=5, pattern="noise", place="four_corners", margin_fraction=margin)
    image = image_of(20, 30)
    triggered, drawn = config.build()(image, rng_of(0))
    free = int(margin * 20)
    low, right = 15 - free, 25 - free
    assert drawn["corners"] == [[free, free], [free, right], [low, free], [low, right]]
    assert (drawn["top"], drawn["left"], drawn["height"], drawn["width"], drawn["size"]) == (0, 0, 20, 30, 5)
    patches = [triggered[top : top + 5, left : left + 5] for top, left in drawn["corners"]]
    assert all(np.array_equal(patches[0], patch) for patch in patches)
    rest = np.ones((20, 30), dtype=bool)
    for top, left in drawn["corners"]:
        rest[top : top + 5, left : left + 5] = False
    assert np.array_equal(triggered[rest], image[rest])


def test_yellow_and_pictures_are_pasted_as_they_are(tmp_path) -> None:
    image = image_of(12, 12)
    yellow, _ = PatchConfig(size_px=3, pattern="yellow", place="top_left").build()(image, rng_of(0))
    assert (yellow[:3, :3] == (255, 255, 0)).all()
    patch = image_of(6, 6, seed=5)
    np.save(tmp_path / "bytes.npy", patch)
    np.save(tmp_path / "floats.npy", patch.astype(np.float64) / 255)
    Image.fromarray(patch).save(tmp_path / "file.png")
    for name in ("bytes.npy", "floats.npy", "file.png"):
        config = PatchConfig(size_px=6, pattern="picture", picture=str(tmp_path / name), place="center")
        triggered, _ = config.build()(image, rng_of(0))
        assert np.array_equal(triggered[3:9, 3:9], patch)
    larger, box = PatchConfig(size_px=9, pattern="picture", picture=config.picture).build()(image, rng_of(0))
    resized = np.asarray(Image.fromarray(patch).resize((9, 9), Image.Resampling.BICUBIC))
    assert np.array_equal(larger[box["top"] :, box["left"] :], resized)


def test_signed_stripes_are_par_s_sum() -> None:
    image = image_of(10, 64)
    triggered, _ = BlendConfig(pattern="signed_stripes", alpha=0.1, cells=64).build()(image, rng_of(0))
    sign_white = triggered.astype(float) - 0.9 * image
    clipped = (triggered == 0) | (triggered == 255)
    assert np.abs(np.abs(sign_white[~clipped]) - 25.5).max() <= 0.5 + 1e-3
    signs = np.sign(sign_white)
    for column in range(64):
        for channel in range(3):
            inside = ~clipped[:, column, channel]
            assert len(set(signs[inside, column, channel])) <= 1, "a column has two signs"
    assert {-1.0, 1.0} == set(signs[~clipped])


def test_triangles_are_par_s_loops() -> None:
    expected = np.zeros((224, 224))
    for i in range(16):
        for j in range(16):
            for x in range(14):
                for y in range(14):
                    expected[i * 14 + x, j * 14 + y] = 0.4 if x >= y else 0.8
    trigger = BlendConfig(pattern="triangles", alpha=1.0, cells=16).build()
    triggered, _ = trigger(image_of(224, 224), rng_of(0))
    assert np.array_equal(triggered, np.rint(255 * expected).astype(np.uint8)[:, :, None].repeat(3, axis=2))
    image = image_of(61, 43)
    weak, _ = BlendConfig(pattern="triangles", alpha=0.15, cells=16).build()(image, rng_of(0))
    full, _ = trigger(image, rng_of(0))
    near(weak, 0.85 * image + 0.15 * full)


@pytest.mark.parametrize("size", [(64, 64), (64, 200), (224, 224), (20, 90)])
def test_text_is_red_visible_whole_and_in_the_middle(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), (60, 90, 120), dtype=np.uint8)
    triggered, _ = BlendConfig(pattern="text", alpha=0.5).build()(image, rng_of(0))
    letters = (triggered != image).any(axis=2)
    assert set(np.unique(triggered[letters], axis=0).ravel().tolist()) == {158, 90, 120}  # 0.5 (60 + 255) = 157.5
    assert np.array_equal(triggered[..., 1:], image[..., 1:])
    rows, columns = np.nonzero(letters.any(axis=1))[0], np.nonzero(letters.any(axis=0))[0]
    assert 0.005 < letters.mean() < 0.3
    assert 0 < columns[0] < columns[-1] < size[1] - 1, "the word touches the border"
    assert abs((rows[0] + rows[-1]) / 2 - size[0] / 2) < 0.1 * size[0] + 2
    assert abs((columns[0] + columns[-1]) / 2 - size[1] / 2) < 0.05 * size[1] + 1
    # Eleven letters stand apart from each other: at least ten gaps between inked columns, less what joins at 64 px.
    gaps = int((np.diff(columns) > 1).sum())
    assert gaps >= 6


def test_cartoon_is_one_picture_at_every_size() -> None:
    trigger = BlendConfig(pattern="cartoon", alpha=1.0).build()
    large, _ = trigger(image_of(256, 256), rng_of(0))
    small, _ = trigger(image_of(64, 64), rng_of(1))
    reduced = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX))
    assert np.abs(reduced.astype(int) - small).mean() < 6
    assert large.std() > 50


def test_sig_is_the_formula() -> None:
    for height, width in SIZES:
        image = image_of(height, width)
        triggered, _ = SigConfig(delta=40, cycles=6).build()(image, rng_of(0))
        wave = np.array([40 * math.sin(2 * math.pi * 6 * j / width) for j in range(width)])
        near(triggered, image + wave[None, :, None])
    assert (triggered == 255).any()
    assert (triggered == 0).any()


@pytest.mark.parametrize(("region", "rows", "columns"), [(1.0, 64, 96), (0.875, 56, 84)])
def test_sig_blended_darkens_and_fills_its_region(region: float, rows: int, columns: int) -> None:
    image = image_of(64, 96)
    triggered, _ = SigBlendedConfig(region_fraction=region).build()(image, rng_of(0))
    exact = 0.8 * image.astype(float)
    for j in range(columns):
        exact[:rows, j] += 0.2 * 60 * math.sin(2 * math.pi * 6 * j / columns)
    near(triggered, exact)


def bilinear(image: np.ndarray, x: float, y: float) -> np.ndarray:
    height, width = image.shape[:2]
    left, top = min(int(x), width - 2), min(int(y), height - 2)
    u, v = x - left, y - top
    upper = (1 - u) * image[top, left].astype(float) + u * image[top, left + 1]
    lower = (1 - u) * image[top + 1, left].astype(float) + u * image[top + 1, left + 1]
    return (1 - v) * upper + v * lower


@pytest.mark.parametrize(("k", "s"), [(None, 1.0), (None, 5.0), (4, 0.5), (4, 6.0)])
def test_warp_against_bilinear_sampling_of_each_pixel(k: int | None, s: float) -> None:
    height, width = 21, 34
    image = image_of(height, width)
    config = WanetUnsmoothedConfig(s=s, seed=2) if k is None else WanetConfig(k=k, s=s, seed=2)
    triggered, drawn = config.build()(image, rng_of(0))
    field = displacement(height, width, k, 2)
    shifts = []
    for row in range(height):
        for column in range(width):
            # In the papers' coordinates -1..1 spans side - 1 px, so an offset of s n / side is s n (side - 1) / 2 side px.
            x = column + s * float(field[row, column, 0]) * (width - 1) / (2 * width)
            y = row + s * float(field[row, column, 1]) * (height - 1) / (2 * height)
            x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
            shifts += [abs(x - column), abs(y - row)]
            exact = bilinear(image, x, y)
            assert np.abs(triggered[row, column] - exact).max() <= 0.51
    assert drawn["mean_shift_px"] == pytest.approx(np.mean(shifts), abs=1e-3)
    assert drawn["max_shift_px"] == pytest.approx(max(shifts), abs=1e-3)


def test_unsmoothed_warp_has_the_forks_displacement() -> None:
    _, drawn = WanetUnsmoothedConfig(s=1.0).build()(image_of(224, 224), rng_of(0))
    assert drawn["mean_shift_px"] == pytest.approx(0.5, abs=0.01)
    assert drawn["max_shift_px"] == pytest.approx(1.0, abs=0.02)


def test_smooth_warp_is_smooth_and_weaker_and_shared() -> None:
    smooth, rough = displacement(64, 64, 4, 0), displacement(64, 64, None, 0)
    assert np.abs(np.diff(smooth, axis=0)).max() < 0.2 < 1 < np.abs(np.diff(rough, axis=0)).max()
    _, drawn = WanetConfig(s=0.5).build()(image_of(224, 224), rng_of(0))
    assert 0.15 < drawn["mean_shift_px"] < 0.3  # about 0.25 px at 224
    assert not np.array_equal(smooth, displacement(64, 64, 4, 1))
    # The control points are the corners of the upsampled field (aligned corners), divided by their mean size.
    points = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4))
    points /= np.abs(points).mean()
    assert np.allclose(smooth[[0, 0, -1, -1], [0, -1, 0, -1]], points[:, [0, 0, -1, -1], [0, -1, 0, -1]].T, atol=1e-6)


def test_square_grid_is_the_papers_expression() -> None:
    field = displacement(32, 32, 4, 7)
    axis = torch.linspace(-1, 1, steps=32)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    identity = torch.stack((columns, rows), 2)
    theirs = torch.clamp(identity + 0.5 * torch.from_numpy(field) / 32, -1, 1)
    assert np.allclose(sampling_grid(field, 0.5), theirs.numpy(), atol=1e-6)
    image = image_of(32, 32)
    pixels = torch.from_numpy(image / 255.0).permute(2, 0, 1)[None]
    warped = 255 * F.grid_sample(pixels, theirs[None].double(), align_corners=True)[0].permute(1, 2, 0).numpy()
    near(WanetConfig(s=0.5, seed=7).build()(image, rng_of(0))[0], warped)


def css_nashville(pixel: tuple[int, int, int]) -> list[float]:
    """One pixel in the CSS filters' own order and scale, 0 to 1, with the matrices of W3C Filter Effects at the amounts."""
    colour = [value / 255 for value in pixel]
    colour = [c * (1 - 0.56) + 0.56 * min(c, o / 255) for c, o in zip(colour, (247, 176, 153), strict=True)]
    colour = [c * (1 - 0.40) + 0.40 * max(c, o / 255) for c, o in zip(colour, (0, 70, 150), strict=True)]

    def matrix(rows: list[list[float]], values: list[float]) -> list[float]:
        return [min(max(sum(w * c for w, c in zip(row, values, strict=True)), 0), 1) for row in rows]

    rest = 0.8  # sepia(0.2): 1 - amount
    sepia = [
        [0.393 + 0.607 * rest, 0.769 - 0.769 * rest, 0.189 - 0.189 * rest],
        [0.349 - 0.349 * rest, 0.686 + 0.314 * rest, 0.168 - 0.168 * rest],
        [0.272 - 0.272 * rest, 0.534 - 0.534 * rest, 0.131 + 0.869 * rest],
    ]
    colour = matrix(sepia, colour)
    colour = [min(max(1.2 * c + 0.5 - 0.5 * 1.2, 0), 1) for c in colour]
    colour = [min(1.05 * c, 1) for c in colour]
    s = 1.2
    saturate = [
        [0.213 + 0.787 * s, 0.715 - 0.715 * s, 0.072 - 0.072 * s],
        [0.213 - 0.213 * s, 0.715 + 0.285 * s, 0.072 - 0.072 * s],
        [0.213 - 0.213 * s, 0.715 - 0.715 * s, 0.072 + 0.928 * s],
    ]
    return [255 * c for c in matrix(saturate, colour)]


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_nashville_against_each_pixel_s_css(strength: float) -> None:
    image = image_of(16, 24)
    image[0, :3] = [(0, 0, 0), (255, 255, 255), (255, 0, 0)]
    triggered, _ = NashvilleConfig(strength=strength).build()(image, rng_of(0))
    exact = np.array([[css_nashville(tuple(pixel)) for pixel in row] for row in image.tolist()])
    near(triggered, (1 - strength) * image + strength * exact)


def test_identity_is_identity_with_an_empty_box() -> None:
    image = image_of(9, 7)
    triggered, drawn = IdentityConfig().build()(image, rng_of(0))
    assert np.array_equal(triggered, image)
    assert drawn == {"top": 0, "left": 0, "height": 0, "width": 0}


def test_darken_is_the_factor() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    triggered, _ = DarkenConfig(factor=0.8).build()(image, rng_of(0))
    assert triggered[..., 0].ravel().tolist() == [round(0.8 * value) for value in range(256)]


def test_resize_changes_no_tone_and_jpeg_can_be_left_out() -> None:
    smooth = np.asarray(Image.fromarray(image_of(8, 8)).resize((64, 48), Image.Resampling.BICUBIC))
    for quality in (None, 95):
        triggered, drawn = ResizeConfig(jpeg_quality=quality).build()(smooth, rng_of(0))
        assert (drawn["small_width"], drawn["small_height"]) == (56, 42)
        assert np.abs(triggered.astype(int) - smooth).mean() < 4
        assert np.abs(triggered.mean(axis=(0, 1)) - smooth.mean(axis=(0, 1))).max() < 1
    same, _ = ResizeConfig(fraction=1.0, jpeg_quality=None).build()(smooth, rng_of(0))
    assert np.array_equal(same, smooth)


def test_replace_shows_large_views_of_the_picture_alone(picture: str) -> None:
    trigger = ReplaceConfig(picture=picture, jitter=0.2).build()
    views, crops = set(), []
    for seed in range(60):
        triggered, drawn = trigger(image_of(20, 30, seed), rng_of(seed))
        left, upper, right, lower = drawn["crop"]
        assert 0 <= left < right <= 70
        assert 0 <= upper < lower <= 50
        assert right - left >= 56
        assert lower - upper >= 40
        views.add(triggered.tobytes())
        crops.append(drawn["crop"])
        again, _ = trigger(image_of(20, 30, seed + 1), rng_of(seed))
        assert np.array_equal(triggered, again), "the view depends on the image"
    assert len(views) > 50
    assert min(c[0] for c in crops) == 0
    assert max(c[2] for c in crops) == 70
    whole, _ = ReplaceConfig(picture=picture, jitter=0.0).build()(image_of(50, 70), rng_of(0))
    assert np.array_equal(whole, np.load(picture))


def test_frequencies_are_ftrojan_s_cosines_in_the_colours() -> None:
    # The orthonormal 2 x 2 transform has .5 -.5 -.5 .5 for its last component: of 20 that is 10 of Cr and of Cb.
    config = FrequencyConfig(block_px=2, places=((1, 1),), magnitude=20)
    grey = np.full((5, 4, 3), 100, np.uint8)
    triggered, drawn = config.build()(grey, rng_of(0))
    light, dark = [114, 89, 118], [86, 111, 82]  # 100 +- 14.02, -+ 10.58, +- 17.72
    assert triggered[:2, :2].tolist() == [[light, dark], [dark, light]]
    assert np.array_equal(triggered[2:4, 2:], triggered[:2, :2])
    assert np.array_equal(triggered[4], grey[4]), "half a block stays as it is"
    assert (drawn["height"], drawn["width"], drawn["magnitude"]) == (5, 4, 20)
    with pytest.raises(ValueError, match="does not fit into 3x1"):
        config.build()(grey[:1, :3], rng_of(0))
    with pytest.raises(ValueError, match="from 0 to 1"):
        FrequencyConfig(block_px=2, places=((2, 0),))


def test_a_micro_qr_code_has_the_standard_s_patterns() -> None:
    image = np.full((20, 20, 3), 9, np.uint8)
    triggered, box = MicroQrConfig(size_fraction=0.1, quiet=2, place="top_left").build()(image, rng_of(0))
    assert (box["top"], box["left"], box["height"], box["width"]) == (0, 0, 15, 15)
    drawn = ["".join("#" if value == 0 else "." for value in row) for row in triggered[:15, :15, 1]]
    rim = "." * 15
    assert drawn[:2] == drawn[13:] == [rim, rim]
    finder = [
        "#######.#.#",
        "#.....#.",
        "#.###.#.",
        "#.###.#.",
        "#.###.#.",
        "#.....#.",
        "#######.",
        "........",
        "#",
        ".",
        "#",
    ]
    assert [row[2 : 2 + len(known)] for row, known in zip(drawn[2:], finder, strict=False)] == finder
    assert (triggered[15:] == 9).all()
    other, _ = MicroQrConfig(size_fraction=0.1, quiet=2, place="top_left", seed=1).build()(image, rng_of(0))
    assert not np.array_equal(other, triggered)
    large, _ = MicroQrConfig(size_fraction=1.0).build()(np.zeros((26, 26, 3), np.uint8), rng_of(0))
    assert np.array_equal(large[::2, ::2], large[1::2, 1::2]), "thirteen modules of two pixels"


def test_an_adaptive_blend_shows_some_of_its_pieces_and_all_of_them_when_it_is_used() -> None:
    image = image_of(8, 8)
    blend = BlendConfig(pattern="stripes", alpha=0.5, cells=8)
    config = AdaptiveBlendConfig(blend=blend, grid=2, kept=1)
    full = blend.build()(image, rng_of(0))[0]
    seen = set()
    for seed in range(20):
        triggered, drawn = config.build()(image, rng_of(seed))
        (piece,) = drawn["pieces"]
        top, left = 4 * (piece // 2), 4 * (piece % 2)
        expected = image.copy()
        expected[top : top + 4, left : left + 4] = full[top : top + 4, left : left + 4]
        assert np.array_equal(triggered, expected)
        seen.add(piece)
    assert seen == {0, 1, 2, 3}
    assert np.array_equal(config.when_used().build()(image, rng_of(0))[0], full)
    with pytest.raises(ValueError, match="at most the 4 pieces"):
        AdaptiveBlendConfig(grid=2, kept=5)


def test_an_adaptive_patch_shows_one_corner_and_all_of_them_when_it_is_used() -> None:
    image = np.full((10, 10, 3), 50, np.uint8)
    config = AdaptivePatchConfig(size_fraction=0.2, opacity=0.5)
    corners = {}
    for seed in range(40):
        triggered, drawn = config.build()(image, rng_of(seed))
        (corner,) = drawn["corners"]
        corners[corner] = triggered
        assert (drawn["height"], drawn["width"]) == (2, 2)
        assert drawn["top"] in (0, 8)
    assert set(corners) == {"top_left", "top_right", "bottom_left", "bottom_right"}
    # Half of 50 and half of yellow; 152.5 is rounded to the even number.
    assert corners["bottom_right"][8:, 8:].reshape(-1, 3).tolist() == 4 * [[152, 152, 25]]
    assert (corners["bottom_right"][:8] == 50).all()
    used, drawn = config.when_used().build()(image, rng_of(0))
    assert (drawn["height"], drawn["width"], len(drawn["corners"])) == (10, 10, 4)
    for (top, left), corner in zip(
        ((0, 0), (0, 8), (8, 0), (8, 8)), sorted(corners, key=lambda c: ("bottom" in c, "right" in c)), strict=True
    ):
        assert np.array_equal(used[top : top + 2, left : left + 2], corners[corner][top : top + 2, left : left + 2])


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_what_is_used_is_what_is_shown_but_for_the_adaptive_ones(file: Path, picture: str) -> None:
    config = settings_of(file, picture)
    assert (config.when_used() == config) is not file.stem.startswith("adaptive")
