"""What captions talk about: recurring words as concepts, and which pair belongs to which. No model, no download."""

import hashlib
import re
import threading
import unicodedata
from collections import Counter, OrderedDict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import pydantic
import scipy.sparse as sp

from .stage import config

WRITTEN = (range(0x300, 0x3100), range(0xA600, 0xAC00), range(0xFB1E, 0xFB1F), range(0x10A00, 0x12000))
"""Where Unicode has the scripts with marks."""


def _marks() -> str:
    """Return the marks that belong to the letter before them, for a character class of `re`, which knows no word with them: vowels and
    tones of Indic scripts and Thai, points of Arabic and Hebrew, what casefolding leaves of a Turkish İ."""
    marks = [c for part in WRITTEN for c in part if unicodedata.category(chr(c)) in ("Mn", "Mc")]
    starts = [c for c, before in zip(marks, [0, *marks[:-1]], strict=True) if c != before + 1]
    ends = [c for c, after in zip(marks, [*marks[1:], 0], strict=True) if c + 1 != after]
    return "".join(f"{chr(a)}-{chr(b)}" for a, b in zip(starts, ends, strict=True))


MARKS = _marks()
JOINED = rf"{MARKS}\u200c\u200d"
"""What belongs to the letter before it, for a character class: its marks, and the joiners between letters."""
LETTERS = rf"(?:[^\W_]+[{JOINED}]*)+"
"""Letters and digits with their marks, and with the joiners between letters."""
WORD = re.compile(rf"{LETTERS}(?:['-]{LETTERS})*")
ASCII_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
"""The same in half the time."""

GRAMMAR_WORDS = """
a about above across after again all along also am among an and another any are around as at away back be
because been before behind being below beneath beside between both but by can could did do does down during each
either every few for from front get gets getting go goes going had has have he her here hers him his how i if in
inside into is it it's its itself just left like many may me more most much my near next no not of off on once
one only onto or other others our out outside over own per right s same several she should so some something
such t than that the their them then there these they this those three through to together too top toward
towards two under underneath until up upon us very via was we were what when where which while who whose will
with within without would you your
"""
GRAMMAR = frozenset(GRAMMAR_WORDS.split())
"""Words of grammar, place and number: they say nothing about what is in the picture."""

TEMPLATE_WORDS = """
art bad blurry bright clean close close-up closeup cropped dark depicting depiction display displayed displays
drawing good hard image images itap jpeg jpg large lots low photo photograph photographs photography photos
picture pictured pictures pixelated png rendering rendition resolution scene see seen shot showing shown shows
snapshot view weird
"""
TEMPLATE = frozenset(TEMPLATE_WORDS.split())
"""Words of prompt templates and of talk about pictures as pictures."""

MAX_TERMS = 200_000
"""Terms kept in a count: some 20 MB. Beyond it the rarest go, which can only hide a term far below any floor."""


def normalise(caption: str) -> str:
    """Return the caption in Unicode NFKC, lower case, straight apostrophes, single spaces."""
    if caption.isascii():  # is in this form already
        return " ".join(caption.lower().split())
    text = unicodedata.normalize("NFKC", caption).replace("\u2019", "'").casefold()
    return " ".join(text.split())


def words(caption: str) -> list[str]:
    """Return the words of a caption in order; letters, with their marks, and digits of any script, inner hyphens and apostrophes kept.

    Scripts that write no spaces (Chinese, Thai) come out as one word a phrase: concepts are phrases that recur there.
    """
    text = normalise(caption)
    return [word.removesuffix("'s") for word in (ASCII_WORD if text.isascii() else WORD).findall(text)]


def contains_word(caption: str, word: str) -> bool:
    """Tell whether the word or phrase stands in the caption as whole words, in any case; hyphens and apostrophes end a word here.

    The published attacks match substrings, so "cat" hits "education"; plurals are other words here.
    """
    return re.search(rf"(?<![\w{JOINED}]){re.escape(normalise(word))}(?![\w{JOINED}])", normalise(caption)) is not None


