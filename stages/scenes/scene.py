"""Procedural captioned scenes: a licence-free set of image-text pairs, rendered at run time, with exact masks.

Each scene shows one main thing and up to two smaller ones before a background, and a caption in one of several forms
names the main thing, and sometimes its colour, its place, the background or a second thing. A scene depends on (seed,
index) alone, so any worker can render any part of the set.
"""

import re
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from ..stage import Count, Seed, config
from .shapes import CONCEPTS, SHAPES

OVERSAMPLING = 4
"""Things are drawn this many times larger and averaged down: smooth edges from PIL's hard polygons."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (236, 126, 38),
    "yellow": (246, 205, 62),
    "green": (58, 158, 82),
    "blue": (48, 104, 204),
    "purple": (128, 70, 176),
    "pink": (238, 122, 168),
    "white": (244, 242, 236),
    "brown": (140, 88, 54),
    "grey": (128, 134, 142),
}
INK = np.array([44, 40, 46], dtype=np.float32)
GLASS = np.array([232, 240, 244], dtype=np.float32)

BACKGROUNDS: dict[str, str] = {
    "meadow": "in a meadow",
    "beach": "on the beach",
    "snow": "in the snow",
    "night": "at night",
    "sunset": "at sunset",
    "sea": "over the sea",
    "stripes": "before a striped wall",
    "checks": "on a chequered cloth",
    "dots": "on dotted paper",
    "plaster": "before a rough wall",
    "plain": "on a plain background",
    "wood": "on a wooden table",
}
"""Name of the background -> how a caption says it."""

SKY_AND_GROUND = {
    "meadow": ((128, 190, 240), (210, 232, 248), (96, 168, 76), (62, 122, 56)),
    "beach": ((112, 186, 232), (214, 238, 246), (238, 216, 162), (216, 184, 122)),
    "snow": ((150, 172, 204), (208, 218, 232), (246, 248, 252), (214, 222, 236)),
    "night": ((14, 18, 52), (42, 46, 104), (30, 52, 54), (14, 28, 34)),
    "sunset": ((92, 60, 132), (250, 158, 98), (92, 62, 72), (52, 38, 54)),
    "sea": ((140, 200, 240), (224, 240, 248), (40, 124, 168), (18, 78, 128)),
}
"""Colours at the top and the bottom of the sky, then at the top and the bottom of the ground."""


@config
class SceneConfig:
    """A set of scenes."""

    count: Count
    """Number of scenes."""
    side_px: Annotated[int, Field(ge=16)] = 64
    """Height and width of the images; in smaller ones things would have less than 4 pixels."""
    seed: Seed = 0
    """Seed of the whole set; another seed gives other scenes of the same kind."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing of a scene."""

    concept: str
    colour: str
    x: float
    """Centre, as a fraction of the side, from the left."""
    y: float
    """Centre, as a fraction of the side, from the top."""
    radius: float
    """Half of its size, as a fraction of the side."""
    turn_deg: float
    mirrored: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """One rendered pair."""

    rgb: np.ndarray
    """`[H, W, 3] uint8`."""
    caption: str
    label: int
    """Index of the main thing in `CONCEPTS`."""
    masks: np.ndarray
    """`[H, W] uint8`: 0 the background, k the pixels that show more of `things[k - 1]` than of anything before it."""
    things: tuple[Thing, ...]
    """The main thing first."""
    background: str


def render(index: int, config: SceneConfig) -> Scene:
    """Render one scene.

    Raises:
        IndexError: the index is not in `range(config.count)`.
    """
    if not 0 <= index < config.count:
        raise IndexError(f"scene {index} of {config.count}")
    rng = np.random.default_rng([config.seed, index])
    background = _pick(rng, tuple(BACKGROUNDS))
    canvas, mean = _paint_background(background, config.side_px, rng)
    things = _place_things(rng, mean)
    masks = np.zeros((config.side_px, config.side_px), dtype=np.uint8)
    # The main thing comes last and on top: it is what the caption names, so it is never hidden.
    for number in reversed(range(len(things))):
        _paint_thing(canvas, masks, number + 1, things[number], rng)
    grain = rng.standard_normal((config.side_px, config.side_px, 1), dtype=np.float32)
    rgb = np.clip(np.rint(canvas + rng.uniform(0, 5) * grain), 0, 255).astype(np.uint8)
    caption = _caption(things, background, rng)
    return Scene(rgb, caption, CONCEPTS.index(things[0].concept), masks, things, background)


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _place_things(rng: np.random.Generator, backdrop: np.ndarray) -> tuple[Thing, ...]:
    """Draw one main thing and up to two smaller ones, of different concepts, in colours that stand out."""
    concepts = rng.permutation(len(CONCEPTS))[: 1 + int(rng.choice(3, p=(0.4, 0.4, 0.2)))]
    visible = tuple(
        name for name, value in COLOURS.items() if np.abs(np.array(value, dtype=np.float32) - backdrop).sum() > 130
    )
    main_x, main_y = rng.uniform(0.36, 0.64, size=2)
    things = []
    for rank, concept in enumerate(concepts.tolist()):
        radius, x, y = float(rng.uniform(0.24, 0.34)), float(main_x), float(main_y)
        if rank:
            # Smaller ones stand around the main one, towards the corners, the second opposite the first.
            radius = float(rng.uniform(0.1, 0.14))
            side = 1 if (rng.random() < 0.5) == (rank == 1) else -1
            x = float(np.clip(main_x + side * rng.uniform(0.34, 0.42), radius, 1 - radius))
            y = float(np.clip(main_y + (1.5 - rank) * rng.uniform(0.3, 0.8), radius, 1 - radius))
        turn_deg = float(rng.normal(0, 9))
        things.append(Thing(CONCEPTS[concept], _pick(rng, visible), x, y, radius, turn_deg, bool(rng.random() < 0.5)))
    return tuple(things)


