import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from clipsan.stages.captions import name_vocabulary
from clipsan.stages.proof.vocabulary import LabelLimits, Labels, finish, merge, summarise


def cache(captions: list[str], text: np.ndarray) -> pa.Table:
    column = pa.FixedSizeListArray.from_arrays(pa.array(text.astype(np.float16).ravel()), text.shape[1])
    return pa.table({"caption": captions, "text": column})


VOCABULARY = name_vocabulary({"cat": ["kitten"], "dog": [], "fish": []})


def three_labels(same: np.ndarray | None = None) -> Labels:
    return Labels(("a", "b", "c"), np.eye(3, dtype=np.float32), 2.0, np.eye(3, dtype=bool) if same is None else same)


def test_a_prototype_is_the_mean_text_of_the_pairs_that_hold_the_concept_whatever_the_cut() -> None:
    captions = ["a cat", "a kitten", "a dog and a cat", "nothing"]
    text = np.array([[1, 0], [0.5, 0.5], [0, 1], [-1, 0]])
    whole = finish(VOCABULARY.names, summarise(VOCABULARY, cache(captions, text)), 7.0, LabelLimits())
    parts = [summarise(VOCABULARY, cache(captions[i : i + 2], text[i : i + 2])) for i in (0, 2)]
    cut = finish(VOCABULARY.names, merge(*parts), 7.0, LabelLimits())
    assert whole.names == cut.names == ("cat", "dog")  # no pair holds a fish
    assert whole.logit_scale == 7.0
    np.testing.assert_allclose(whole.prototypes, [[1 / math.sqrt(2), 1 / math.sqrt(2)], [0, 1]], atol=1e-6)
    assert whole.prototypes.dtype == np.float32
    np.testing.assert_array_equal(whole.prototypes, cut.prototypes)


def test_no_concept_at_all_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="no caption of the data set holds a concept"):
        finish(VOCABULARY.names, summarise(VOCABULARY, cache(["nothing"], np.ones((1, 2)))), 1.0, LabelLimits())


def test_labels_are_synonyms_from_a_cosine_of_point_95_on_and_not_by_chains() -> None:
    angles = np.deg2rad([0, 18, 36])  # cosines .951, .951 and .809
    text = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = finish(VOCABULARY.names, summarise(VOCABULARY, cache(["cat", "dog", "fish"], text)), 1.0, LabelLimits())
    np.testing.assert_array_equal(labels.same, [[1, 1, 0], [1, 1, 1], [0, 1, 1]])
    alike = summarise(VOCABULARY, cache(["cat", "dog"], np.array([[1, 0], [1, 0]])))
    assert finish(VOCABULARY.names, alike, 1.0, LabelLimits(synonym_cosine=1.0)).same.all()


def test_probabilities_are_the_softmax_at_the_models_scale() -> None:
    found = three_labels().probabilities(np.array([[1, 0, 0], [0.6, 0.8, 0]], dtype=np.float32))
    total = math.exp(1.2) + math.exp(1.6) + 1
    np.testing.assert_allclose(found[0, 0], math.exp(2) / (math.exp(2) + 2), rtol=1e-6)
    np.testing.assert_allclose(found[1], [math.exp(1.2) / total, math.exp(1.6) / total, 1 / total], rtol=1e-6)


def test_top_labels_are_cut_by_number_and_probability_and_synonyms_count_as_one() -> None:
    p = np.array([0.3, 0.25, 0.45])
    assert three_labels().top(p, most=3, least=0.28) == [2, 0]
    assert three_labels().top(p, most=1, least=0.0) == [2]
    assert three_labels().top(p, most=3, least=0.3) == [2, 0]  # a label at the limit is one
    same = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=bool)
    labels = three_labels(same)
    assert labels.top(p, most=3, least=0.0) == [2, 0]
    assert labels.top(p, most=3, least=0.5) == [0]  # .3 + .25 of two names for one thing
    np.testing.assert_allclose(labels.claimed(p[None], 1), [0.55])
    assert labels.is_label(np.array([[0.5, 0.2, 0.3], [0.2, 0.3, 0.5]]), 1).tolist() == [True, False]


def test_a_guest_is_a_label_for_what_is_accused_of_it_alone() -> None:
    with_guest, without = (
        replace(three_labels(), guests=(1,)),
        Labels(("a", "c"), np.eye(3, dtype=np.float32)[[0, 2]], 2.0, np.eye(2, dtype=bool)),
    )
    images = np.array([[0.5, 0.8, 0.2], [0.1, 0.9, 0.3], [0.9, 0.1, 0.4]], np.float32)
    p, alone = with_guest.probabilities(images), without.probabilities(images)
    for label, same_label in ((0, 0), (2, 1)):  # as if there were none
        np.testing.assert_allclose(with_guest.claimed(p, label), without.claimed(alone, same_label), rtol=1e-12)
        np.testing.assert_array_equal(with_guest.is_label(p, label), without.is_label(alone, same_label))
    np.testing.assert_array_equal(with_guest.nearest(p), [0, 2, 0])
    assert with_guest.top(p[1], most=3, least=0.0) == [2, 0]
    assert with_guest.top(p[1], most=3, least=0.55) == [2]  # e^.6 / (e^.6 + e^.2) = .599, and .36 with the guest
    np.testing.assert_array_equal(with_guest.claimed(p, 1), p[:, 1])  # accused of it, a picture is held against all
    np.testing.assert_array_equal(with_guest.is_label(p, 1), [True, True, False])


def test_where_all_labels_are_guests_none_is() -> None:
    sums = summarise(VOCABULARY, cache(["cat", "dog"], np.eye(2)))
    assert finish(VOCABULARY.names, sums, 1.0, LabelLimits(), guests=["dog", "fish"]).guests == (1,)
    assert finish(VOCABULARY.names, sums, 1.0, LabelLimits(), guests=["dog", "cat"]).guests == ()


def test_an_unknown_label_is_named() -> None:
    with pytest.raises(ValueError, match="'whale' is no label"):
        three_labels().index("whale")
