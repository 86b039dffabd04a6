"""Zero-shot classification by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from clipsan.stages.evaluation.zero_shot import (
    class_embeddings,
    find_class,
    label_ranks,
    predict,
    synonyms,
)

WORDS = {"cat": [1, 0], "feline": [0, 1], "dog": [-1, 0]}


class Texts:
    """Stands for a Clip: a caption's vector is its word's, turned a little by the template."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode_text(self, captions: Sequence[str]) -> np.ndarray:
        self.seen += captions
        rows = []
        for caption in captions:
            vector = np.array(next(v for word, v in WORDS.items() if word in caption), float)
            rows.append(vector + (np.array([0, 0.5]) if "photo" in caption else 0))
        unit = np.array(rows)
        return (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)


def test_a_class_is_the_normalised_mean_over_synonyms_and_templates() -> None:
    clip = Texts()
    found = class_embeddings(clip, ["cat, feline", "dog"], ["a photo of a {}.", "one {}"])  # type: ignore[arg-type]
    tilt = np.array([1, 0.5]) / np.sqrt(1.25)
    cat = tilt + np.array([1, 2])  # cat, then feline in both templates, which the photo does not turn
    dog = tilt * [-1, 1] + np.array([-1, 0])
    np.testing.assert_allclose(found, [cat / np.linalg.norm(cat), dog / np.linalg.norm(dog)], atol=1e-6)
    assert sorted(clip.seen) == sorted(
        ["a photo of a cat.", "one cat", "a photo of a feline.", "one feline", "a photo of a dog.", "one dog"]
    )


def test_many_prompts_are_encoded_in_batches_without_mixing_classes() -> None:
    names = ["cat", "dog"] * 200
    found = class_embeddings(Texts(), names, ["one {}"])  # type: ignore[arg-type]
    np.testing.assert_allclose(found[::2], np.tile([1.0, 0.0], (200, 1)), atol=1e-6)
    np.testing.assert_allclose(found[1::2], np.tile([-1.0, 0.0], (200, 1)), atol=1e-6)


def test_synonyms_are_stripped_and_unique() -> None:
    assert synonyms(" goldfish, Carassius auratus ,goldfish,") == ["goldfish", "Carassius auratus"]


def test_ranks_and_accuracy_by_hand() -> None:
    classes = np.eye(3, dtype=np.float32)
    image = np.array([[0.9, 0.3, 0.1], [0.2, 0.5, 0.8], [0.6, 0.7, 0.1], [0.3, 0.2, 0.9]], np.float32)
    labels = np.array([0, 1, 2, 2])
    assert predict(image, classes).tolist() == [0, 2, 1, 2]
    assert label_ranks(image, classes, labels).tolist() == [0, 1, 2, 0]
    assert [float((label_ranks(image, classes, labels) < k).mean()) for k in (1, 2, 3)] == [0.5, 0.75, 1.0]


def test_a_collapsed_or_broken_encoder_scores_nothing() -> None:
    classes = np.tile(np.array([[0.6, 0.8]], np.float32), (4, 1))
    assert (label_ranks(np.array([[1, 0]] * 4, np.float32), classes, np.arange(4)) > 0).all()
    assert (label_ranks(np.full((4, 2), np.nan, np.float32), classes, np.arange(4)) > 0).all()


def test_the_target_is_one_of_the_names_in_any_case() -> None:
    names = ["goldfish, Carassius auratus", "tabby cat", "cat"]
    assert find_class(names, "carassius AURATUS") == 0
    assert find_class(names, "cat") == 2
    assert find_class(names, "Goldfish, Carassius auratus") == 0  # as an audit names what a trigger means
    with pytest.raises(ValueError, match="names 0 of the 3 classes"):
        find_class(names, "fish")
    with pytest.raises(ValueError, match="names 2 of the 2 classes"):
        find_class(["crane, bird", "crane, machine"], "crane")


@pytest.mark.parametrize(
    ("names", "templates", "rule"),
    [
        ([], ["{}"], "at least one class"),
        (["cat", " , "], ["{}"], "class 1 has no name"),
        (["cat"], [], "templates"),
        (["cat"], ["no gap"], "templates"),
        (["cat"], ["a {}", "no gap"], "templates"),
    ],
)
def test_what_cannot_be_a_classifier_is_refused(names: list[str], templates: list[str], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        class_embeddings(Texts(), names, templates)  # type: ignore[arg-type]
