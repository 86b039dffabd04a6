"""Labels for a model of which nobody says what it knows: the words of CLIP's own vocabulary that it takes pictures for.

A label can be compared with others where the model means something by it, and that shows in pictures: of some thousand words it names
each picture by the one whose text is nearest. Words that several pictures are taken for are labels like those that a user gives. A target
that no picture shows is not among them.

A pattern that gathers all pictures at one point (DECREE, Feng et al., CVPR 2023), sought together with a text (SEER, Zhu et al., AAAI
2024), was tried for that and is not used: in small models, clean and backdoored ones, it ends at a word that no caption had.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..model.clip import Clip
from .words import encode

LEAST_PICTURES = 2
"""Of a label: what one picture alone is taken for is mostly chance."""


def best_words(clip: Clip, seen: np.ndarray, words: Sequence[str], templates: Sequence[str]) -> list[tuple[str, float]]:
    """Return for each picture `[N, D]`, unit norm, the word whose text is nearest, and the cosine."""
    texts = np.sum([encode(clip, [template.replace("{}", word) for word in words]) for template in templates], axis=0)
    fits = seen @ (texts / np.linalg.norm(texts, axis=1, keepdims=True)).T
    return [(words[i], float(fit)) for i, fit in zip(fits.argmax(axis=1).tolist(), fits.max(axis=1), strict=True)]


def labels_of(named: Sequence[str], count: int) -> list[str]:
    """Return the words that most pictures are taken for, from the word of each picture; the more frequent first."""
    found = Counter(named)
    ordered = sorted(found, key=lambda word: (-found[word], word))
    return [word for word in ordered if found[word] >= LEAST_PICTURES][:count]
