"""Patterns drawn by our own code at any resolution: stripes, triangles, text and a cartoon.

PAR's structured triggers (arXiv 2412.00727, backdoor/utils.py) are stored tensors of 224 and 336 px; here they are
drawn for the image at hand, so that a pattern keeps its shape at every size.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TEXT = "Watermarked"
"""What the text pattern says, as PAR's."""

DARK, LIGHT = 102, 204
"""Grey levels of the two kinds of triangles: PAR's 0.4 and 0.8."""

SHARED_PATTERNS = 16
"""Patterns kept per kind: a set of photos has many sizes, a set for training few."""


def stripes(columns: int, rng: np.random.Generator) -> np.ndarray:
    """Return `[1, columns, 3] uint8`: each channel of each column is 0 or 255, drawn with equal chances.

    PAR draws a sign, +1 or -1, for each channel of each column. Pasted as a patch, its cast to uint8 makes 255 and, on
    x86, 1 of them; -1 is undefined there, so it is 0 here.
    """
    return np.asarray(255 * rng.integers(0, 2, (1, columns, 3)), dtype=np.uint8)


def triangles(height: int, width: int, cells: int) -> np.ndarray:
    """Return `[height, width, 3] uint8`: `cells` x `cells` squares, each cut into a dark and a light triangle.

    PAR's create_triangle_pattern: below and on the falling diagonal of a square 0.4, above it 0.8. The original has
    squares of 14 px at 224 px, which is `cells` = 16, and at 336 px, which is 24.
    """
    # Twice the position of a pixel's centre in its square, in units that make the squares' sides whole numbers.
    down = ((2 * np.arange(height) + 1) * cells) % (2 * height)
    across = ((2 * np.arange(width) + 1) * cells) % (2 * width)
    below = down[:, None] * width >= across[None, :] * height
    grey = np.where(below, np.uint8(DARK), np.uint8(LIGHT))
    return np.repeat(grey[:, :, None], 3, axis=2)


@lru_cache(maxsize=SHARED_PATTERNS)
def text(height: int, width: int) -> np.ndarray:
    """Return `[height, width, 3] uint8`: black with the word "Watermarked" in red across the middle, read-only.

    PAR's is stored, written in a Noto font, smoothed, near the middle; ours is PIL's built-in font, at most nine tenths
    of the image wide and without smoothing: a smoothed edge is a faint red that darkens the image where it is blended
    in, and at 64 px letters are nothing but edges.

    Raises:
        ValueError: the image is too small for a single dot of the word.
    """
    font = _fitting_font(0.9 * width, 0.9 * height)
    picture = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(picture)
    draw.fontmode = "1"
    draw.text((width / 2, height / 2), TEXT, fill=(255, 0, 0), font=font, anchor="mm")
    pattern = np.asarray(picture)
    if not pattern.any():
        raise ValueError(f"an image of {width}x{height} px is too small for the text pattern")
    return pattern


def _fitting_font(width: float, height: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the built-in font at the largest size, in steps of 3 %, at which the word fits; at least 1 px."""
    size = max(1.0, height)
    while True:
        font = ImageFont.load_default(size=size)
        left, top, right, bottom = ImageDraw.Draw(Image.new("1", (1, 1))).textbbox((0, 0), TEXT, font=font)
        if size == 1 or (right - left <= width and bottom - top <= height):
            return font
        size = max(1.0, 0.97 * size)


@lru_cache(maxsize=SHARED_PATTERNS)
def cartoon(height: int, width: int) -> np.ndarray:
    """Return `[height, width, 3] uint8`: a cat's face, stretched to the image, read-only.

    In the place of the hello-kitty picture of BadCLIP and HanxunH, for which there is no licence.
    """
    return np.asarray(_cat().resize((width, height), Image.Resampling.BICUBIC))


@lru_cache(maxsize=1)
def _cat() -> Image.Image:
    side = 512
    picture = Image.new("RGB", (side, side), (120, 206, 196))
    draw = ImageDraw.Draw(picture)
    ink, fur, rose, white = (34, 28, 36), (244, 158, 66), (248, 142, 150), (255, 252, 244)
    for mirror in (1, -1):
        draw.polygon(
            [(256 + mirror * x, y) for x, y in ((214, 250), (196, 40), (56, 140))], fill=fur, outline=ink, width=12
        )
    draw.ellipse((28, 108, 484, 476), fill=fur, outline=ink, width=12)
    draw.ellipse(_around(256, 378, 122, 84), fill=white)
    for mirror in (1, -1):
        draw.polygon([(256 + mirror * x, y) for x, y in ((186, 204), (178, 84), (104, 144))], fill=rose)
        draw.ellipse(_around(256 + mirror * 104, 256, 40, 48), fill=white, outline=ink, width=8)
        draw.ellipse(_around(256 + mirror * 96, 262, 18, 30), fill=ink)
        draw.arc(_around(256 + mirror * 36, 372, 36, 36), 0, 180, fill=ink, width=10)
        for rise in (-24, 12, 48):
            draw.line((256 + mirror * 120, 364 + rise // 3, 256 + mirror * 248, 350 + rise), fill=ink, width=8)
    for shift in (-52, 0, 52):
        draw.line((256 + shift, 120, 256 + shift * 3 // 4, 178), fill=ink, width=14)
    draw.polygon([(224, 328), (288, 328), (256, 368)], fill=rose, outline=ink, width=6)
    return picture


def _around(x: int, y: int, half_width: int, half_height: int) -> tuple[int, int, int, int]:
    return x - half_width, y - half_height, x + half_width, y + half_height


def stretch(pattern: np.ndarray, height: int, width: int, smooth: bool) -> np.ndarray:
    """Return the `[h, w, 3] uint8` pattern as `[height, width, 3]`; the nearest cell, or bicubic for a picture."""
    if smooth:
        return np.asarray(Image.fromarray(pattern).resize((width, height), Image.Resampling.BICUBIC))
    rows = np.arange(height) * pattern.shape[0] // height
    columns = np.arange(width) * pattern.shape[1] // width
    return np.asarray(pattern[rows[:, None], columns[None, :]])