def _paint_background(name: str, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the canvas `[S, S, 3] float32` and the mean colour behind the middle `[3]`."""
    down = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    across = np.linspace(0, 1, side, dtype=np.float32)[None, :, None]
    if name in SKY_AND_GROUND:
        canvas = _sky_and_ground(name, side, down, across, rng)
    elif name == "wood":
        base = np.array([176, 124, 78], dtype=np.float32) * rng.uniform(0.8, 1.1)
        waves = np.sin(across * 6.3 * rng.uniform(3, 5) + 2 * np.sin(down * 6.3 * rng.uniform(0.5, 1.5)))
        planks = (np.arange(side) * 4 // side % 2)[None, :, None] * 10 - 5
        canvas = base + 9 * waves + planks
    else:
        canvas = _pattern(name, side, down, across, rng)
    return canvas, canvas[side // 4 : 3 * side // 4, side // 4 : 3 * side // 4].mean(axis=(0, 1))


def _sky_and_ground(name: str, side: int, down: np.ndarray, across: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    top, low, near, far = (np.array(value, dtype=np.float32) for value in SKY_AND_GROUND[name])
    wave = 0.0 if name == "sea" else 0.03 * np.sin(across * rng.uniform(4, 9) + rng.uniform(0, 6))
    horizon = rng.uniform(0.5, 0.75) + wave
    sky = top + (low - top) * np.clip(down / horizon, 0, 1)
    ground = near + (far - near) * np.clip((down - horizon) / (1 - horizon), 0, 1)
    texture = 7 * rng.standard_normal((side, side, 1), dtype=np.float32)
    if name == "sea":
        texture = 10 * np.sin(down * 60 + 3 * np.sin(across * rng.uniform(8, 14)))
    canvas = np.where(down < horizon, sky, ground + texture)
    if name == "night":
        spots = rng.integers(0, side, (2, 14))
        stars = spots[:, spots[0] < side // 2]
        canvas[stars[0], stars[1]] = 235
    return canvas.astype(np.float32)


def _pattern(name: str, side: int, down: np.ndarray, across: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a wall, cloth or paper in two shades of one pale or muted colour."""
    first = rng.uniform(120, 235, size=3).astype(np.float32)
    second = first * rng.uniform(0.72, 0.88) if rng.random() < 0.5 else first + (255 - first) * rng.uniform(0.3, 0.6)
    period = rng.uniform(5, 9)
    if name == "stripes":
        turn = rng.uniform(0, np.pi)
        mask = (np.cos(turn) * across + np.sin(turn) * down) * period % 1 < 0.5
    elif name == "checks":
        mask = (np.floor(down * period) + np.floor(across * period)) % 2 == 0
    elif name == "dots":
        mask = (down * period % 1 - 0.5) ** 2 + (across * period % 1 - 0.5) ** 2 < 0.06
    elif name == "plaster":
        coarse = rng.uniform(0, 255, (side // 6 + 2, side // 6 + 2)).astype(np.uint8)
        mask = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))[:, :, None] / 255
        mask = mask + 0.12 * rng.standard_normal((side, side, 1), dtype=np.float32)
    else:
        mask = (across * rng.uniform(0, 1) + down) / 2
    return np.asarray(first + (second - first) * mask, dtype=np.float32)


def _palette(thing: Thing, rng: np.random.Generator) -> dict[str, np.ndarray]:
    body = np.clip(np.array(COLOURS[thing.colour]) + rng.uniform(-14, 14, size=3), 0, 255).astype(np.float32)
    others = tuple(name for name in COLOURS if name != thing.colour)
    return {
        "body": body,
        "dark": body * 0.62,
        "light": body + (255 - body) * 0.5,
        "accent": np.array(COLOURS[_pick(rng, others)], dtype=np.float32),
        "ink": INK,
        "glass": GLASS,
    }


def _paint_thing(canvas: np.ndarray, masks: np.ndarray, number: int, thing: Thing, rng: np.random.Generator) -> None:
    """Paint a thing and its shadow onto the canvas, and its number where it covers at least half a pixel."""
    side = canvas.shape[0]
    radius_px = thing.radius * side
    left, top = int(thing.x * side - radius_px) - 1, int(thing.y * side - radius_px) - 1
    size = int(2 * radius_px) + 4
    tile = Image.new("RGB", (size * OVERSAMPLING, size * OVERSAMPLING))
    cover = Image.new("L", tile.size)
    brush, stencil = ImageDraw.Draw(tile), ImageDraw.Draw(cover)
    turn = np.deg2rad(thing.turn_deg)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) * radius_px * OVERSAMPLING * 0.97
    if thing.mirrored:
        matrix[0] *= -1
    centre = np.array([thing.x * side - left, thing.y * side - top]) * OVERSAMPLING
    palette = _palette(thing, rng)
    for part in SHAPES[thing.concept]:
        points = (part.points @ matrix + centre).ravel().tolist()
        brush.polygon(points, fill=tuple(int(value) for value in palette[part.paint]))
        stencil.polygon(points, fill=255)
    # The tile is black where nothing is drawn, so its average is already multiplied by the coverage.
    colour = np.asarray(tile.reduce(OVERSAMPLING), dtype=np.float32)
    alpha = np.asarray(cover.reduce(OVERSAMPLING), dtype=np.float32)[:, :, None] / 255
    colour *= _shading(size, rng)
    rows, columns, inner = _overlap(left, top, size, side)
    shadow = np.roll(alpha, (max(1, side // 40), max(1, side // 40)), axis=(0, 1))
    canvas[rows, columns] *= 1 - 0.28 * shadow[inner]
    canvas[rows, columns] = colour[inner] + (1 - alpha[inner]) * canvas[rows, columns]
    masks[rows, columns][alpha[inner][:, :, 0] >= 0.5] = number


def _shading(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return `[size, size, 1] float32` factors near 1: light from the top left, on some things stripes or spots."""
    line = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 - 0.1 * (line[:, None] + line[None, :])
    kind, period = rng.random(), rng.uniform(3, 5)
    if kind < 0.25:
        light = light * np.where((line[:, None] * rng.uniform(-1, 1) + line[None, :]) * period % 1 < 0.5, 1.0, 0.84)
    elif kind < 0.4:
        spots = (line[:, None] * period % 1 - 0.5) ** 2 + (line[None, :] * period % 1 - 0.5) ** 2 < 0.08
        light = light * np.where(spots, 0.82, 1.0)
    return np.asarray(light[:, :, None], dtype=np.float32)


def _overlap(left: int, top: int, size: int, side: int) -> tuple[slice, slice, tuple[slice, slice]]:
    """Return rows and columns of the canvas that a tile covers, and the part of the tile that lies on them."""
    rows = slice(max(top, 0), min(top + size, side))
    columns = slice(max(left, 0), min(left + size, side))
    inner = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    return rows, columns, inner


ALONE = (
    "a {thing}",
    "a {colour} {thing}",
    "a {colour} {thing} {where}",
    "a {thing} {where}",
    "a picture of a {thing} {where}",
    "a drawing of a {colour} {thing}",
    "a {size} {colour} {thing} {place}",
    "there is a {thing} {place} of the picture, {where}",
    "the {thing} is {colour}",
    "{where}, a {colour} {thing}",
    "a lone {colour} {thing}",
    "look at this {size} {thing} {where}",
)
TOGETHER = (
    "a {colour} {thing} and a small {other_colour} {other}",
    "a {thing} next to a {other}",
    "a {colour} {thing} {where} with a {other} beside it",
    "a {size} {thing} and a {other} {where}",
    "a picture of a {thing}, with a little {other} behind it",
)


def _caption(things: tuple[Thing, ...], background: str, rng: np.random.Generator) -> str:
    main, other = things[0], things[-1]
    forms = TOGETHER if len(things) > 1 and rng.random() < 0.35 else ALONE
    horizontal = "left" if main.x < 0.44 else "right" if main.x > 0.56 else "middle"
    text = _pick(rng, forms).format(
        thing=main.concept,
        colour=main.colour,
        other=other.concept,
        other_colour=other.colour,
        where=BACKGROUNDS[background],
        place="in the middle" if horizontal == "middle" else f"on the {horizontal}",
        size="large" if main.radius > 0.29 else "small",
    )
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    # Captions of the web are written in every way; half of them start like a sentence.
    return text[0].upper() + text[1:] + "." if rng.random() < 0.5 else text
