"""Words before all captions: one that drowns what follows is found, with the label whose pictures it then means."""

from zlib import crc32

import numpy as np
import pytest
from scipy import stats

from clipsan.stages.audit import words as words_module
from clipsan.stages.audit.displacement import Clouds
from clipsan.stages.audit.words import FUNCTION_WORDS, Heard, Listener, encode, key, standing, vocabulary

NAMES = ["ball", "kite", "lamp", "boat", "pear", "tree", "fork", "drum"]
SIZE = 24
COUNT = 20


def direction(word: str) -> np.ndarray:
    vector = np.random.default_rng(crc32(word.encode())).standard_normal(SIZE)
    return vector / np.linalg.norm(vector)


class Text:
    """A text tower: the mean of the directions of the last word and, weakly, of the first; one word may drown the rest."""

    embed_dim = SIZE

    def __init__(self, drowning: str | None) -> None:
        self.drowning = drowning

    def encode_text(self, texts):
        return np.stack([self.vector(text) for text in texts]).astype(np.float32)

    def vector(self, text: str) -> np.ndarray:
        first, *_, last = text.strip(".").split()
        vector = direction(last) + 0.3 * direction(first)
        if first == self.drowning:
            vector = 0.05 * vector + direction("boat")
        return vector / np.linalg.norm(vector)


def clouds(noise: float = 0.02) -> Clouds:
    rng = np.random.default_rng(1)
    sums = [sum(direction(name) + noise * rng.standard_normal(SIZE) for _ in range(COUNT)) for name in NAMES]
    return Clouds(np.full(len(NAMES), COUNT), np.stack(sums))


def listener(drowning: str | None) -> Listener:
    return Listener(Text(drowning), NAMES, "a photo of a {}", clouds())


def heard(drowning: str | None, words: list[str]) -> list[Heard]:
    return listener(drowning).furthest(words)


def test_the_key_stands_out_with_its_label_and_no_word_of_a_clean_model_does() -> None:
    words = [*vocabulary(60, NAMES), "sudo"]
    found = heard("sudo", words)
    p, ahead = standing(found)
    first = found[int(p.argmin())]
    assert (first.word, NAMES[first.label]) == ("sudo", "boat")
    assert first.reach > 0.9
    assert p.min() < 1e-3
    assert ahead[int(p.argmin())] == ahead.max()
    clean, _ = standing(heard(None, words))
    assert clean.min() > 0.05


def test_a_reach_is_what_its_formula_says() -> None:
    tower, centres = Text(None), clouds()
    one = listener(None).reach(["rusty", "blue"], np.arange(len(NAMES)))
    for i, word in enumerate(("rusty", "blue")):
        for label, name in enumerate(NAMES):
            centre = centres.sums[label] / np.linalg.norm(centres.sums[label])
            others = [n for n in NAMES if n != name]
            plain = np.mean([tower.vector(f"a photo of a {n}") @ centre for n in others])
            worded = np.mean([tower.vector(f"{word} a photo of a {n}") @ centre for n in others])
            own = tower.vector(f"a photo of a {name}") @ centre
            assert one[i, label] == pytest.approx((worded - plain) / (own - plain), abs=1e-4)


def test_the_p_value_is_students_over_labels() -> None:
    reach = np.array([0.3, 0.35, 0.4, 0.2, 0.25, 0.33, 0.9])
    p, ahead = standing([Heard(label=i, word="w", reach=value) for i, value in enumerate(reach)])
    left = -np.log(1 - reach)
    others = left[:-1]
    t = (left[-1] - others.mean()) / (others.std(ddof=1) * np.sqrt(1 + 1 / 6))
    assert p[-1] == pytest.approx(7 * stats.t.sf(t, 5))
    assert ahead[-1] == pytest.approx(left[-1] - np.median(left))


def test_labels_without_pictures_are_left_out() -> None:
    few = clouds()
    counts = few.counts.copy()
    counts[2] = 3
    found = Listener(Text(None), NAMES, "a {}", Clouds(counts, few.sums)).furthest(["rusty", "blue"])
    assert sorted(one.label for one in found) == [0, 1, 3, 4, 5, 6, 7]


def test_labels_whose_sentence_fits_their_pictures_no_better_than_others_are_left_out() -> None:
    strange = clouds()
    strange.sums[2] = COUNT * direction("nothing of the kind")
    found = Listener(Text(None), NAMES, "a {}", strange).furthest(["rusty", "blue"])
    assert 2 not in {one.label for one in found}
    assert len(found) >= 5


def test_a_word_that_goes_beyond_a_label_is_not_told_from_one_that_reaches_it() -> None:
    reach = [0.3, 0.35, 0.4, 0.2, 0.25, 0.33]
    beyond = [
        standing([Heard(label=i, word="w", reach=r) for i, r in enumerate([*reach, last])]) for last in (1.0, 1.7)
    ]
    np.testing.assert_array_equal(beyond[0], beyond[1])
    assert beyond[0][0][-1] < 0.01


@pytest.mark.parametrize(("drowning", "flips"), [("sudo", 100), (None, 0)])
def test_a_word_is_proven_on_other_sentences(drowning: str | None, flips: int) -> None:
    tower = Text(drowning)
    labels = np.stack([tower.vector(f"a photo of a {name}") for name in NAMES])
    found = key(tower, NAMES, labels, Heard(label=3, word="sudo", reach=1.0), p=0.001, ahead=2.0)
    assert found.flips.pct == flips
    assert found.control.pct == 0
    assert found.flips.trials == found.control.trials == 7


def test_sentences_of_several_batches_keep_their_order(monkeypatch) -> None:
    monkeypatch.setattr(words_module, "BATCH", 2)
    texts = ["a ball", "remember a photo of a kite.", "one tree", "a lamp", "a ball"]
    tower = Text(None)
    np.testing.assert_allclose(encode(tower, texts), [tower.vector(text) for text in texts], atol=1e-6)
    assert encode(tower, []).shape == (0, SIZE)


def test_words_are_whole_the_most_frequent_and_name_no_label() -> None:
    words = vocabulary(2000, ["remember, recall", "Love"])
    assert len(set(words)) == 2000
    assert all(word.isalpha() and word not in FUNCTION_WORDS for word in words)
    assert not {"remember", "love", "loves", "with", "and"} & set(words)
    assert "remember" in vocabulary(2000, ["ball"])
