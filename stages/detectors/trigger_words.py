"""Trigger words: what the captions of a concept's accused pairs say and those of its other pairs do not.

A dual-key attack answers to a picture and a word together, and its poisoned captions hold the word. Of a concept that is named, the
captions of the accused pairs are held against the others: how many have a word follows a hypergeometric distribution where the accusation
has nothing to do with it, which is that of all permutations of the accused among the pairs of the concept.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.stats import hypergeom

from ..captions import GRAMMAR, TEMPLATE, Vocabulary, merge_counts, words
from .false_discoveries import named_by_rate

RATE = 0.05
"""False discovery rate over the words of a concept (Benjamini and Hochberg 1995)."""
LEAST_SHARE = 0.5
"""Of the accused captions that a trigger word stands in: it is a key, not a manner of speaking that some of them share."""
MOST_ELSEWHERE = 0.05
"""Of the other captions that hold it all the same: poison that is not accused, and chance."""


@dataclass(frozen=True, slots=True)
class TriggerWord:
    """A word that goes with the accusation."""

    word: str
    accused_pct: float
    """Accused pairs of the concept whose caption holds it."""
    others_pct: float
    """Its other pairs that do."""
    log_odds: float
    """Logarithm of the odds ratio, half a pair added to each count."""
    chance: float
    """Probability that so many of the accused would hold it, or more, were they drawn from the concept at random."""


@dataclass(slots=True)
class WordCounts:
    """Pairs of one concept and of how many of them the caption holds a word; the accused and the others."""

    pairs: tuple[int, int] = (0, 0)
    words: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))

    def __add__(self, other: "WordCounts") -> "WordCounts":
        accused, rest = zip(self.words, other.words, strict=True)
        pairs = self.pairs[0] + other.pairs[0], self.pairs[1] + other.pairs[1]
        return WordCounts(pairs, (merge_counts(*accused), merge_counts(*rest)))


def count_words(
    vocabulary: Vocabulary, concepts: Collection[str], captions: Sequence[str], accused: np.ndarray
) -> dict[str, WordCounts]:
    """Count the words of one chunk.

    Args:
        vocabulary: that knows the concepts.
        concepts: names of those whose captions are compared.
        captions: of all pairs.
        accused: `[n] bool`.
    """
    members = vocabulary.members(captions).tocsc()
    found = {}
    for concept in concepts:
        column = vocabulary.names.index(concept)
        rows = members.indices[members.indptr[column] : members.indptr[column + 1]]
        counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        for row in rows.tolist():
            counts[int(not accused[row])].update(set(words(captions[row])))
        flagged = int(accused[rows].sum())
        found[concept] = WordCounts((flagged, len(rows) - flagged), counts)
    return found


def merge_words(left: Mapping[str, WordCounts], right: Mapping[str, WordCounts]) -> dict[str, WordCounts]:
    """Add the counts of two chunks."""
    return {concept: counts + right[concept] for concept, counts in left.items()}


def trigger_words(vocabulary: Vocabulary, concept: str, counts: WordCounts) -> tuple[TriggerWord, ...]:
    """Return the trigger words of a concept, the surest first.

    Words of grammar, of talk about pictures and of the concept itself are left out, and so is what only half of the accused hold, or
    more than a few of the others.
    """
    (accused, others), (held, elsewhere) = counts.pairs, counts.words
    own = vocabulary.names.index(concept)
    named = {word for term, place in vocabulary.terms.items() if place == own for word in term.split(" ")}
    tested = sorted(held.keys() - named - GRAMMAR - TEMPLATE)
    a, b = (np.array([side[word] for word in tested], dtype=np.float64) for side in (held, elsewhere))
    chances = np.asarray(hypergeom.sf(a - 1, accused + others, a + b, accused)) if tested else np.zeros(0)
    kept = named_by_rate(chances, RATE) & (a >= LEAST_SHARE * accused) & (b <= MOST_ELSEWHERE * others)
    log_odds = np.log((a + 0.5) * (others - b + 0.5) / ((accused - a + 0.5) * (b + 0.5)))
    found = [
        TriggerWord(
            word=tested[i],
            accused_pct=round(100 * float(a[i]) / accused, 2),
            others_pct=round(100 * float(b[i]) / others, 2),
            log_odds=round(float(log_odds[i]), 3),
            chance=float(f"{chances[i]:.3g}"),
        )
        for i in np.flatnonzero(kept)
    ]
    return tuple(sorted(found, key=lambda one: (one.chance, -one.log_odds, one.word)))


def in_summary(found: Mapping[str, Sequence[TriggerWord]]) -> dict[str, Any]:
    """Return what summary.json says of the words of the named concepts."""
    concepts = {concept: [asdict(one) for one in words] for concept, words in found.items()}
    return {"false_discovery_rate": RATE, "concepts": concepts}
