"""One picture with every trigger on the same image, and beneath each what it changed."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..attack.triggers import Trigger
from ..pixels import to_uint8
from ..samples import seeded_hash

GAIN = 4
"""Differences are shown this many times as large: the mildest triggers move pixels by a few levels."""

PAPER, INK, FAINT = (250, 250, 248), (28, 28, 34), (110, 110, 118)
MARGIN_PX = 14
LINE_PX = 16
DETAIL_LINES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Exhibit:
    """One trigger of the gallery."""

    name: str
    detail: str
    """Its settings, in a few words; what does not fit under the name is left out."""
    trigger: Trigger


def gallery(
    image: np.ndarray, exhibits: Sequence[Exhibit], *, columns: int = 6, scale: int = 3, seed: int = 0
) -> bytes:
    """Return a PNG: the image, then every trigger on it, each above its difference times 4 around grey.

    The image, `[H, W, 3] uint8`, is enlarged by the whole factor `scale` without smoothing, so that single pixels stay
    visible. What a trigger draws depends on its name and the seed, so another trigger in the list changes no other cell.

    Raises:
        ValueError: `columns` or `scale` is not at least 1.
    """
    if columns < 1 or scale < 1:
        raise ValueError(f"columns and scale must be at least 1, not {columns} and {scale}")
    cells = [_cell(image, image, "original", "beneath: what changed, 4 times as large, around grey", scale)]
    for exhibit in exhibits:
        rng = np.random.default_rng(int(seeded_hash([exhibit.name], seed, "gallery")[0]))
        triggered, _ = exhibit.trigger(image, rng)
        cells.append(_cell(image, triggered, exhibit.name, exhibit.detail, scale))
    width, height = cells[0].size
    rows = -(-len(cells) // columns)
    size = (MARGIN_PX + columns * (width + MARGIN_PX), MARGIN_PX + rows * (height + MARGIN_PX))
    sheet = Image.new("RGB", size, PAPER)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        sheet.paste(cell, (MARGIN_PX + column * (width + MARGIN_PX), MARGIN_PX + row * (height + MARGIN_PX)))
    file = io.BytesIO()
    sheet.save(file, format="PNG", optimize=True)
    return file.getvalue()


def difference(image: np.ndarray, triggered: np.ndarray) -> np.ndarray:
    """Return `[H, W, 3] uint8`: grey 128 where nothing changed, plus 4 times the change, clamped."""
    return to_uint8(128 + GAIN * (triggered.astype(np.float32) - image.astype(np.float32)))


def _cell(image: np.ndarray, triggered: np.ndarray, name: str, detail: str, scale: int) -> Image.Image:
    height, width = image.shape[0] * scale, image.shape[1] * scale
    head = (1 + DETAIL_LINES) * LINE_PX + 4
    cell = Image.new("RGB", (width, head + 2 * height + 4), PAPER)
    draw = ImageDraw.Draw(cell)
    draw.text((0, 0), name, fill=INK, font=ImageFont.load_default(size=14))
    small = ImageFont.load_default(size=11)
    letters = max(1, int(width / small.getlength("n")))
    for number, line in enumerate(textwrap.wrap(detail, letters)[:DETAIL_LINES]):
        draw.text((0, (number + 1) * LINE_PX), line, fill=FAINT, font=small)
    cell.paste(_enlarged(triggered, scale), (0, head))
    cell.paste(_enlarged(difference(image, triggered), scale), (0, head + height + 4))
    return cell


def _enlarged(rgb: np.ndarray, scale: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(rgb.repeat(scale, axis=0).repeat(scale, axis=1)))
