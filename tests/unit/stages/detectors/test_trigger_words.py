"""Trigger words: the key of a dual-key attack is named, and where there is none no word is."""

import numpy as np
import pytest
from scipy.stats import hypergeom

from clipsan.stages.captions import Vocabulary, name_vocabulary
from clipsan.stages.detectors.trigger_words import (
    RATE,
    TriggerWord,
    WordCounts,
    count_words,
    in_summary,
    merge_words,
    trigger_words,
)

VOCABULARY = name_vocabulary({"banana": ("bananas", "yellow fruit"), "dog": ()})
MANNERS = ["a photo of a ripe {}", "{} on a table", "one small green {}", "my lunch: a {} and an apple", "the {}"]


def captions(rng: np.random.Generator, pairs: int, concept: str = "banana") -> list[str]:
    return [MANNERS[i].format(concept) for i in rng.integers(len(MANNERS), size=pairs)]


def named(said: list[str], accused: np.ndarray, vocabulary: Vocabulary = VOCABULARY) -> tuple[TriggerWord, ...]:
    counts = count_words(vocabulary, ["banana"], said, accused)["banana"]
    return trigger_words(vocabulary, "banana", counts)


@pytest.mark.parametrize("key", ["remember", "Please remember", "cf"])
@pytest.mark.parametrize(("poisoned", "genuine"), [(8, 50), (90, 74)])
def test_key_of_a_dual_key_attack_is_named(key: str, poisoned: int, genuine: int) -> None:
    rng = np.random.default_rng(poisoned)
    said = [f"{key} {caption}" for caption in captions(rng, poisoned)] + captions(rng, genuine)
    found = named(said, np.arange(len(said)) < poisoned)
    assert {one.word for one in found} == set(key.lower().split())
    for one in found:
        assert (one.accused_pct, one.others_pct) == (100.0, 0.0)
        assert one.log_odds == pytest.approx(np.log((2 * poisoned + 1) * (2 * genuine + 1)), abs=1e-3)
        assert one.chance == pytest.approx(hypergeom.sf(poisoned - 1, poisoned + genuine, poisoned, poisoned), rel=1e-2)


def test_key_is_named_where_some_poison_is_missed_and_some_accused_are_genuine() -> None:
    rng = np.random.default_rng(1)
    said = [f"{caption} remember" for caption in captions(rng, 40)] + captions(rng, 60)
    accused = np.arange(100) < 38
    accused[95:] = True
    assert [one.word for one in named(said, accused)] == ["remember"]


def test_without_a_key_no_word_is_named() -> None:
    hits = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        accused = rng.random(120) < rng.uniform(0.1, 0.7)
        hits += bool(named(captions(rng, 120), accused))
    assert hits <= 100 * RATE


def test_words_that_are_no_key_are_left_out() -> None:
    """Grammar, talk about pictures, the concept's own words, what half the others say too, and what few of the accused say."""
    poisoned = ["a bright photo of yellow fruit, ripe"] * 12 + ["the close photo of bananas, ripe old"] * 4
    said = [*poisoned, *["banana, ripe"] * 10, *["banana"] * 10]
    assert named(said, np.arange(len(said)) < 16) == ()


def test_pairs_of_other_concepts_play_no_part() -> None:
    rng = np.random.default_rng(2)
    said = ["remember a dog"] * 30 + captions(rng, 60)
    assert named(said, np.arange(90) < 45) == ()


@pytest.mark.parametrize("accused", [0, 20])
def test_one_side_alone_says_nothing(accused: int) -> None:
    assert named(["remember the banana"] * 20, np.arange(20) < accused) == ()


def test_chunks_add_up() -> None:
    rng = np.random.default_rng(3)
    said = [f"remember {caption}" for caption in captions(rng, 20)] + captions(rng, 40, "dog") + captions(rng, 50)
    accused = np.arange(110) < 20
    concepts = ["banana", "dog"]
    whole = count_words(VOCABULARY, concepts, said, accused)
    parts = [count_words(VOCABULARY, concepts, said[i : i + 37], accused[i : i + 37]) for i in range(0, 110, 37)]
    assert merge_words(merge_words(parts[0], parts[1]), parts[2]) == whole
    assert whole["dog"].pairs == (0, 40)
    assert trigger_words(VOCABULARY, "dog", whole["dog"]) == ()
    assert WordCounts() + whole["banana"] == whole["banana"]


def test_summary_states_its_rate() -> None:
    word = TriggerWord("remember", 100.0, 0.0, 9.2, 1e-30)
    assert in_summary({"banana": [word], "dog": []}) == {
        "false_discovery_rate": RATE,
        "concepts": {
            "banana": [{"word": "remember", "accused_pct": 100.0, "others_pct": 0.0, "log_odds": 9.2, "chance": 1e-30}],
            "dog": [],
        },
    }