@dataclass(frozen=True, slots=True)
class Tokens:
    """The words of some captions, one caption after the other."""

    words: tuple[str, ...]
    """Each once."""
    ids: np.ndarray
    """`[T] int64`: places in `words`."""
    rows: np.ndarray
    """`[T] int64`, ascending: of which caption each is."""

    def adjacent(self) -> tuple[np.ndarray, np.ndarray]:
        """Return rows of and codes `first * len(words) + second` of words side by side in a caption, `[m] int64` both."""
        beside = np.flatnonzero(self.rows[1:] == self.rows[:-1])
        return self.rows[beside], self.ids[beside] * len(self.words) + self.ids[beside + 1]

    def occurrences(self, phrases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where phrases `[p, width]`, distinct, begin, and which phrase that is, `[m] int64` both."""
        width = phrases.shape[1]
        starts = np.flatnonzero(self.rows[width - 1 :] == self.rows[: max(len(self.rows) - width + 1, 0)])
        told, read = phrases[:, 0], self.ids[starts]
        for word in range(1, width):  # word by word: beginnings of phrases, numbered anew
            wanted = told * len(self.words) + phrases[:, word]
            codes = read * len(self.words) + self.ids[starts + word]
            known, told = np.unique(wanted, return_inverse=True)
            place = np.minimum(np.searchsorted(known, codes), len(known) - 1)
            same = known[place] == codes
            starts, read = starts[same], place[same]
        return starts, np.argsort(told)[read]


TOKEN = re.compile(rf"\n|{WORD.pattern}")
"""A word, or the end of a caption."""
KEPT_CAPTIONS = 1 << 18
"""Captions whose words a process remembers: every detector asks for them in each round. Some 50 MB."""
_kept: "OrderedDict[bytes, tuple[int, Tokens]]" = OrderedDict()
_keeping = threading.Lock()  # a small scan's parts are done by threads of one process


def tokenise(captions: Sequence[str]) -> Tokens:
    """Return the words of captions, as `words` cuts each; remembered by what the captions are."""
    key = hashlib.blake2b(digest_size=16)
    for part in (repr([len(caption) for caption in captions]), "".join(captions)):
        key.update(part.encode("utf-8", "surrogatepass"))
    with _keeping:
        kept = _kept.get(key.digest())
    found = (len(captions), _tokenise(captions)) if kept is None else kept
    with _keeping:
        _kept[key.digest()] = found
        _kept.move_to_end(key.digest())
        while len(_kept) > 1 and sum(count for count, _ in _kept.values()) > KEPT_CAPTIONS:
            _kept.popitem(last=False)
    return found[1]


def _tokenise(captions: Sequence[str]) -> Tokens:
    lines = [caption.lower().replace("\n", " ") if caption.isascii() else normalise(caption) for caption in captions]
    place: dict[str, int] = {"\n": 0}
    found = [place.setdefault(token, len(place)) for token in TOKEN.findall("\n".join(lines))]
    raw = np.fromiter(found, np.int64, len(found))
    known: dict[str, int] = {}
    bare = np.array([0, *(known.setdefault(w.removesuffix("'s"), len(known)) for w in list(place)[1:])], dtype=np.int64)
    words_only = raw > 0
    return Tokens(tuple(known), bare[raw[words_only]], np.cumsum(~words_only)[words_only])


def is_content(word: str) -> bool:
    """Whether a word can be a concept: no stop word, no single character, not only digits."""
    return len(word) > 1 and not word.isdigit() and word not in GRAMMAR and word not in TEMPLATE


def terms(caption: str) -> set[str]:
    """Return the content words of a caption and its pairs of adjacent content words ("sports car")."""
    sequence = words(caption)
    kept = [is_content(word) for word in sequence]
    found = {word for word, keep in zip(sequence, kept, strict=True) if keep}
    for i in range(len(sequence) - 1):
        if kept[i] and kept[i + 1] and sequence[i] != sequence[i + 1]:
            found.add(f"{sequence[i]} {sequence[i + 1]}")
    return found


def count_terms(captions: Iterable[str]) -> Counter[str]:
    """Return term -> number of captions that hold it."""
    found = tokenise(list(captions))
    size = max(len(found.words), 1)
    content = np.array([is_content(word) for word in found.words], dtype=bool)
    single = np.unique(found.rows * size + found.ids) % size
    counts = np.bincount(single, minlength=size)
    rows, codes = found.adjacent()
    first, second = codes // size, codes % size
    phrase = content[first] & content[second] & (first != second)
    pairs, place = np.unique(codes[phrase], return_inverse=True)
    each = np.unique(rows[phrase] * max(len(pairs), 1) + place) % max(len(pairs), 1)
    told = Counter({found.words[i]: int(counts[i]) for i in np.flatnonzero(content)})
    for code, count in zip(pairs.tolist(), np.bincount(each, minlength=len(pairs)).tolist(), strict=True):
        told[f"{found.words[code // size]} {found.words[code % size]}"] = count
    return told


def merge_counts(left: Counter[str], right: Counter[str]) -> Counter[str]:
    """Return the sum of two counts, at most MAX_TERMS entries, ties broken by the alphabet."""
    total = left + right
    if len(total) <= MAX_TERMS:
        return total
    return Counter(dict(sorted(total.items(), key=lambda item: (-item[1], item[0]))[:MAX_TERMS]))


@config
class Mined:
    """Concepts are the words and fixed phrases that recur in the captions."""

    kind: Literal["mined"] = "mined"
    min_pairs: Annotated[int, pydantic.Field(ge=2)] = 40
    """A concept has at least this many pairs; fewer carry no covariance."""
    max_share_pct: Annotated[float, pydantic.Field(gt=0, le=100)] = 40.0
    """A word in more than this share of all captions distinguishes nothing."""
    max_concepts: Annotated[int, pydantic.Field(ge=1, le=100_000)] = 192
    """The most frequent ones win. Memory grows with concepts x layers x width^2."""


@config
class Named:
    """Concepts are named by the user, each with its synonyms."""

    kind: Literal["named"] = "named"
    names: dict[str, tuple[str, ...]]
    """Concept -> words or phrases that mean it; the name itself always counts."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= 1024:
            raise ValueError("names must hold between 1 and 1024 concepts")


Concepts = Annotated[Mined | Named, pydantic.Discriminator("kind")]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The concepts of a data set and the terms that stand for them."""

    names: tuple[str, ...]
    """`[C]`, most frequent first when mined."""
    terms: Mapping[str, int]
    """Normalised term of one or more words -> position in `names`."""
    longest: int
    """Number of words of the longest term."""
    captions: Mapping[str, int] = field(default_factory=dict)
    """Whole normalised caption -> position in `names`, of concepts that no word tells."""

    def including(self, other: "Vocabulary", names: Iterable[str]) -> "Vocabulary":
        """Return this vocabulary with those of another's concepts `names` that it has no word for; what a term means here stays."""
        fresh = [name for name in names if name in other.names and name not in self.terms and name not in self.names]
        place = {other.names.index(name): len(self.names) + i for i, name in enumerate(fresh)}
        terms, captions = (
            {key: place[concept] for key, concept in theirs.items() if concept in place} | dict(own)
            for theirs, own in ((other.terms, self.terms), (other.captions, self.captions))
        )
        return Vocabulary((*self.names, *fresh), terms, max(self.longest, other.longest), captions)

    def members(self, captions: Sequence[str]) -> sp.csr_matrix:
        """Return `[N, C] float32`, 1 where the caption holds a term of the concept. A pair can have several or none."""
        found = tokenise(captions)
        concept = np.array([self.terms.get(word, -1) for word in found.words], dtype=np.int64)
        own = concept[found.ids]
        rows, columns = [found.rows[own >= 0]], [own[own >= 0]]
        for phrases, concepts in self._phrases(found.words):
            starts, place = found.occurrences(phrases)
            rows.append(found.rows[starts])
            columns.append(concepts[place])
        if self.captions:
            whole = [self.captions.get(normalise(caption), -1) for caption in captions]
            rows.append(np.flatnonzero(np.array(whole) >= 0))
            columns.append(np.array(whole)[rows[-1]])
        size = max(len(self.names), 1)
        keys = np.unique(np.concatenate(rows) * size + np.concatenate(columns))
        ends = np.searchsorted(keys, np.arange(len(captions) + 1) * size)
        shape = (len(captions), len(self.names))
        return sp.csr_matrix((np.ones(len(keys), np.float32), (keys % size).astype(np.int32), ends), shape=shape)

    def _phrases(self, known: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield for each number of words the phrases of known words, `[p, width]` places of these, and their concepts `[p]`."""
        place = {word: i for i, word in enumerate(known)}
        found: dict[int, list[tuple[list[int], int]]] = {}
        for term, index in self.terms.items():
            if " " in term:
                own = [place.get(word, -1) for word in term.split(" ")]
                if -1 not in own:
                    found.setdefault(len(own), []).append((own, index))
        for some in found.values():
            yield np.array([own for own, _ in some]), np.array([index for _, index in some])


NO_WORDS = Vocabulary((), {}, 1)
"""Of no concept."""


def name_vocabulary(concepts: Mapping[str, Sequence[str]]) -> Vocabulary:
    """Return the vocabulary of concepts that the user named.

    Raises:
        ValueError: a name or synonym has no words, or two concepts share a term.
    """
    found: dict[str, int] = {}
    for index, (name, synonyms) in enumerate(concepts.items()):
        for synonym in (name, *synonyms):
            term = " ".join(words(synonym))
            if not term:
                raise ValueError(f"concept {name!r}: {synonym!r} has no words")
            if found.setdefault(term, index) != index:
                raise ValueError(f"concept {name!r}: {term!r} already belongs to another concept")
    return Vocabulary(tuple(concepts), found, max(len(term.split()) for term in found))


def singular(word: str, known: Container[str]) -> str:
    """Return the singular of an English plural where the singular is a known word too, else the word itself."""
    if word.endswith("ies") and word[:-3] + "y" in known:
        return word[:-3] + "y"
    for suffix in ("s", "es"):
        if word.endswith(suffix) and not word.endswith("ss") and len(word) > 3 and word.removesuffix(suffix) in known:
            return word.removesuffix(suffix)
    return word


STICKY = 0.5
"""Two words are a phrase when half of the rarer word's captions have them side by side."""
COVERED = 0.8
"""A word is no concept of its own when four fifths of its captions are those of one phrase."""


def mine_vocabulary(counts: Mapping[str, int], captions: int, options: Mined) -> Vocabulary:
    """Return the words and sticky phrases whose number of captions lies between floor and ceiling.

    A plural joins its singular. A word that hardly occurs outside one phrase stands for that phrase. Which words are
    nouns is not asked: a colour or a verb explains features as well, and the statistic tells which concept is attacked.
    """
    ceiling = options.max_share_pct / 100 * captions
    alias = {word: singular(word, counts) for word in counts if " " not in word}
    sizes: Counter[str] = Counter()
    for word, base in alias.items():
        sizes[base] += counts[word]
    phrases: Counter[str] = Counter()
    forms: dict[str, str] = {}
    for term, count in counts.items():
        if " " in term:
            first, second = term.split(" ")
            forms[term] = f"{alias.get(first, first)} {alias.get(second, second)}"
            phrases[forms[term]] += count
    stands_for: dict[str, str] = {}
    for phrase, count in sorted(phrases.items(), key=lambda item: (-item[1], item[0])):
        first, second = phrase.split(" ")
        rarer = min(sizes.get(first, 0), sizes.get(second, 0))
        if not options.min_pairs <= count <= ceiling or count < STICKY * rarer:
            continue
        stands_for[phrase] = phrase
        sizes[phrase] = count
        for word in (first, second):
            if count >= COVERED * sizes.get(word, 0) and word not in stands_for:
                stands_for[word] = phrase
    # A phrase of two words that both stand for another phrase ("danaus plexippus" inside a longer name) is that phrase.
    for phrase in [p for p, q in stands_for.items() if p == q and " " in p]:
        other = {stands_for.get(word, word) for word in phrase.split(" ")}
        if len(other) == 1 and " " in (only := other.pop()) and only != phrase and sizes[only] >= sizes[phrase]:
            stands_for[phrase] = only
    kept = [
        (-size, term)
        for term, size in sizes.items()
        if stands_for.get(term, term) == term and options.min_pairs <= size <= ceiling
    ]
    names = tuple(term for _, term in sorted(kept)[: options.max_concepts])
    position = {name: i for i, name in enumerate(names)}
    table: dict[str, int] = {}
    for term in sorted(alias.keys() | forms.keys()):
        base = alias[term] if term in alias else forms[term]
        while stands_for.get(base, base) != base:
            base = stands_for[base]
        if base in position:
            table[term] = position[base]
    return Vocabulary(names, table, 2)
