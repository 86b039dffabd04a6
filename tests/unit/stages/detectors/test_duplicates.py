import functools
from collections import Counter as Tally

import numpy as np
import pyarrow as pa
import pytest

from clipsan.stages.detectors.duplicates import CaptionDuplicates, DuplicateCounts, DuplicatesConfig, bare_caption


def table_of(captions: list[str], hashes: list[int] | None = None) -> pa.Table:
    dhash = np.arange(len(captions), dtype=np.uint64) if hashes is None else np.array(hashes, np.uint64)
    return pa.table({"caption": pa.array(captions, pa.string()), "dhash": dhash})


def learned(detector: CaptionDuplicates, tables: list[pa.Table]) -> DuplicateCounts:
    summaries = [detector.summarise(detector.start(), table) for table in tables]
    return detector.update(detector.start(), functools.reduce(detector.merge, summaries))


def test_captions_count_without_case_space_and_punctuation() -> None:
    table = table_of(["A dog.", "a  DOG", "a-dog!", "a cat", "...", "!!!", "a dog and a cat"])
    detector = CaptionDuplicates(7)
    scores = detector.score(learned(detector, [table]), table)
    assert scores["caption_duplicates"].dtype == np.float32
    np.testing.assert_allclose(np.expm1(scores["caption_duplicates"]), [3, 3, 3, 1, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(np.expm1(scores["image_duplicates"]), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("caption", "bare"),
    [
        ("  Hello,\tWorld! ", "hello world"),
        ("\ufb01ne_art", "fine art"),
        ("\u72ac\u3002", "\u72ac"),
        ("?!", "?!"),
        ("a -_b", "a b"),
        ("\u0915\u093f!", "\u0915\u093f"),
    ],
)
def test_bare_caption(caption: str, bare: str) -> None:
    assert bare_caption(caption) == bare


def test_images_count_by_difference_hash() -> None:
    table = table_of(["x", "y", "z", "w"], [0, 2**64 - 1, 0, 0])
    detector = CaptionDuplicates(4)
    state = learned(detector, [table])
    np.testing.assert_allclose(np.expm1(detector.score(state, table)["image_duplicates"]), [3, 1, 3, 3], rtol=1e-6)
    assert detector.findings(state) == {"most_copies_of_a_caption": 1, "most_copies_of_an_image": 3, "exact": True}


def test_a_picture_with_one_caption_is_told_from_one_with_many() -> None:
    table = table_of(["A dog.", "a dog", "a cat", "a pear", "A dog"], [5, 5, 5, 5, 6])
    detector = CaptionDuplicates(5)
    found = detector.tallies(learned(detector, [table.slice(0, 2), table.slice(2)]), table)["pair_duplicates"]
    assert found.dtype == np.int32
    assert found.tolist() == [2, 2, 1, 1, 1]


def drawn(n: int, distinct: int) -> pa.Table:
    rng = np.random.default_rng(0)
    captions = [f"caption number {i}" for i in rng.integers(distinct, size=n)]
    return table_of(captions, list(rng.integers(0, 2**63, distinct).astype(np.uint64)[rng.integers(distinct, size=n)]))


@pytest.mark.parametrize("exact_keys", [1 << 18, 300, 40])
def test_chunks_merge_to_the_state_of_one_chunk(exact_keys: int) -> None:
    """Also where some chunks alone are small enough for exact counts and the whole is not."""
    table, detector = drawn(2000, 500), CaptionDuplicates(2000, DuplicatesConfig(exact_keys=exact_keys))
    whole = learned(detector, [table])
    parts = learned(
        detector, [table.slice(0, 1), table.slice(1, 30), table.slice(31, 0), table.slice(31, 900), table.slice(931)]
    )
    assert detector.findings(whole) == detector.findings(parts)
    assert detector.findings(whole)["exact"] == (exact_keys > 500)
    for name in detector.columns:
        np.testing.assert_array_equal(*(detector.score(state, table)[name] for state in (whole, parts)))


def test_exact_counts_are_the_true_ones() -> None:
    table, detector = drawn(2000, 500), CaptionDuplicates(2000)
    captions, hashes = table.column("caption").to_pylist(), table.column("dhash").to_pylist()
    scores = detector.score(learned(detector, [table]), table)
    for name, values in (("caption_duplicates", captions), ("image_duplicates", hashes)):
        tally = Tally(values)
        np.testing.assert_allclose(np.expm1(scores[name]), [tally[value] for value in values], rtol=1e-5)


def test_sketch_never_counts_too_low_and_seldom_too_high() -> None:
    table, detector = drawn(6000, 3000), CaptionDuplicates(6000, DuplicatesConfig(exact_keys=100))
    state = learned(detector, [table])
    assert not detector.findings(state)["exact"]
    for name, column in (("caption_duplicates", "caption"), ("image_duplicates", "dhash")):
        values = table.column(column).to_pylist()
        tally = Tally(values)
        truth = np.array([tally[value] for value in values])
        error = np.rint(np.expm1(detector.score(state, table)[name])) - truth
        assert (error >= 0).all()
        assert (error > 0).mean() < 0.05
        assert (
            detector.findings(state)[f"most_copies_of_a{'_caption' if column == 'caption' else 'n_image'}"]
            >= truth.max()
        )


def test_repeated_caption_and_placeholder_stand_out_and_nothing_does_without() -> None:
    captions = [f"photo {i} of something" for i in range(300)]
    hashes = list(range(1, 301))
    planted = [5, 90, 91, 200, 250]
    for row in planted:
        captions[row], hashes[row] = "a banana", 0
    detector = CaptionDuplicates(300)
    table = table_of(captions, hashes)
    scores = detector.score(learned(detector, [table]), table)
    for values in scores.values():
        assert set(np.argsort(-values, kind="stable")[:5]) == set(planted)
    clean = table_of([f"photo {i} of something" for i in range(300)])
    for values in detector.score(learned(detector, [clean]), clean).values():
        np.testing.assert_array_equal(values, np.float32(np.log(2)))


def test_unseen_values_have_no_occurrence() -> None:
    detector = CaptionDuplicates(3)
    state = learned(detector, [table_of(["a", "b", "c"])])
    assert detector.score(state, table_of(["zebra"], [77]))["caption_duplicates"].tolist() == [0.0]
    empty = learned(detector, [table_of([])])
    assert detector.score(empty, table_of(["zebra"]))["image_duplicates"].tolist() == [0.0]
