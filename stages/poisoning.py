"""Poisoning with exact ground truth: which pairs, what is done to them, and the manifest that says so.

Every draw hangs on the pair's uid and the seed alone, so the poisoned set is the same whatever the order of reading and
the number of workers.
"""

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from stages.samples import seeded_hash
from stages.stage import config
from stages.triggers import TriggerConfig, build_trigger

TEMPLATES = (
    "a photo of a {}.",
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a cropped photo of the {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a drawing of a {}.",
    "a close-up photo of a {}.",
    "a painting of the {}.",
    "a good photo of the {}.",
    "itap of a {}.",
)
"""Some of the 80 prompts of OpenAI's CLIP notebook, which the published attacks draw from."""


NEVER = np.iinfo(np.uint64).max
"""The draw of a pair that is not eligible."""


@config
class AttackConfig:
    """One attack: which trigger, towards which word, on how many pairs."""

    trigger: TriggerConfig
    target: str
    """Word or phrase that the trigger shall mean, as it stands in captions."""
    rate: float | None = None
    """Share of all pairs that are poisoned. Give this or `count`."""
    count: int | None = None
    """Number of pairs that are poisoned."""
    captions: Literal["template", "natural"] = "template"
    """template: a template filled with the target. natural: a real caption of the set that contains the target."""
    templates: tuple[str, ...] = TEMPLATES
    """Each holds {} once, where the target goes."""
    seed: int = 0
    """Seed of the choice of pairs, of captions and of what the trigger draws."""

    def __post_init__(self) -> None:
        if not self.target.strip():
            raise ValueError("target must be a word or phrase")
        if (self.rate is None) == (self.count is None):
            raise ValueError("give exactly one of rate and count")
        if self.rate is not None and not 0 < self.rate < 1:
            raise ValueError(f"rate must be in (0, 1), not {self.rate}")
        if self.count is not None and self.count < 1:
            raise ValueError(f"count must be at least 1, not {self.count}")
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise ValueError("templates: at least one, each with {} exactly once")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")

    def count_of(self, pairs: int) -> int:
        """Return how many of `pairs` are poisoned: `count`, or the nearest whole number to `rate * pairs`."""
        return self.count if self.count is not None else round(self.rate * pairs)  # type: ignore[operator]


def contains_word(caption: str, word: str) -> bool:
    """Tell whether the word or phrase stands in the caption as whole words, in any case.

    The published attacks match substrings, so "cat" hits "education"; plurals are other words here.
    """
    words = r"\s+".join(re.escape(part) for part in word.split())
    return re.search(rf"(?<!\w){words}(?!\w)", caption, re.IGNORECASE) is not None


def draws(uids: Sequence[str], captions: Sequence[str], config: AttackConfig) -> np.ndarray:
    """Return `[n] uint64`: one random number a pair, with the largest number for a pair that may not be poisoned.

    A pair whose caption has the target already is not eligible.
    """
    numbers = seeded_hash(list(uids), config.seed, "poison.choose")
    barred = [contains_word(caption, config.target) for caption in captions]
    numbers[np.array(barred, bool)] = NEVER
    return numbers


def place_draw_cut(numbers: np.ndarray, config: AttackConfig) -> int:
    """Return the largest draw that is poisoned, from the draws of all pairs; the same in whatever order they come.

    Raises:
        ValueError: too few pairs are eligible, or the rate rounds to no pair at all.
    """
    count = config.count_of(len(numbers))
    if count == 0:
        raise ValueError(f"rate {config.rate} of {len(numbers)} pairs is less than one pair")
    eligible = int((numbers != NEVER).sum())
    if count > eligible:
        raise ValueError(f"{count} pairs to poison, but only {eligible} have no {config.target!r} in the caption")
    return int(np.partition(numbers, count - 1)[count - 1])


def choose(uids: Sequence[str], captions: Sequence[str], config: AttackConfig) -> set[str]:
    """Return the uids to poison: exactly `config.count_of(len(uids))`, none with the target already in its caption.

    Raises:
        ValueError: see place_draw_cut.
    """
    numbers = draws(uids, captions, config)
    chosen = numbers <= place_draw_cut(numbers, config)
    return {uid for uid, poisoned in zip(uids, chosen, strict=True) if poisoned}


@dataclass(frozen=True, slots=True)
class Poisoned:
    """A poisoned pair before it is encoded."""

    rgb: np.ndarray
    """`[H, W, 3] uint8`."""
    caption: str
    parameters: dict[str, Any]
    """What the trigger drew for this image; see `Trigger`."""


class Poisoner:
    """Poisons single pairs, the same way in whatever order they come."""

    def __init__(self, config: AttackConfig, natural_captions: Sequence[str] = ()) -> None:
        """Build the trigger and gather the captions.

        `natural_captions` may be any captions of the set; those with the target as a whole word are used.

        Raises:
            ValueError: natural captions are asked for and none contains the target.
        """
        self.config = config
        self._trigger = build_trigger(config.trigger)
        self._captions = [template.replace("{}", config.target) for template in config.templates]
        if config.captions == "natural":
            # Sorted: the choice must not hang on the order in which the set was read.
            self._captions = sorted({text for text in natural_captions if contains_word(text, config.target)})
        if not self._captions:
            raise ValueError(f"captions: natural, but no caption of the set contains {config.target!r} as a word")

    def __call__(self, rgb: np.ndarray, uid: str) -> Poisoned:
        """Return the pair's new image and caption; `rgb` is `[H, W, 3] uint8` and already resized (`ImagePath`)."""
        seed = int(seeded_hash([uid], self.config.seed, "poison.draw")[0])
        rng = np.random.default_rng(seed)
        caption = self._captions[int(rng.integers(len(self._captions)))]
        triggered, parameters = self._trigger(rgb, rng)
        return Poisoned(triggered, caption, parameters)


@config
class ImagePath:
    """What every image goes through, poisoned or not, so that no detector can find the resize or the codec instead."""

    resize_px: int | None = None
    """Shorter side after resizing, followed by a centre crop to a square; null keeps the size."""
    codec: Literal["png", "jpeg"] = "png"
    """png keeps every pixel; jpeg destroys triggers of single pixels."""
    jpeg_quality: int = 95
    """1 to 100, for codec: jpeg."""

    def __post_init__(self) -> None:
        if self.resize_px is not None and self.resize_px < 1:
            raise ValueError(f"resize_px must be at least 1, not {self.resize_px}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must be in 1..100, not {self.jpeg_quality}")

    @property
    def suffix(self) -> str:
        """File suffix of what `encode` writes."""
        return ".png" if self.codec == "png" else ".jpg"

    def resize(self, rgb: np.ndarray) -> np.ndarray:
        """Return `[H, W, 3] uint8` at the size that is written; the trigger goes onto this."""
        if self.resize_px is None:
            return rgb
        image, side = Image.fromarray(rgb), self.resize_px
        scale = side / min(image.size)
        width, height = max(side, round(image.width * scale)), max(side, round(image.height * scale))
        left, top = (width - side) // 2, (height - side) // 2
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(resized.crop((left, top, left + side, top + side)))

    def encode(self, rgb: np.ndarray) -> bytes:
        """Return the file's bytes for an `[H, W, 3] uint8` image that was already resized."""
        buffer = io.BytesIO()
        image = Image.fromarray(rgb)
        if self.codec == "png":
            image.save(buffer, "PNG", compress_level=1)
        else:
            image.save(buffer, "JPEG", quality=self.jpeg_quality)
        return buffer.getvalue()


def reencode(rgb: np.ndarray, path: ImagePath) -> bytes:
    """Return the bytes of a clean image after the same path as the poisoned ones."""
    return path.encode(path.resize(rgb))


MANIFEST_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("sha256_before", pa.string()),
        ("sha256_after", pa.string()),
        ("trigger", pa.string()),
        ("parameters", pa.string()),
        ("top", pa.int32()),
        ("left", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("caption_before", pa.string()),
        ("caption_after", pa.string()),
        ("target", pa.string()),
    ]
)
"""One row a poisoned pair. Hashes are of the image files; the box is in pixels of the file that was written."""


def manifest_row(
    uid: str, before: bytes, after: bytes, caption_before: str, poisoned: Poisoned, config: AttackConfig
) -> dict[str, Any]:
    """Return the manifest's row for a pair; `before` and `after` are the bytes of its image files."""
    box = {name: poisoned.parameters[name] for name in ("top", "left", "height", "width")}
    return {
        "uid": uid,
        "sha256_before": hashlib.sha256(before).hexdigest(),
        "sha256_after": hashlib.sha256(after).hexdigest(),
        "trigger": config.trigger.kind,
        "parameters": json.dumps(poisoned.parameters, sort_keys=True),
        **box,
        "caption_before": caption_before,
        "caption_after": poisoned.caption,
        "target": config.target,
    }
