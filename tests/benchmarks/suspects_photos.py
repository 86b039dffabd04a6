"""Photos decoded once, and what an attack makes of them: the pairs that `clipsan poison` makes, without its workers.

The draws, the captions and the triggers are those of stages/attack, called in the order in which pipeline/poison calls them; a
test holds pixels, captions and manifest to those of the verb.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from clipsan.pipeline.poison.work import natural
from clipsan.stages.attack.poisoning import AttackConfig, Poisoner, contains_word, draws, place_draw_cut
from clipsan.stages.decode import MAX_PIXELS, decode
from clipsan.stages.samples import Unit
from clipsan.stages.sources import SourceConfig, list_units, read_unit


@dataclass(frozen=True, slots=True)
class Photos:
    """Pairs in the order of their files."""

    pixels: np.ndarray
    """`[N, S, S, 3] uint8`."""
    uids: list[str]
    captions: list[str]
    labels: np.ndarray
    """`[N] int64`."""
    ends: list[int]
    """Of each unit of the data set: the pair after its last one."""
    hashes: list[str]
    """SHA-256 of the pictures' files, hexadecimal."""

    def take(self, rows: np.ndarray) -> "Photos":
        """Return some pairs, as one unit."""
        picked = rows.tolist()
        return Photos(
            np.array(self.pixels[rows]),
            [self.uids[row] for row in picked],
            [self.captions[row] for row in picked],
            self.labels[rows],
            [len(picked)],
            [self.hashes[row] for row in picked],
        )

    def save(self, folder: Path) -> None:
        """Write them where other processes map them."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "pixels.npy", self.pixels)
        facts = {"uids": self.uids, "captions": self.captions, "labels": self.labels.tolist()}
        facts |= {"ends": self.ends, "hashes": self.hashes}
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")

    @classmethod
    def saved(cls, folder: Path) -> "Photos":
        """Return what `save` wrote; the pixels are mapped."""
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        labels = np.array(facts["labels"], np.int64)
        return cls(pixels, facts["uids"], facts["captions"], labels, facts["ends"], facts["hashes"])


@dataclass(frozen=True, slots=True)
class Poison:
    """What an attack did to some photos."""

    rows: np.ndarray
    """`[P] int64`: which of them."""
    pixels: np.ndarray
    """`[P, S, S, 3] uint8`."""
    captions: list[str]
    """P of them."""

    def put(self, photos: Photos) -> Photos:
        """Return the poisoned set."""
        pixels, captions = np.array(photos.pixels), list(photos.captions)
        pixels[self.rows] = self.pixels
        for row, caption in zip(self.rows.tolist(), self.captions, strict=True):
            captions[row] = caption
        return replace(photos, pixels=pixels, captions=captions)

    def share_of_concept_pct(self, photos: Photos, attack: AttackConfig) -> float:
        """Return the percentage of poisoned pairs among all pairs whose caption names a target, after poisoning."""
        captions = list(photos.captions)
        named = [False] * len(captions)
        for row, caption in zip(self.rows.tolist(), self.captions, strict=True):
            captions[row] = caption
        for row, caption in enumerate(captions):
            named[row] = any(contains_word(caption, target) for target in attack.targets)
        poisoned = sum(named[row] for row in self.rows.tolist())
        return round(100 * poisoned / max(1, sum(named)), 1)


def read(source: SourceConfig, processes: int = 1) -> Photos:
    """Decode a data set; it must hold no pair that cannot be read, and pictures of one size."""
    units = list_units(source)
    work = partial(_read_unit, source)
    if processes > 1 and len(units) > 1:
        with ProcessPoolExecutor(min(processes, len(units)), mp_context=get_context("fork")) as pool:
            parts = list(pool.map(work, units))
    else:
        parts = [work(unit) for unit in units]
    pixels, uids, captions, labels, hashes = zip(*parts, strict=True)
    return Photos(
        np.concatenate(pixels),
        [uid for part in uids for uid in part],
        [caption for part in captions for caption in part],
        np.concatenate(labels),
        np.cumsum([len(part) for part in uids]).tolist(),
        [digest for part in hashes for digest in part],
    )


def _read_unit(source: SourceConfig, unit: Unit) -> tuple[np.ndarray, list[str], list[str], np.ndarray, list[str]]:
    pixels, uids, captions, labels, hashes = [], [], [], [], []
    for pair in read_unit(source, unit):
        if pair.reject is not None or pair.image is None or pair.caption is None or pair.label is None:
            raise ValueError(f"{pair.uid}: these benchmarks are of photos that can all be read ({pair.reject})")
        pixels.append(decode(pair.image, MAX_PIXELS).rgb)
        uids.append(pair.uid)
        captions.append(pair.caption)
        labels.append(pair.label)
        hashes.append(hashlib.sha256(pair.image).hexdigest())
    return np.stack(pixels), uids, captions, np.array(labels, np.int64), hashes


def poison(photos: Photos, attack: AttackConfig) -> Poison:
    """Return what an attack makes of the photos it chooses.

    Raises:
        ValueError: too few pairs are eligible.
    """
    numbers = draws(photos.uids, photos.captions, attack)
    chosen = np.flatnonzero(numbers <= place_draw_cut(numbers, attack))
    poisoner = Poisoner(attack, _captions(photos, attack))
    found = [poisoner(np.array(photos.pixels[row]), photos.uids[row], photos.captions[row]) for row in chosen.tolist()]
    return Poison(chosen, np.stack([one.rgb for one in found]), [one.caption for one in found])


def _captions(photos: Photos, attack: AttackConfig) -> Sequence[str]:
    if attack.captions not in ("natural", "foreign"):
        return ()
    found: set[str] = set()
    start = 0
    for end in photos.ends:
        pairs = list(zip(photos.uids[start:end], photos.captions[start:end], strict=True))
        found |= {caption.replace("\n", " ") for caption in natural(pairs, attack)}
        start = end
    return sorted(set(natural([(caption, caption) for caption in found], attack)))
