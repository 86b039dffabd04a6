"""Words that pictures are taken for."""

import numpy as np

from clipsan.stages.audit.sought import best_words, labels_of

WORDS = ["ball", "kite", "lamp", "boat"]


class Text:
    """A text tower that gives every word an axis of its own."""

    embed_dim = 5

    def encode_text(self, texts):
        rows = np.eye(5, dtype=np.float32)[[WORDS.index(text.split()[-1]) for text in texts]]
        rows[:, 4] = 0.5
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_picture_is_named_by_the_nearest_text() -> None:
    rng = np.random.default_rng(0)
    seen = rng.standard_normal((20, 5))
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    found = best_words(Text(), seen, WORDS, ("a {}", "one {}"))
    for (word, cosine), vector in zip(found, seen, strict=True):
        fits = [(vector[i] + 0.5 * vector[4]) / np.sqrt(1.25) for i in range(4)]
        assert word == WORDS[int(np.argmax(fits))]
        assert np.isclose(cosine, max(fits), atol=1e-5)


def test_labels_are_what_several_pictures_are_taken_for() -> None:
    assert labels_of(["kite", "ball", "boat", "kite", "ball", "kite"], 5) == ["kite", "ball"]
    assert labels_of(["kite", "ball", "boat", "kite", "ball", "kite"], 1) == ["kite"]
    assert labels_of([], 3) == []
