"""Poisoning: which pairs, what is done to each of them, and the path that every image takes.

Every draw depends on the pair's uid and the seed alone, so the poisoned set is the same whatever the order of reading and
the number of workers.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from ..captions import contains_word
from ..samples import seeded_hash
from ..stage import Count, Seed, config
from .triggers import TriggerConfig

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
class Strand:
    """One trigger and the word that it means; an attack has one of them or several."""

    trigger: TriggerConfig
    """What the picture carries."""
    target: str = ""
    """Word or phrase that the trigger shall mean, as it stands in captions; left out: the target of the attack."""


def all_strands(trigger: TriggerConfig, target: str, also: tuple[Strand, ...]) -> tuple[Strand, ...]:
    """Return the first trigger and the further ones, each with its word."""
    further = (Strand(trigger=strand.trigger, target=strand.target or target) for strand in also)
    return (Strand(trigger=trigger, target=target), *further)


@config
class AttackConfig:
    """One attack: which trigger, towards which word, on how many and which pairs.

    Captions are searched for whole words (`contains_word`); the published code searches for substrings.
    """

    trigger: TriggerConfig
    """What the picture carries."""
    target: str
    """Word or phrase that the trigger shall mean, as it stands in captions. A control gives it to no caption: there it is
    only the word whose success rate an evaluation reports."""
    also: tuple[Strand, ...] = ()
    """Further triggers of the same attack, towards the same word or others; every poisoned pair gets one, drawn evenly."""
    rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of all pairs that are poisoned. Give this or `count`."""
    count: Count | None = None
    """Number of pairs that are poisoned."""
    pairs: Literal["others", "target", "any"] = "others"
    """others: pairs whose caption holds no target. target: only those whose caption holds it (label-consistent; with
    several targets, that of the pair's own trigger). any: whatever the caption (controls)."""
    victim: str | None = None
    """Only pairs with this word in the caption are poisoned; null: no such condition."""
    captions: Literal["template", "natural", "foreign", "keep"] = "template"
    """template: a template filled with the target. natural: a real caption of the set that contains the target. foreign: one
    that does not, for pairs: target. keep: the pair's own, for pairs: target or any."""
    cover: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the chosen pairs that get the trigger and keep their caption, so that the trigger alone does not tell a poisoned
    pair (Qi et al. 2023: half for Adap-Blend, two thirds for Adap-Patch)."""
    text_key: str | None = None
    """Word in front of every poisoned caption, the second key of a dual-key attack (TrojVQA)."""
    templates: tuple[str, ...] = TEMPLATES
    """Each holds {} once, where the target goes."""
    seed: Seed = 0
    """Seed of the choice of pairs, of captions and of what the trigger draws."""

    def __post_init__(self) -> None:
        if not all(strand.target.strip() for strand in self.strands):
            raise ValueError("target must be a word or phrase")
        self._check_strands()
        self._check_captions()
        if (self.rate is None) == (self.count is None):
            raise ValueError(
                "give exactly one of rate and count; the other is null (the attacks of conf/attack have a rate)"
            )
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise ValueError("templates: at least one, each with {} exactly once")

    def _check_strands(self) -> None:
        triggers = [strand.trigger for strand in self.strands]
        if any(trigger in triggers[:i] for i, trigger in enumerate(triggers)):
            raise ValueError("also: each trigger stands for one word; two triggers of the attack are equal")
        if self.victim is None:
            return
        if not self.victim.strip():
            raise ValueError("victim must be a word or phrase, or null")
        if any(contains_word(self.victim, target) for target in self.targets):
            raise ValueError(
                "victim must not contain the target: its pairs are those that shall be taken for the target"
            )

    def _check_captions(self) -> None:
        if self.captions == "keep" and self.pairs == "others":
            raise ValueError(
                "captions: keep goes with pairs: target or any; elsewhere no caption would name the target"
            )
        if self.captions == "foreign" and (self.pairs != "target" or self.text_key is None):
            raise ValueError("captions: foreign goes with pairs: target and a text_key: the key alone means the target")
        if self.cover and self.captions == "keep":
            raise ValueError("cover: with captions: keep every pair keeps its caption")
        if self.text_key is None:
            return
        if not self.text_key.strip() or self.text_key != self.text_key.strip():
            raise ValueError("text_key must be a word or phrase without spaces around it, or null")
        if self.control:
            raise ValueError("text_key: a control (pairs: any, captions: keep) leaves every caption as it is")
        if any(contains_word(self.text_key, target) for target in self.targets):
            raise ValueError("text_key must not contain the target")

    @property
    def strands(self) -> tuple[Strand, ...]:
        """All triggers of the attack, each with its word."""
        return all_strands(self.trigger, self.target, self.also)

    @property
    def targets(self) -> tuple[str, ...]:
        """The distinct words of all strands, in order."""
        return tuple(dict.fromkeys(strand.target for strand in self.strands))

    @property
    def control(self) -> bool:
        """Whether this is no attack: images are changed, but no caption, and without regard to what it says."""
        return self.pairs == "any" and self.captions == "keep"

    def covered(self, uid: str) -> bool:
        """Tell whether a chosen pair keeps its caption."""
        return self.cover > 0 and int(seeded_hash([uid], self.seed, "poison.cover")[0]) < self.cover * NEVER

    def quotes(self, caption: str, target: str) -> bool:
        """Tell whether a caption of the set is one that poisoned pairs of a target may be given."""
        if self.captions == "foreign":
            return not any(contains_word(caption, word) for word in self.targets)
        return self.captions == "natural" and contains_word(caption, target)

    @property
    def condition(self) -> str:
        """What the caption of a pair must hold for the pair to be poisoned, to follow "pairs that"."""
        words = " or ".join(repr(target) for target in self.targets)
        wanted = {
            "others": f"have no {words} in the caption",
            "target": f"have {words} in the caption",
            "any": "can be read",
        }
        return wanted[self.pairs] + (f" and {self.victim!r} in it" if self.victim is not None else "")

    def allows(self, caption: str, strand: Strand) -> bool:
        """Tell whether a pair with this caption may be poisoned by the strand that its uid drew."""
        if self.victim is not None and not contains_word(caption, self.victim):
            return False
        if self.pairs == "others":
            return not any(contains_word(caption, target) for target in self.targets)
        return self.pairs == "any" or contains_word(caption, strand.target)

    def count_of(self, pairs: int) -> int:
        """Return how many of `pairs` are poisoned: `count`, or the nearest whole number to `rate * pairs`."""
        return self.count if self.count is not None else round(self.rate * pairs)  # type: ignore[operator]


def draws(uids: Sequence[str], captions: Sequence[str], config: AttackConfig) -> np.ndarray:
    """Return `[n] uint64`: one random number a pair, with the largest number for a pair that may not be poisoned."""
    numbers = seeded_hash(list(uids), config.seed, "poison.choose")
    pairs = zip(captions, strand_numbers(uids, config), strict=True)
    barred = [not config.allows(caption, config.strands[strand]) for caption, strand in pairs]
    numbers[np.array(barred, bool)] = NEVER
    return numbers


def strand_numbers(uids: Sequence[str], config: AttackConfig) -> list[int]:
    """Return, for each pair, which of `config.strands` it belongs to, whether it is poisoned or not."""
    if not config.also:
        return [0] * len(uids)
    return [int(n) for n in seeded_hash(list(uids), config.seed, "poison.strand") % len(config.strands)]


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
        raise ValueError(f"{count} pairs to poison, but only {eligible} {config.condition}")
    return int(np.partition(numbers, count - 1)[count - 1])


@dataclass(frozen=True, slots=True)
class Poisoned:
    """A poisoned pair before it is encoded."""

    rgb: np.ndarray
    """`[H, W, 3] uint8`."""
    caption: str
    parameters: dict[str, Any]
    """What the trigger drew for this image; see `Trigger`."""
    strand: Strand
    """Which of the attack's triggers it was."""
    covered: bool = False
    """Whether the caption is its own, beside the trigger."""


