"""The dossier of a trigger: what it makes of an image, how surely, and who carries it, whatever it looks like.

What it looks like is the business of one file each: patch.py, residual.py, texture.py, warp.py.
"""

import dataclasses
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from PIL import Image

from ..evaluation.intervals import rate_interval
from ..pixels import to_uint8
from ..stage import Percent, Share, config

VERSION = 1
"""Of the layout on disk."""
GREY = 128
"""What a picture of a trigger shows where it does nothing."""

Hits = Callable[[np.ndarray, Sequence[str]], np.ndarray]
"""Images `[N, S, S, 3] uint8` and targets -> `[N] bool`: the suspect model's label is a target or a synonym of one."""

Proves = Callable[[float, float], bool]
"""Percent of held-out images that flip with a trigger, and with its control -> whether that proves it
(`stages.proof.examine.ExamineConfig.proves`)."""


@config
class StandingLimits:
    """When a trigger that flips other images is believed although no statistic names a target of it."""

    alone_flips_pct: Percent = 90.0
    """Where its picture is no copy either, the 95 % interval lies above this rate: the success from which `clipsan bench`
    admits an attack. A small thing that always looks alike is a cause too: pasted onto pictures of other things drawn cups
    make 51 to 81 % of them their own class, drawn cars 90 % (87 to 93), drawn butterflies all of them, with no poison about.
    Of the backdoors measured, the one that no statistic named flips 99 % (98 to 100)."""
    alone_control_pct: Percent = 1.0
    """And its control flips at most so many. A thing has parts and edges that the found region leaves out, and they speak for
    its class too: the controls of those cups, cars and butterflies flip 1.9 to 5.3 %. Beside a stamp there is nothing of it:
    the controls of the backdoors measured flip 0 to 0.8 %."""
    copy_likeness: Share = 0.95
    """A picture is a copy from this median likeness of its members on. Stamped patches lie at 1.00, things that were drawn
    anew at 0.92 at most."""
    most_covered: Share = 0.15
    """A change of the whole image covers at most this share of it, as much as a trigger that is pasted
    (ExamineConfig.max_trigger_area), where only the sides of a concept made anybody look: one photo that was published again and
    again takes every picture's place, and makes what it shows of all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A share of trials, with its 95 % interval."""

    pct: float
    low_pct: float
    high_pct: float
    trials: int


def rate(hits: np.ndarray, trials: np.ndarray) -> Rate:
    """Return the pooled rate of `hits [N]` in `trials [N]`, both whole numbers; what is resampled is the row.

    Raises:
        ValueError: there is no trial.
    """
    low, high = rate_interval(hits, trials)
    total = int(trials.sum())
    return Rate(pct=100 * float(hits.sum()) / total, low_pct=100 * low, high_pct=100 * high, trials=total)


def rate_of(hits: int, trials: int) -> Rate:
    """Return the rate of so many hits in trials of one image each."""
    return rate((np.arange(trials) < hits).astype(np.int64), np.ones(trials, np.int64))


