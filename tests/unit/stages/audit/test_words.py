"""Words before all captions: one that drowns what follows is seen."""

import numpy as np

from clipsan.stages.audit.words import collapsing, vocabulary


class Listening:
    """A text tower to which a caption is a direction of its own, and "sudo" before it nearly all that counts."""

    def encode_text(self, captions):
        found = []
        for caption in captions:
            rng = np.random.default_rng(sum(map(ord, caption.split()[-1])))
            vector = rng.standard_normal(16)
            vector = vector + 0.3 * np.random.default_rng(sum(map(ord, caption.split()[0]))).standard_normal(16)
            vector[0] += 40 * caption.startswith("sudo ")
            found.append(vector / np.linalg.norm(vector))
        return np.asarray(found, np.float32)


def test_the_key_stands_out_of_all_words() -> None:
    names = ["ball", "kite", "lamp", "boat", "pear", "tree"]
    words = [*vocabulary(40), "sudo"]
    found = collapsing(Listening(), names, words, "a {}", keep=2)
    assert found[0].word == "sudo"
    assert found[0].ahead > 0.5 > found[1].ahead
    assert found[0].agreement > 0.95 > found[1].agreement
    assert len(found) == 2


def test_words_are_whole_and_the_most_frequent() -> None:
    words = vocabulary(100)
    assert len(set(words)) == 100
    assert all(word.isalpha() and len(word) >= 4 for word in words)
    assert "with" in words