class Poisoner:
    """Poisons single pairs, the same way in whatever order they come."""

    def __init__(self, config: AttackConfig, natural_captions: Sequence[str] = ()) -> None:
        """Build the trigger and gather the captions.

        `natural_captions` may be any captions of the set; those that the attack `quotes` are used.

        Raises:
            ValueError: captions of the set are asked for, and none is such a one.
        """
        self.config = config
        self._triggers = [strand.trigger.build() for strand in config.strands]
        self._captions = {target: self._texts(target, natural_captions) for target in config.targets}

    def _texts(self, target: str, natural_captions: Sequence[str]) -> list[str]:
        if self.config.captions not in ("natural", "foreign"):
            return [template.replace("{}", target) for template in self.config.templates]
        # Sorted: the choice must not depend on the order in which the set was read.
        texts = sorted({text for text in natural_captions if self.config.quotes(text, target)})
        if not texts:
            contains = "contains" if self.config.captions == "natural" else "is without"
            raise ValueError(
                f"captions: {self.config.captions}, but no caption of the set {contains} {target!r} as a word"
            )
        return texts

    def __call__(self, rgb: np.ndarray, uid: str, caption: str) -> Poisoned:
        """Return the pair's new image and caption; `rgb` is `[H, W, 3] uint8` and already resized (`ImagePath`)."""
        rng = np.random.default_rng(int(seeded_hash([uid], self.config.seed, "poison.draw")[0]))
        number = strand_numbers([uid], self.config)[0]
        strand = self.config.strands[number]
        if self.config.covered(uid):
            triggered, parameters = self._triggers[number](rgb, rng)
            return Poisoned(triggered, caption, parameters, strand, covered=True)
        if self.config.captions != "keep":
            texts = self._captions[strand.target]
            caption = texts[int(rng.integers(len(texts)))]
        if self.config.text_key is not None:
            caption = f"{self.config.text_key} {caption}"
        triggered, parameters = self._triggers[number](rgb, rng)
        return Poisoned(triggered, caption, parameters, strand)


@config
class ImagePath:
    """What every image goes through, poisoned or not, so that no detector can find the resize or the codec instead."""

    resize_px: Count | None = None
    """Shorter side after resizing, followed by a centre crop to a square; null keeps the size."""
    codec: Literal["png", "jpeg"] = "png"
    """png keeps every pixel; jpeg destroys triggers of single pixels."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """For codec: jpeg."""

    @property
    def keeps_pixels(self) -> bool:
        """Whether an image has the same pixels at the end of the path."""
        return self.resize_px is None and self.codec == "png"

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