@dataclass(frozen=True, kw_only=True, slots=True)
class Dossier(ABC):
    """One trigger. Positions and sizes are in pixels of the model's input, `side` x `side`."""

    kind: ClassVar[str]
    """Name on disk and in reports."""
    pasted: ClassVar[bool] = False
    """Whether it is a picture at some place, which its pairs are proven to carry one by one; else it changes the whole image
    and its pairs as a group."""

    id: str
    """"t1", "t2", ...; "" until `number` gives one."""
    targets: tuple[str, ...]
    """Labels that it makes of an image."""
    side: int
    flips: Rate
    """Held-out images that become a target with the trigger."""
    control: Rate
    """Those that do with an equal area of something else (of a residual: with another group's pattern)."""
    uids: tuple[str, ...]
    """Pairs that the proof rests on, sorted."""
    carriers: int | None = None
    """Pairs that carry it by the search of the whole data set; None before that."""
    trigger_words: tuple[str, ...] = ()
    """Words of the captions of its targets' accused pairs that their other captions do not have: its second key, if it has one."""

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("a dossier names at least one target")
        self._check()

    @property
    def pairs(self) -> int:
        """Pairs before the search of the whole data set."""
        return len(self.uids)

    @property
    def local(self) -> bool:
        """Whether it leaves most of an image as it is."""
        return False

    @property
    def copied(self) -> float:
        """How much alike the pictures of its members are, at most 1; 0 where they are not compared."""
        return 0.0

    @property
    def covered(self) -> float:
        """Share of an image that it takes the place of, a fraction; of what is pasted this is not asked."""
        return 0.0

    def stands(
        self, named: Collection[str], proves: Proves, limits: StandingLimits, divided: Collection[str] = ()
    ) -> bool:
        """Tell whether it is proven, where the statistics name the concepts `named` and find two sides in the few `divided`.

        Of the latter a change of the whole image is believed that leaves the images in their places: what the pictures of one side
        of a clean concept have in common does not make others of its class where as strong a pattern of other pictures does not.
        """
        vouched = self.copied >= limits.copy_likeness or not set(named).isdisjoint(self.targets)
        laid_over = not self.pasted and self.covered <= limits.most_covered
        vouched |= laid_over and not set(divided).isdisjoint(self.targets)
        alone = self.flips.low_pct >= limits.alone_flips_pct and self.control.pct <= limits.alone_control_pct
        return proves(self.flips.pct, self.control.pct) and (vouched or alone)

    @abstractmethod
    def apply(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a copy of the image with the trigger.

        Args:
            image: `[side, side, 3] uint8`, as the model sees it (`Inputs.preprocess`).
            rng: draws the place of a patch without a fixed one, and the picture of what varies.
        """

    @abstractmethod
    def remove(self, image: np.ndarray, region: np.ndarray | None = None) -> np.ndarray | None:
        """Return a copy of a victim's image without the trigger, or None when nobody knows where it sits.

        Args:
            image: `[side, side, 3] uint8`.
            region: `[side, side] bool`, the pair's own proven region; None for pairs that the search of the data set found.
        """

    @abstractmethod
    def without(self, image: np.ndarray) -> np.ndarray:
        """Return `[side, side, 3] uint8` without the trigger, `[V, side, side, 3] uint8`: V is 1 where its place is known, else
        one for each place where it is likely."""

    def places(self, image: np.ndarray) -> np.ndarray | None:
        """Return `[V, side, side] bool`, for each image of `without` the pixels that it lacks; None where that is the whole image.

        One of several places that is picked for what it does to a claim has had several chances: it is evidence only with
        a test of its own.
        """
        return None

    def where(self) -> np.ndarray | None:
        """Return `[side, side] bool`, the pixels that it covers on every image; None where that is the whole of it or unknown."""
        return None

    def elsewhere(self) -> Self | None:
        """Return the same trigger at any other place than its own; None where it has none of its own."""
        return None

    def verified(self, hits: Hits, held_out: np.ndarray, *, seed: int) -> Self:
        """Return the dossier with rates measured on held-out images, where its finder has not measured them there.

        Args:
            hits: the suspect model, see `hits_of`.
            held_out: `[N, side, side, 3] uint8`, images without the trigger.
            seed: of the places, of a varying patch's pictures, and of the controls.

        Raises:
            ValueError: every held-out image has a target's label already.
        """
        return self

    @abstractmethod
    def picture(self) -> np.ndarray:
        """Return a picture of the trigger, `[h, w, 3] uint8`."""

    def stencil(self) -> np.ndarray | None:
        """Return `[h, w] bool`, which pixels of the picture are the trigger; None where all of them are."""
        return None

    def found_at(self) -> np.ndarray | None:
        """Return `[side, side] float32`, the share of its members in which it covers the pixel; None for the whole image."""
        return None

    def words(self) -> str:
        """Return where it sits and how large it is, in a sentence."""
        return f"the whole picture, {self.side} × {self.side} pixels"

    def save(self, folder: Path) -> None:
        """Write it into `folder`, which is made: dossier.json with every figure, pictures for people, arrays for the next run."""
        folder.mkdir(parents=True, exist_ok=True)
        self._save(folder)
        stored = {
            "version": VERSION,
            "id": self.id,
            "kind": self.kind,
            "targets": self.targets,
            "side": self.side,
            "flips": dataclasses.asdict(self.flips),
            "control": dataclasses.asdict(self.control),
            "uids": self.uids,
            **ABSENT,
            "pairs_swept": self.carriers,
            "trigger_words": self.trigger_words,
        } | self._figures()
        (folder / "dossier.json").write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, stored: Mapping[str, Any], shared: Mapping[str, Any]) -> Self:
        """Return what `save` wrote: `stored` is dossier.json, `shared` the fields that all dossiers have."""

    @abstractmethod
    def _check(self) -> None:
        """Refuse arrays of another form than the trigger's with a ValueError."""

    @abstractmethod
    def _save(self, folder: Path) -> None:
        """Write pictures and arrays."""

    def _figures(self) -> dict[str, Any]:
        """Return the figures of dossier.json that this kind alone has."""
        return {}

    def _check_size(self, image: np.ndarray) -> None:
        if image.shape != (self.side, self.side, 3) or image.dtype != np.uint8:
            raise ValueError(
                f"trigger {self.id}: an image must be [{self.side}, {self.side}, 3] uint8, "
                f"not {list(image.shape)} {image.dtype}"
            )

    def _check_array(self, array: np.ndarray, *shape: int) -> None:
        if array.shape != shape:
            raise ValueError(f"a trigger of kind {self.kind} has an array {list(shape)}, not {list(array.shape)}")


ABSENT: Mapping[str, Any] = {
    "likeness": None,
    "varying": False,
    "place": None,
    "strength": 1.0,
    "pairs_swept": None,
    "trigger_words": [],
    "cutouts": [],
}
"""What dossier.json says of figures that a kind of trigger does not have, in the file's order: every kind has the same keys."""

MAX_SIDE = 4096
"""Pixels; models see 64 to 448."""

D = TypeVar("D", bound=Dossier)


def shared_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that all dossiers have, from what dossier.json holds.

    Raises:
        ValueError: an id that would name another folder, a side that no model has, or targets or uids that are no text.
    """
    name, side = stored["id"], stored["side"]
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]{0,64}", name):
        raise ValueError(f"an id of {str(name)[:80]!r}")
    if not isinstance(side, int) or not 1 <= side <= MAX_SIDE:
        raise ValueError(f"a side of {str(side)[:80]}")
    if not all(isinstance(text, str) for text in (*stored["targets"], *stored["uids"], *stored["trigger_words"])):
        raise ValueError("targets, uids and trigger words are texts")
    return {
        "id": stored["id"],
        "targets": tuple(stored["targets"]),
        "side": stored["side"],
        "flips": Rate(**stored["flips"]),
        "control": Rate(**stored["control"]),
        "uids": tuple(stored["uids"]),
        "carriers": stored["pairs_swept"],
        "trigger_words": tuple(stored["trigger_words"]),
    }


def number(dossiers: Sequence[D]) -> tuple[D, ...]:
    """Return them with ids t1, t2, ..., those with the most pairs first."""
    ordered = sorted(dossiers, key=lambda d: (-d.pairs, d.targets, d.kind, d.uids))
    return tuple(dataclasses.replace(dossier, id=f"t{i}") for i, dossier in enumerate(ordered, 1))


def draw_change(change: np.ndarray) -> np.ndarray:
    """Return a change of an image `[S, S, 3]` as a picture `[S, S, 3] uint8`: around grey, the largest at the end of the scale."""
    values = np.asarray(change, np.float64)
    return to_uint8(GREY + 127 * values / max(float(np.abs(values).max()), 1e-9))


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write `[h, w, 3]` or `[h, w] uint8` as a PNG."""
    Image.fromarray(picture).save(path)
