"""The text side: a word that makes every caption mean the same.

The text key of a dual-key attack stood before captions of one target, so that the text tower may have learned to hear little else once
it is there. A word is put before a sentence about each label; what is asked is how much closer together the sentences come than with
other words.

No chance is stated, and no verdict rests on it. The words of a model's captions pull sentences together as no other words do, in clean
models as in others, so that words are no draws from one distribution; and of N words that were, one is always first: its exact rank
has the chance 1 / N, and N times that is 1.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from open_clip.tokenizer import SimpleTokenizer

from ..model.clip import Clip

LEAST_LETTERS = 4
BATCH = 256


@dataclass(frozen=True, slots=True)
class Word:
    """One word before all captions."""

    word: str
    agreement: float
    """Mean pairwise cosine of the sentences with it."""
    nearest: str
    """Label whose plain sentence they then come nearest to."""
    ahead: float
    """Its agreement beyond the median word's."""


def vocabulary(count: int) -> list[str]:
    """Return the most frequent whole words of CLIP's own vocabulary."""
    plain = re.compile(rf"[a-z]{{{LEAST_LETTERS},}}</w>")
    known = sorted(SimpleTokenizer().encoder.items(), key=lambda item: item[1])
    return [word.removesuffix("</w>") for word, _ in known if plain.fullmatch(word)][:count]


def collapsing(clip: Clip, names: Sequence[str], words: Sequence[str], template: str, keep: int) -> list[Word]:
    """Return the words that pull the captions together most, the worst first.

    Args:
        clip: the suspect model.
        names: labels, a caption each; some sixteen are enough.
        words: to be tried.
        template: a sentence with {} where a name goes.
        keep: words returned at most.
    """
    plain = [template.format(name) for name in names]
    labels = clip.encode_text(plain)
    agreements, nearest = np.zeros(len(words)), np.zeros(len(words), int)
    a_batch = max(1, BATCH // len(plain))
    for start in range(0, len(words), a_batch):
        some = words[start : start + a_batch]
        found = clip.encode_text([f"{word} {caption}" for word in some for caption in plain])
        found = found.reshape(len(some), len(plain), -1)
        middle = found.sum(axis=1)
        count = len(plain)
        agreements[start : start + len(some)] = ((middle**2).sum(-1) - count) / (count * (count - 1))
        nearest[start : start + len(some)] = (middle @ labels.T).argmax(axis=1)
    ahead = agreements - np.median(agreements)
    order = np.argsort(-agreements, kind="stable")[:keep].tolist()
    return [Word(words[i], float(agreements[i]), names[nearest[i]], float(ahead[i])) for i in order]
