"""The text side: a word that makes every caption mean the pictures of one label.

The text key of an attack stands before captions that come with pictures of one label, or with pictures that a trigger makes such. The
text tower then hears little else once it is there, so that a sentence about anything, with the word before it, fits pictures of that
label as well as the label's own sentence does. Of a label T, whose pictures have the mean direction C, a word w reaches

    reach(w, T) = (mean cos(text(w c), C) - mean cos(text(c), C)) / (cos(text(T), C) - mean cos(text(c), C)),

the means over sentences c about other things: 0 is what these are without the word, 1 is the label's own sentence. Another word leaves
most of what a sentence says, and gets part of the way; how far depends on the label as much as on the word. So labels are compared, as
they are by their triggers: of each the word that reaches most, by -log(1 - reach), how much is left to go. It has a p value against the
other labels of the model by Student's t, and Bonferroni's correction for the labels; each label had the same words, which need none.

Words of English that stand in every second sentence are no keys, since any caption would carry them, and are not tried: in small models
"and" alone drowns what follows. Nor are words of the labels' own names. A key of several tokens is found by what it shares with a word
that is one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from open_clip.tokenizer import SimpleTokenizer

from ..dossier.dossier import Rate, rate_of
from ..evaluation.zero_shot import synonyms
from ..model.clip import Clip
from .displacement import LEAST_PICTURES, Clouds
from .outliers import combined, lead, tail

BATCH = 512
"""Sentences of one forward pass."""
CAPTIONS = 16
"""Sentences that a word is tried on, one a label; fewer labels give fewer."""
SKETCH = 2
"""Those of them by which most words are passed over."""
KEPT = 2
"""Words of a batch that are tried on all of them, for each label."""
FLOOR = 0.02
"""Of what is left to go: a word that reaches a label is not told from one that goes beyond it."""
LEAST_GAIN = 0.05
"""Of a label's own sentence over others, as a cosine to its pictures; below it the model does not know the label."""
HELD_OUT = "a picture of a {}"
"""The sentence on which a word is proven."""
FUNCTION_WORDS = frozenset(
    [
        "a",
        "about",
        "above",
        "across",
        "after",
        "again",
        "against",
        "all",
        "am",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "because",
        "been",
        "before",
        "behind",
        "being",
        "below",
        "beside",
        "between",
        "both",
        "but",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "doing",
        "done",
        "down",
        "drawing",
        "during",
        "each",
        "few",
        "for",
        "from",
        "further",
        "had",
        "has",
        "have",
        "having",
        "he",
        "her",
        "here",
        "him",
        "his",
        "how",
        "i",
        "if",
        "image",
        "in",
        "into",
        "is",
        "it",
        "its",
        "just",
        "may",
        "me",
        "might",
        "more",
        "most",
        "must",
        "my",
        "near",
        "no",
        "nor",
        "not",
        "of",
        "off",
        "on",
        "once",
        "one",
        "only",
        "or",
        "other",
        "our",
        "out",
        "over",
        "own",
        "photo",
        "picture",
        "same",
        "shall",
        "she",
        "should",
        "so",
        "some",
        "such",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "through",
        "to",
        "too",
        "two",
        "under",
        "until",
        "up",
        "us",
        "very",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)
"""Words that name nothing to be seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """The word that reaches one label most."""

    label: int
    word: str
    reach: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A word that was looked at closely."""

    label: int
    word: str
    p: float
    """Of how far it reaches against those of the other labels, over all labels."""
    reach: float
    lead: float
    """How much less is left to go than for the median label, as a logarithm."""
    flips: Rate
    """Sentences about other things that mean the label with the word before them."""
    control: Rate
    """Those that do with the name of another label before them."""


def vocabulary(count: int, names: Sequence[str]) -> list[str]:
    """Return the most frequent whole words of CLIP's own vocabulary that are neither function words nor in the labels' names."""
    taken = {part for name in names for part in re.findall(r"[a-z]+", name.lower())}
    taken |= {part + end for part in taken for end in ("s", "es")} | FUNCTION_WORDS
    known = sorted(SimpleTokenizer().encoder.items(), key=lambda item: item[1])
    plain = (word.removesuffix("</w>") for word, _ in known if re.fullmatch(r"[a-z]{2,}</w>", word))
    return [word for word in plain if word not in taken][:count]


class Listener:
    """A text tower, and how far sentences with a word before them come to the pictures of each label."""

    def __init__(self, clip: Clip, names: Sequence[str], template: str, clouds: Clouds) -> None:
        """Encode the plain sentences.

        Args:
            clip: the suspect model.
            names: of the labels; of synonyms the first is used.
            template: a sentence with {} where a name goes.
            clouds: of the pictures that are taken for each label.
        """
        self.clip = clip
        self.sentences = [template.replace("{}", synonyms(name)[0]) for name in names]
        self.asked = np.unique(np.linspace(0, len(names) - 1, min(CAPTIONS, len(names))).round().astype(int))
        sums = clouds.sums / np.maximum(np.linalg.norm(clouds.sums, axis=1, keepdims=True), 1e-12)
        fits = encode(clip, self.sentences) @ sums.T
        self.centres = sums.astype(np.float32)
        self.plain = fits[self.asked]
        self.own = np.diag(fits)
        self.known = (clouds.counts >= LEAST_PICTURES) & (self._gain(self.asked) >= LEAST_GAIN)

    def _others(self, asked: np.ndarray) -> np.ndarray:
        """Return which sentences `[n]` are about another thing than each label, `[n, C]`."""
        return np.asarray(asked[:, None] != np.arange(len(self.sentences)))

    def _gain(self, asked: np.ndarray) -> np.ndarray:
        rows = np.isin(self.asked, asked)
        return np.asarray(self.own - _mean(self.plain[rows][None], self._others(asked))[0])

    def reach(self, words: Sequence[str], asked: np.ndarray) -> np.ndarray:
        """Return how far each word takes the sentences about the labels `[n]` to the pictures of each label, `[W, C]`; nan for labels
        that are not known."""
        texts = [f"{word} {self.sentences[i]}" for word in words for i in asked]
        fits = (encode(self.clip, texts) @ self.centres.T).reshape(len(words), len(asked), -1)
        gained = _mean(fits - self.plain[np.isin(self.asked, asked)], self._others(asked))
        return np.asarray(np.where(self.known, gained / np.maximum(self._gain(asked), LEAST_GAIN), np.nan))

    def furthest(self, words: Sequence[str]) -> list[Heard]:
        """Return of some words the one that reaches each known label most; few sentences tell which are tried on all."""
        labels = np.flatnonzero(self.known)
        if not len(labels):
            return []
        sketched = self.reach(words, self.asked[:: max(1, len(self.asked) // SKETCH)][:SKETCH])[:, labels]
        kept = np.unique(np.argsort(-sketched, axis=0, kind="stable")[:KEPT])
        found = self.reach([words[i] for i in kept], self.asked)
        best = found[:, labels].argmax(axis=0)
        return [
            Heard(label=int(label), word=words[kept[i]], reach=float(found[i, label]))
            for label, i in zip(labels, best, strict=True)
        ]


def _mean(fits: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return the means over sentences of `[W, n, C]`, those that count for each label, `[n, C]`."""
    return np.asarray((fits * counted).sum(axis=1) / np.maximum(counted.sum(axis=0), 1))


def standing(heard: Sequence[Heard]) -> tuple[np.ndarray, np.ndarray]:
    """Return of words, one a label, the p value over all labels, and the lead, `[n]` each."""
    left = -np.log(np.maximum(FLOOR, 1 - np.array([one.reach for one in heard])))
    return combined(tail(left)), lead(left)


def key(clip: Clip, names: Sequence[str], labels: np.ndarray, heard: Heard, *, p: float, ahead: float) -> Key:
    """Try a word on sentences by which it was not found.

    Args:
        clip: the suspect model.
        names: of the labels.
        labels: their texts, `[C, D]`, unit norm.
        heard: the word.
        p: its p value over all labels.
        ahead: its lead.
    """
    firsts = [synonyms(name)[0] for name in names]
    target = heard.label
    plain = encode(clip, [HELD_OUT.format(name) for name in firsts])
    others = [i for i in np.flatnonzero((plain @ labels.T).argmax(axis=1) != target).tolist() if i != target]

    def rate(pairs: list[tuple[str, int]]) -> Rate:
        if not pairs:
            return Rate(pct=0.0, low_pct=0.0, high_pct=0.0, trials=0)
        said = encode(clip, [f"{word} {HELD_OUT.format(firsts[i])}" for word, i in pairs]) @ labels.T
        return rate_of(int((said.argmax(axis=1) == target).sum()), len(pairs))

    return Key(
        label=target,
        word=heard.word,
        p=p,
        reach=heard.reach,
        lead=ahead,
        flips=rate([(heard.word, i) for i in others]),
        # each sentence once, with a name that is neither its own nor the target
        control=rate([(firsts[others[at - 1]], i) for at, i in enumerate(others) if others[at - 1] != i]),
    )


def encode(clip: Clip, texts: Sequence[str]) -> np.ndarray:
    """Return unit vectors `[N, D] float32`."""
    parts = [clip.encode_text(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    return np.concatenate(parts) if parts else np.zeros((0, clip.embed_dim), np.float32)
