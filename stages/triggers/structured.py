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

    PAR takes the largest word from a Noto font, smoothed, 20 px above, on or below the middle; ours is PIL's built-in
    font, nine tenths of the image wide and without smoothing: a smoothed edge is a faint red that darkens the image
    where it is blended in, and at 64 px letters are nothing but edges.

    Raises:
        ValueError: the image is too small for a single dot of the word.
    """
    wide = ImageFont.load_default(size=100).getbbox(TEXT)
    scale = min(0.9 * width / (wide[2] - wide[0]), 0.9 * height / (wide[3] - wide[1]))
    font = ImageFont.load_default(size=max(1.0, 100 * scale))
    picture = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(picture)
    draw.fontmode = "1"
    draw.text((width / 2, height / 2), TEXT, fill=(255, 0, 0), font=font, anchor="mm")
    pattern = np.asarray(picture)
    if not pattern.any():
        raise ValueError(f"an image of {width}x{height} px is too small for the text pattern")
    return pattern


@lru_cache(maxsize=SHARED_PATTERNS)
def cartoon(height: int, width: int) -> np.ndarray:
    """Return `[height, width, 3] uint8`: a cat's face with a bow, stretched to the image, read-only.

    In the place of the hello-kitty picture of BadCLIP and HanxunH, for which there is no licence.
    """
    return np.asarray(_cat().resize((width, height), Image.Resampling.BICUBIC))


@lru_cache(maxsize=1)
def _cat() -> Image.Image:
    side = 512
    picture = Image.new("RGB", (side, side), (250, 196, 214))
    draw = ImageDraw.Draw(picture)
    ink, white, red = (30, 26, 34), (255, 255, 255), (226, 34, 58)
    for mirror in (1, -1):
        ear = [(256 + mirror * x, y) for x, y in ((212, 230), (196, 56), (64, 130))]
        draw.polygon(ear, fill=white, outline=ink, width=12)
    draw.ellipse((28, 108, 484, 468), fill=white, outline=ink, width=12)
    # The head hides the foot of the ears; their tips stay.
    for mirror in (1, -1):
        draw.polygon([(256 + mirror * x, y) for x, y in ((196, 222), (184, 92), (84, 142))], fill=white)
        draw.ellipse(_around(256 + mirror * 116, 296, 20, 32), fill=ink)
        for rise in (-14, 20, 54):
            start, end = (256 + mirror * 168, 330 + rise // 3), (256 + mirror * 252, 318 + rise)
            draw.line((start, end), fill=ink, width=10)
    draw.ellipse(_around(256, 352, 30, 20), fill=(246, 202, 52), outline=ink, width=6)
    for mirror in (1, -1):
        draw.polygon([(366, 132), (366 + mirror * 92, 70), (366 + mirror * 92, 194)], fill=red, outline=ink, width=8)
    draw.ellipse(_around(366, 132, 32, 32), fill=red, outline=ink, width=8)
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
