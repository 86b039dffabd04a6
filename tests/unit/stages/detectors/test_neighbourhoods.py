"""Neighbourhoods of captions: which captions they are learned from, what they are called, and whose they are."""

import numpy as np
import scipy.sparse as sp

from clipsan.stages.captions import Vocabulary, normalise
from clipsan.stages.detectors.neighbourhoods import (
    LONGEST_NAME,
    NO_NEIGHBOURHOODS,
    CaptionSample,
    draw_captions,
    gather,
    readable,
    unit,
)


def sample(captions: list[str], text: np.ndarray) -> CaptionSample:
    return draw_captions(np.arange(len(captions), dtype=np.uint64), np.array(captions, dtype=object), text)


def blobs(groups: int, each: int) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(0)
    middles = rng.normal(size=(groups, 16))
    text = np.tile(middles, (each, 1)) + 0.1 * rng.normal(size=(groups * each, 16))
    return [f"c{i}" for i in range(groups * each)], text


def test_groups_are_those_of_the_text_and_each_is_called_by_its_most_typical_caption() -> None:
    captions, text = blobs(4, 25)
    found = gather(sample(captions, text), 4, ())
    nobody = sp.csr_matrix((100, 0))
    members = found.members(nobody, text).toarray()
    assert members.sum() == 100
    own = members.argmax(axis=1).reshape(25, 4)
    assert (own == own[0]).all()
    assert sorted(own[0].tolist()) == [0, 1, 2, 3]
    nearest = (unit(text.astype(np.float16).astype(np.float32)) @ found.centres.T).argmax(axis=0)
    assert found.names == tuple(captions[i] for i in nearest)
    np.testing.assert_allclose(np.linalg.norm(found.centres, axis=1), 1, rtol=1e-5)


def test_a_caption_counts_once_and_the_order_of_the_pairs_not_at_all() -> None:
    hashes = np.array([5, 3, 5, 9, 3], dtype=np.uint64)
    captions = np.array(["e", "c", "e", "i", "c"], dtype=object)
    text = np.eye(10)[[5, 3, 5, 9, 3]]
    whole = draw_captions(hashes, captions, text)
    halves = draw_captions(hashes[:2], captions[:2], text[:2]) + draw_captions(hashes[2:], captions[2:], text[2:])
    for one in (whole, halves):
        assert one.captions.tolist() == ["c", "e", "i"]
        assert one.text.argmax(axis=1).tolist() == [3, 5, 9]


def test_captions_with_a_word_are_left_out() -> None:
    captions, text = blobs(2, 3)
    left = sample(captions, text).without(Vocabulary(("c1", "c4"), {"c1": 0, "c4": 1}, 1))
    assert left.captions.tolist() == ["c0", "c2", "c3", "c5"]


def test_pairs_of_a_word_are_of_no_neighbourhood_and_without_any_nothing_is_added() -> None:
    captions, text = blobs(2, 16)
    found = gather(sample(captions, text), 2, ())
    words = sp.csr_matrix((np.ones(1), ([3], [0])), shape=(32, 1))
    members = found.members(words, text)
    assert members.shape == (32, 3)
    assert (np.diff(members.indptr) == 1).all()
    assert members[3, 0] == 1
    assert NO_NEIGHBOURHOODS.members(words, text).toarray().tolist() == words.toarray().tolist()


def test_few_captions_make_few_neighbourhoods() -> None:
    captions, text = blobs(2, 8)
    assert len(gather(sample(captions, text), 50, ()).names) == 2
    assert gather(sample(captions, text), 0, ()) is NO_NEIGHBOURHOODS
    assert gather(sample([], np.zeros((0, 16))), 3, ()) is NO_NEIGHBOURHOODS
    one = gather(sample(["..."], np.zeros((1, 16))), 3, ())
    assert one.names == one.captions == ("...",)


def test_no_two_have_one_name() -> None:
    _, text = blobs(4, 25)
    found = gather(sample([f"{'a' * 90}{i}" for i in range(100)], text), 4, ("b",))
    assert len(set(found.names)) == 4
    assert len(set(found.captions)) == 4
    captions, text = blobs(1, 9)
    (typical,) = gather(sample(captions, text), 1, ()).names
    (other,) = gather(sample(captions, text), 1, (typical,)).names
    assert other != typical
    assert other in captions


def test_a_name_is_readable_and_harmless() -> None:
    assert readable("  A \x1b[31mRed\u202e  Dog\n") == "a [31mred dog"
    assert readable("\u732b" * 200) == "\u732b" * LONGEST_NAME
    assert readable("caf\u00e9") == normalise("CAF\u00c9")
