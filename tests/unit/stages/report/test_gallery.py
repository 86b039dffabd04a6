"""The gallery shows each trigger's own pixels, enlarged without smoothing, and four times what it changed."""

import io

import numpy as np
import pytest
from PIL import Image

from clipsan.stages.attack.triggers import DarkenConfig, IdentityConfig, PatchConfig
from clipsan.stages.report.gallery import Exhibit, difference, gallery

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)


def sheet_of(*exhibits: Exhibit, columns: int = 3) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(gallery(IMAGE, exhibits, columns=columns, scale=3))))


def holds(sheet: np.ndarray, rgb: np.ndarray) -> bool:
    """Whether the picture, 3 times as large, stands somewhere on the sheet."""
    large = rgb.repeat(3, axis=0).repeat(3, axis=1)
    height, width = large.shape[:2]
    starts = np.argwhere((sheet[: 1 - height, : 1 - width] == large[0, 0]).all(axis=2))
    return any(np.array_equal(sheet[y : y + height, x : x + width], large) for y, x in starts)


def test_each_cell_is_the_triggered_image_above_its_difference() -> None:
    darken = Exhibit(name="darken", detail="factor 0.5", trigger=DarkenConfig(factor=0.5).build())
    identity = Exhibit(name="identity", detail="", trigger=IdentityConfig().build())
    sheet = sheet_of(darken, identity)
    darker = np.rint(IMAGE / 2).astype(np.uint8)
    assert holds(sheet, IMAGE)
    assert holds(sheet, darker)
    assert holds(sheet, np.clip(128 + 4 * (darker.astype(int) - IMAGE), 0, 255).astype(np.uint8))
    assert not holds(sheet_of(identity), darker)


def test_a_draw_does_not_hang_on_the_other_exhibits() -> None:
    trigger = PatchConfig(size_px=8, pattern="noise", place="random").build()
    exhibit = Exhibit(name="noise", detail="", trigger=trigger)
    alone = sheet_of(exhibit, columns=2)
    behind = sheet_of(Exhibit(name="other", detail="", trigger=trigger), exhibit, columns=3)
    width = alone.shape[1] // 2
    assert np.array_equal(alone[:, -width:], behind[:, -width:])
    assert gallery(IMAGE, [exhibit]) == gallery(IMAGE, [exhibit])


def test_difference_is_grey_where_nothing_changed() -> None:
    changed = IMAGE.copy()
    changed[0, 0] = IMAGE[0, 0] ^ 1
    shown = difference(IMAGE, changed)
    assert (shown[0, 0] != 128).all()
    assert set(shown[0, 0].tolist()) <= {124, 132}
    shown[0, 0] = 128
    assert (shown == 128).all()


@pytest.mark.parametrize("settings", [{"columns": 0}, {"scale": 0}])
def test_impossible_layouts_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="columns and scale must be at least 1"):
        gallery(IMAGE, [], **settings)
