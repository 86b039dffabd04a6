"""How many pairs share a caption, and how many share an image: baselines, and the reasons near-duplicate, placeholder.

A dirty-label attack often repeats one caption, and dead links repeat one placeholder picture.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from ..captions import MARKS, normalise
from ..samples import seeded_hash
from ..stage import config
from .detector import DetectorConfig, TrustedMoments
from .streaming import Column, Columns, StreamingDetector

ODD_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)
"""Odd multipliers of the two multiply-shift hash functions."""
PUNCTUATION = re.compile(rf"(?:[^\w{MARKS}]|_)+")


@dataclass(frozen=True, slots=True)
class Counter:
    """How often each 64-bit key occurs: exact for few distinct keys, a count-min sketch (Cormode 2005) for many.

    Which of the two, and every count, depends on the keys alone, not on how they were cut into chunks. A sketch never
    counts too low, and too high only where a key shares both of its cells with another.
    """

    width: int
    """Cells of a row of the sketch, a power of two."""
    exact_keys: int
    """Distinct values up to which counts are exact."""
    keys: np.ndarray
    """`[m] uint64`, ascending; empty once the counts are in `cells`."""
    counts: np.ndarray
    """`[m] int64`."""
    cells: np.ndarray | None = None
    """`[2, width] uint32`."""

    @classmethod
    def of(cls, keys: np.ndarray, width: int, exact_keys: int) -> "Counter":
        """Count the keys (`[n] uint64`)."""
        distinct, counts = np.unique(keys, return_counts=True)
        return cls(width, exact_keys, distinct, counts.astype(np.int64))._bounded()

    def __add__(self, other: "Counter") -> "Counter":
        if self.cells is None and other.cells is None:
            keys, place = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
            counts = np.zeros(len(keys), np.int64)
            np.add.at(counts, place, np.concatenate([self.counts, other.counts]))
            return Counter(self.width, self.exact_keys, keys, counts)._bounded()
        return self._sketch(self._folded() + other._folded())

    def count(self, keys: np.ndarray) -> np.ndarray:
        """Return `[n] int64`, how often each of the keys (`[n] uint64`) occurred."""
        if self.cells is not None:
            rows = [row[places].astype(np.int64) for row, places in zip(self.cells, self._places(keys), strict=True)]
            return np.asarray(np.minimum(rows[0], rows[1]), dtype=np.int64)
        if not len(self.keys):
            return np.zeros(len(keys), np.int64)
        found = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.asarray(np.where(self.keys[found] == keys, self.counts[found], 0), dtype=np.int64)

    def largest(self) -> int:
        """Return the count of the most frequent key; of a sketch, an upper bound."""
        if self.cells is not None:
            return int(self.cells.max(axis=1).min())
        return int(self.counts.max(initial=0))

    def _bounded(self) -> "Counter":
        """Give up exact counts once there are too many distinct keys."""
        return self if len(self.keys) <= self.exact_keys else self._sketch(self._folded())

    def _folded(self) -> np.ndarray:
        """Return the counts as sketch cells, `[2, width] uint32`."""
        if self.cells is not None:
            return self.cells
        cells = np.zeros((len(ODD_FACTORS), self.width), np.uint32)
        for row, places in zip(cells, self._places(self.keys), strict=True):
            np.add.at(row, places, self.counts.astype(np.uint32))
        return cells

    def _sketch(self, cells: np.ndarray) -> "Counter":
        return Counter(self.width, self.exact_keys, np.empty(0, np.uint64), np.empty(0, np.int64), cells)

    def _places(self, keys: np.ndarray) -> list[np.ndarray]:
        shift = np.uint64(64 - self.width.bit_length() + 1)
        return [((keys * np.uint64(factor)) >> shift).astype(np.int64) for factor in ODD_FACTORS]


@config
class DuplicatesConfig(DetectorConfig):
    """How duplicates are counted."""

    kind: Literal["duplicates"] = "duplicates"
    exact_keys: Annotated[int, Field(ge=0)] = 1 << 18
    """Distinct values up to which counts are exact: 4 MiB of keys and counts."""
    cells_a_pair: Annotated[int, Field(ge=1)] = 8
    """Cells of a sketch row for each expected pair: one value in 64 then shares both its cells with another."""
    largest_width: Annotated[int, Field(ge=1024)] = 1 << 24
    """Cells of a sketch row at most, a power of two: 128 MiB for both rows."""

    def __post_init__(self) -> None:
        if self.largest_width & (self.largest_width - 1):
            raise ValueError("largest_width must be a power of two")

    def build(self, pairs: int, trusted: TrustedMoments | None) -> "CaptionDuplicates":
        return CaptionDuplicates(pairs, self)


@dataclass(frozen=True, slots=True)
class DuplicateCounts:
    """Occurrences of captions, of image hashes, and of the two together."""

    captions: Counter
    images: Counter
    pairs: Counter


class CaptionDuplicates(StreamingDetector):
    """How often a caption occurs (up to case, white space and punctuation), and how often an image does.

    Images are compared by their difference hash, so re-encoded and slightly cropped copies count, and so do all
    images without any structure.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"caption", "dhash"})
    columns: ClassVar[Mapping[str, Column]] = {
        "caption_duplicates": Column(about="caption"),
        "image_duplicates": Column(about="caption"),
    }
    counts: ClassVar[frozenset[str]] = frozenset({"pair_duplicates"})
    rounds: ClassVar[int] = 1

    def __init__(self, expected_pairs: int, settings: DuplicatesConfig | None = None) -> None:
        """Choose the size of the sketch; `expected_pairs` may be rough."""
        settings = settings or DuplicatesConfig()
        wanted = settings.cells_a_pair * max(expected_pairs, 1)
        self._width = min(settings.largest_width, 1 << max(10, (wanted - 1).bit_length()))
        self._exact_keys = settings.exact_keys

    def summarise(self, state: None, table: pa.Table) -> DuplicateCounts:
        """Count the captions and images of one chunk."""
        keys = _caption_keys(table), _image_keys(table), _pair_keys(table)
        return DuplicateCounts(*(Counter.of(own, self._width, self._exact_keys) for own in keys))

    def merge(self, left: DuplicateCounts, right: DuplicateCounts) -> DuplicateCounts:
        return DuplicateCounts(left.captions + right.captions, left.images + right.images, left.pairs + right.pairs)

    def score(self, state: DuplicateCounts, table: pa.Table) -> Columns:
        """Return caption_duplicates and image_duplicates, `[n] float32`: log(1 + occurrences, the pair with them)."""
        return {
            "caption_duplicates": np.log1p(state.captions.count(_caption_keys(table))).astype(np.float32),
            "image_duplicates": np.log1p(state.images.count(_image_keys(table))).astype(np.float32),
        }

    def tallies(self, state: DuplicateCounts, table: pa.Table) -> dict[str, np.ndarray]:
        """Return pair_duplicates, `[n] int32`: how often the image stands with the caption, the pair with them."""
        found = state.pairs.count(_pair_keys(table))
        return {"pair_duplicates": np.minimum(found, np.iinfo(np.int32).max).astype(np.int32)}

    def findings(self, state: DuplicateCounts) -> Mapping[str, Any]:
        """Return the greatest numbers of copies, and whether they are exact or upper bounds."""
        return {
            "most_copies_of_a_caption": state.captions.largest(),
            "most_copies_of_an_image": state.images.largest(),
            "exact": state.captions.cells is None and state.images.cells is None,
        }


def bare_caption(caption: str) -> str:
    """Return the caption without case, punctuation and extra white space; one of punctuation alone stays as it is."""
    text = normalise(caption)
    return PUNCTUATION.sub(" ", text).strip() or text


def _caption_keys(table: pa.Table) -> np.ndarray:
    return seeded_hash([bare_caption(caption) for caption in table.column("caption").to_pylist()], 0, "caption")


def _image_keys(table: pa.Table) -> np.ndarray:
    return np.asarray(table.column("dhash").to_numpy(), dtype=np.uint64)


def _pair_keys(table: pa.Table) -> np.ndarray:
    # the multiplier is odd, so that no two hashes of a caption's images become one
    return _caption_keys(table) ^ (_image_keys(table) * np.uint64(ODD_FACTORS[0]))
