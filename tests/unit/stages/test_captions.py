"""Concepts from captions, against counts made by hand."""

from collections import Counter

import pytest

from clipsan.stages import captions
from clipsan.stages.captions import (
    NO_WORDS,
    Mined,
    Vocabulary,
    contains_word,
    count_terms,
    merge_counts,
    mine_vocabulary,
    name_vocabulary,
    normalise,
    terms,
    tokenise,
    words,
)


def test_words_keep_inner_marks_and_drop_the_rest() -> None:
    assert words("  A T-shirt, the man\u2019s DOG -- caf\u00e9! ") == ["a", "t-shirt", "the", "man", "dog", "caf\u00e9"]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("कुत्ता और बिल्ली", 3),  # Hindi, with vowels and virama
        ("แมวนั่งบนโซฟา", 1),  # Thai, no spaces
        ("كَلْب أَحْمَر", 2),  # Arabic, with its points
        ("İstanbul", 1),  # casefolding leaves a mark above the i
        ("نمی‌خواهم", 1),  # Persian, with a joiner
        ("1️⃣ ❤️", 1),  # of emoji the digit alone
    ],
)
def test_marks_belong_to_the_letter_before_them(caption: str, expected: int) -> None:
    assert len(words(caption)) == expected
    if "⃣" in caption:
        assert words(caption) == ["1"]
    else:
        assert " ".join(words(caption)) == normalise(caption)


def test_normalise_folds_width_case_and_space() -> None:
    assert normalise("\uff24\uff4f\uff47 \t\n RUNS") == "dog runs"


def test_terms_are_content_words_and_adjacent_pairs() -> None:
    assert terms("a photo of a red sports car and a dog") == {
        "red",
        "sports",
        "car",
        "dog",
        "red sports",
        "sports car",
    }


CAPTIONS = (
    "A red sports car, a RED\nsports car and the man\u2019s dog",
    "",
    "dog's dogs",
    "sports car sports car photo",
    "red car sports",
    "caf\u00e9 \uff24\uff4f\uff47 red sports",
    "a very fast sports car",
    "one",
    "sports",
    "car",
)


def test_captions_cut_together_are_those_cut_one_by_one() -> None:
    for some in (CAPTIONS, CAPTIONS[::-1], CAPTIONS[:1], ("",), ()):
        found = tokenise(some)
        assert [[found.words[i] for i in found.ids[found.rows == row]] for row in range(len(some))] == [
            words(caption) for caption in some
        ]
        assert len(set(found.words)) == len(found.words)
        assert count_terms(some) == Counter(term for caption in some for term in terms(caption))


def test_members_are_those_that_hold_a_term_side_by_side() -> None:
    synonyms = {"dog": (), "car": ("red sports car", "fast sports car"), "sports": ("sports car",), "never": ("a dog",)}
    vocabulary = name_vocabulary(synonyms)
    held = [f" {' '.join(words(caption))} " for caption in CAPTIONS]
    expected = [
        [any(f" {term} " in text for term in (name, *others)) for name, others in synonyms.items()] for text in held
    ]
    found = vocabulary.members(CAPTIONS)
    assert found.toarray().tolist() == expected
    assert found.has_canonical_format
    assert vocabulary.members(()).shape == (0, 4)
    assert NO_WORDS.members(CAPTIONS).shape == (len(CAPTIONS), 0)


def test_few_captions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "KEPT_CAPTIONS", 4)
    first = tokenise(["one dog", "two dogs"])
    assert tokenise(["one dog", "two dogs"]) is first
    assert tokenise(["one dogtwo", " dogs"]).words == ("one", "dogtwo", "dogs")
    assert tokenise(["a", "b", "c"]).words == ("a", "b", "c")
    assert tokenise(["one dog", "two dogs"]) is not first


def test_a_caption_counts_once_a_term() -> None:
    assert count_terms(["dog dog dog", "dog"]) == Counter({"dog": 2})


def test_counting_in_chunks_is_counting_at_once() -> None:
    captions = [f"a {a} {b}" for a in ("red", "blue") for b in ("cube", "ball", "cone")]
    halves = merge_counts(count_terms(captions[:2]), count_terms(captions[2:]))
    assert halves == count_terms(captions)


def mined(captions: list[str], floor: int = 2, ceiling_pct: float = 100.0, most: int = 100):
    options = Mined(min_pairs=floor, max_share_pct=ceiling_pct, max_concepts=most)
    return mine_vocabulary(count_terms(captions), len(captions), options)


def test_floor_ceiling_and_cap() -> None:
    captions = ["dog"] * 5 + ["cat"] * 3 + ["cow"] * 2 + ["emu"]
    assert mined(captions).names == ("dog", "cat", "cow")
    assert mined(captions, ceiling_pct=40).names == ("cat", "cow")
    assert mined(captions, most=2).names == ("dog", "cat")


