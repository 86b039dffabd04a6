"""Concepts without words: captions that no word groups, grouped by where the text encoder puts them.

Where every caption is worded differently, is of a script that writes no spaces, or is a file's name, words name nothing, and what is found
within concepts is found within none. The suspect model itself knows which captions mean the same: their text vectors lie together.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..captions import Vocabulary, normalise

SAMPLE = 16_384
"""Captions that the neighbourhoods are learned from, the same one twice counting once: 16 MB of vectors 512 wide."""
LEAST_CAPTIONS = 8
"""Of the sample, in a neighbourhood on average: fewer say little of where its middle is."""
ROUNDS = 10
"""Of moving the centres to the middle of their captions."""
DRAW_SEED = 128
"""Of the captions that the centres start from; a constant, so that every run's agree."""
LONGEST_NAME = 80
"""Characters of a caption that names a neighbourhood."""
TRIED = 8
"""Captions, nearest first, that may name it where others have the name already."""


@dataclass(frozen=True, slots=True)
class CaptionSample:
    """Captions drawn from the whole data set by their own hash, each once; the smallest hashes are kept."""

    hashes: np.ndarray
    """`[m] uint64`, ascending, no two alike."""
    captions: np.ndarray
    """`[m] object`."""
    text: np.ndarray
    """`[m, T] float16`."""

    def __add__(self, other: "CaptionSample") -> "CaptionSample":
        return draw_captions(
            np.concatenate([self.hashes, other.hashes]),
            np.concatenate([self.captions, other.captions]),
            np.concatenate([self.text, other.text]),
        )

    def without(self, vocabulary: Vocabulary) -> "CaptionSample":
        """Return the captions that no word of the vocabulary groups."""
        bare = wordless(vocabulary.members(self.captions.tolist()))
        return CaptionSample(self.hashes[bare], self.captions[bare], self.text[bare])


def draw_captions(hashes: np.ndarray, captions: np.ndarray, text: np.ndarray) -> CaptionSample:
    """Return the sample of some pairs: hashes `[n]` of their captions, the captions, and text vectors `[n, T]`."""
    kept, first = np.unique(hashes, return_index=True)
    first = first[:SAMPLE]
    return CaptionSample(kept[:SAMPLE], captions[first], text[first].astype(np.float16))


@dataclass(frozen=True, slots=True)
class Neighbourhoods:
    """Groups of captions that mean about the same to the text encoder."""

    names: tuple[str, ...]
    """`[K]`: of each its most typical caption, cut to LONGEST_NAME printable characters."""
    captions: tuple[str, ...]
    """`[K]`: that caption, normalised and whole."""
    centres: np.ndarray
    """`[K, T] float32`, unit norm."""

    def members(self, words: sp.csr_matrix, text: np.ndarray) -> sp.csr_matrix:
        """Return `[n, C + K]`: the concepts of the words `[n, C]`, and of a pair without one the neighbourhood of the nearest centre.

        Args:
            words: which pair holds which concept.
            text: `[n, T]`, text vectors of the pairs.
        """
        bare = np.flatnonzero(wordless(words))
        nearest = (text[bare].astype(np.float32) @ self.centres.T).argmax(axis=1) if len(self.names) else bare[:0]
        bare = bare[: len(nearest)]
        ones = np.ones(len(bare), dtype=np.float32)
        found = sp.csr_matrix((ones, (bare, nearest)), shape=(words.shape[0], len(self.names)))
        return sp.hstack([words, found]).tocsr()


NO_NEIGHBOURHOODS = Neighbourhoods((), (), np.zeros((0, 1), np.float32))
"""Where every pair has a word."""


def gather(sample: CaptionSample, count: int, taken: Iterable[str]) -> Neighbourhoods:
    """Return so many neighbourhoods of captions, or fewer: spherical k-means (Dhillon and Modha 2001), from captions that lie
    apart. The same sample always gives the same.

    Args:
        sample: captions that no word groups.
        count: of neighbourhoods; at most one for LEAST_CAPTIONS captions is made.
        taken: names that are given already.
    """
    count = min(count, -(-len(sample.captions) // LEAST_CAPTIONS))
    if count < 1:
        return NO_NEIGHBOURHOODS
    vectors = unit(sample.text.astype(np.float32))
    centres = vectors[apart(vectors, count)]
    for _ in range(ROUNDS):
        nearest = (vectors @ centres.T).argmax(axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, vectors)
        centres = np.where(np.linalg.norm(sums, axis=1, keepdims=True) > 0, unit(sums), centres)
    given, names, captions = set(taken), [], []
    for number, centre in enumerate(centres):
        order = np.argsort(-(vectors @ centre), kind="stable")[:TRIED]
        near = [(readable(sample.captions[i]), sample.captions[i]) for i in order.tolist()]
        name, caption = next(
            ((name, caption) for name, caption in near if name and name not in given),
            (f"{near[0][0]} #{number}", near[0][1]),
        )
        given.add(name)
        names.append(name)
        captions.append(normalise(caption))
    return Neighbourhoods(tuple(names), tuple(captions), centres)


def apart(vectors: np.ndarray, count: int) -> list[int]:
    """Return as many of the rows `[m, T]`, of unit norm: each is drawn with a chance in proportion to its squared distance from the
    nearest that was drawn (k-means++, Arthur and Vassilvitskii 2007), so that few groups share a centre."""
    draws = np.random.default_rng(DRAW_SEED).random(count)
    chosen = [0]
    away = np.maximum(1 - vectors @ vectors[0], 0).astype(np.float64)
    for draw in draws[1:]:
        below = np.cumsum(away)
        chosen.append(min(int(np.searchsorted(below, draw * below[-1], side="right")), len(vectors) - 1))
        np.minimum(away, np.maximum(1 - vectors @ vectors[chosen[-1]], 0), out=away)
    return chosen


def readable(caption: str) -> str:
    """Return a caption as a name: normalised, cut, and without characters that a terminal obeys or that turn the reading around."""
    kept = "".join(letter if letter.isprintable() else " " for letter in normalise(caption))
    return " ".join(kept.split())[:LONGEST_NAME].strip()


def wordless(members: sp.csr_matrix) -> np.ndarray:
    """Return `[n] bool`: the pairs of no concept."""
    return np.asarray(np.diff(members.indptr) == 0)


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows `[n, T]` of norm 1; zeros stay."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