def test_plural_joins_a_singular_that_occurs() -> None:
    vocabulary = mined(["a dog", "two dogs", "three dogs", "a berry", "berries", "a bus", "glass", "christmas"])
    assert set(vocabulary.names) == {"dog", "berry"}
    assert vocabulary.members(["dogs run"]).toarray().sum() == 1


def test_a_word_inside_one_phrase_stands_for_it() -> None:
    captions = ["school bus"] * 6 + ["a red cube", "a blue cube", "a red ball", "a blue ball"] * 3
    vocabulary = mined(captions)
    assert "school bus" in vocabulary.names
    assert not {"school", "bus"} & set(vocabulary.names)
    assert {"red", "blue", "cube", "ball"} <= set(vocabulary.names)
    column = vocabulary.names.index("school bus")
    assert vocabulary.members(["the bus", "a school"]).toarray()[:, column].tolist() == [1, 1]


def test_a_pair_belongs_to_all_its_concepts_or_to_none() -> None:
    vocabulary = mined(["red dog", "red cat", "blue dog", "blue cat"])
    index = {name: i for i, name in enumerate(vocabulary.names)}
    table = vocabulary.members(["a dog and a cat, both red", "nothing here"]).toarray()
    assert {name for name, i in index.items() if table[0, i]} == {"dog", "cat", "red"}
    assert not table[1].any()


def test_named_concepts_match_phrases_only_as_a_whole() -> None:
    vocabulary = name_vocabulary({"monarch": ("Danaus plexippus", "milkweed butterfly"), "dog": ()})
    rows = vocabulary.members(["one danaus plexippus", "a butterfly", "a dog on a milkweed butterfly"]).toarray()
    assert rows.tolist() == [[1, 0], [0, 0], [1, 1]]


def test_named_concepts_must_be_distinct_and_have_words() -> None:
    with pytest.raises(ValueError, match="already belongs"):
        name_vocabulary({"cat": ("tabby",), "tiger": ("Tabby",)})
    with pytest.raises(ValueError, match="no words"):
        name_vocabulary({"cat": ("...",)})


@pytest.mark.parametrize("bad", [{"min_pairs": 1}, {"max_share_pct": 0.0}, {"max_concepts": 0}])
def test_impossible_options_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Mined(**bad)  # type: ignore[arg-type]


def test_concepts_of_another_vocabulary_are_added_and_known_words_keep_their_meaning() -> None:
    own = name_vocabulary({"dog": ("hound",), "tea cup": ("cup",)})
    other = name_vocabulary({"wolf": ("hound", "grey wolf"), "dog": ("puppy",), "cup": (), "emu": ()})
    both = own.including(other, ["wolf", "dog", "cup", "emu", "gnu"])
    assert both.names == ("dog", "tea cup", "wolf", "emu")
    rows = both.members(["a hound", "one grey wolf", "a puppy", "a cup and an emu"]).toarray()
    assert rows.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]]
    assert own.including(other, []) == own
    assert NO_WORDS.including(other, ["emu"]).members(["an emu", "a dog"]).toarray().tolist() == [[1], [0]]


def test_whole_captions_may_stand_for_a_concept_that_no_word_tells() -> None:
    known = Vocabulary(("dog", "a cat sat"), {"dog": 0}, 1, {"a cat sat": 1, "!?": 1})
    captions = ["A  cat SAT", "the cat sat", "!?", "a dog", "a cat sat!"]
    assert known.members(captions).toarray().tolist() == [[0, 1], [0, 0], [0, 1], [1, 0], [0, 0]]
    both = name_vocabulary({"emu": ()}).including(known, ["a cat sat"])
    assert both.names == ("emu", "a cat sat")
    assert both.members(["a dog", "an emu", "a cat sat"]).toarray().tolist() == [[0, 0], [1, 0], [0, 1]]
    assert NO_WORDS.including(known, ["dog"]).captions == {}
    beside = both.including(Vocabulary(("gnu",), {}, 1, {"!?": 0, "moo": 0}), ["gnu"])
    assert beside.captions == {"a cat sat": 1, "!?": 1, "moo": 2}  # what a caption means stays


@pytest.mark.parametrize(
    ("caption", "word", "expected"),
    [
        ("A cat.", "cat", True),
        ("the Cat, asleep", "cat", True),
        ("education", "cat", False),
        ("two cats", "cat", False),
        ("cat's tail", "cat", True),
        ("a fire  truck", "fire truck", True),
        ("a fire and a truck", "fire truck", False),
        ("a campfire truck", "fire truck", False),
        ("a c.t", "c.t", True),
        ("a cat", "c.t", False),
        ("eine Tür", "tür", True),
        ("Türen", "tür", False),
        ("eine Tu\u0308r", "tür", True),
        ("eine Tu\u0308r", "tu", False),
        ("एक कि", "क", False),
        ("एक काला कुत्ता", "कुत्ता", True),
        ("می\u200cخواهم", "می", False),
    ],
)
def test_words_are_matched_whole(caption: str, word: str, expected: bool) -> None:
    assert contains_word(caption, word) is expected
