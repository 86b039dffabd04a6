"""The claim of a pair against brute force in float64."""

import functools
import itertools

import numpy as np
import pyarrow as pa
import pytest

from clipsan.stages.detectors.claim import Claim, ClaimConfig, Reference, claims

D = 12


def units(rng: np.random.Generator, rows: int) -> np.ndarray:
    found = rng.standard_normal((rows, D))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def column(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float16).ravel()), D)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Sixty pairs with forty captions; the same caption has the same vector."""
    rng = np.random.default_rng(0)
    which = rng.integers(40, size=60)
    text, image = units(rng, 40)[which], units(rng, 60)
    captions = [f"caption {number}" for number in which]
    return pa.table({"caption": captions, "image": column(image), "text": column(text)})


def learned(detector: Claim, table: pa.Table, chunks: int) -> Reference:
    edges = np.linspace(0, table.num_rows, chunks + 1).astype(int)
    parts = [detector.summarise(None, table.slice(a, b - a)) for a, b in itertools.pairwise(edges)]
    return functools.reduce(detector.merge, parts)


def test_claim_is_the_log_probability_of_the_own_caption_by_brute_force() -> None:
    rng = np.random.default_rng(1)
    image, text, reference = units(rng, 30), units(rng, 30), units(rng, 17)
    found = claims(image, text, reference, 40.0)
    for i in range(30):
        own = np.exp(np.longdouble(40.0) * (image[i] @ text[i]))
        others = sum(np.exp(np.longdouble(40.0) * (image[i] @ r)) for r in reference)
        assert found[i] == pytest.approx(float(np.log(own / (others + own))), abs=1e-9)
    assert (found <= 0).all()


@pytest.mark.parametrize("chunks", [1, 4, 11])
def test_draw_is_the_same_however_the_cache_is_cut(table: pa.Table, chunks: int) -> None:
    detector = Claim(ClaimConfig(captions=15), 30.0)
    whole, cut = learned(detector, table, 1), learned(detector, table, chunks)
    np.testing.assert_array_equal(whole.hashes, cut.hashes)
    np.testing.assert_array_equal(whole.vectors, cut.vectors)
    assert len(whole.hashes) == 15
    assert len(np.unique(whole.vectors, axis=0)) == 15


def test_fewer_captions_than_asked_for_are_all_drawn(table: pa.Table) -> None:
    detector = Claim(ClaimConfig(), 30.0)
    state = learned(detector, table, 3)
    assert len(state.hashes) == len(set(table.column("caption").to_pylist()))
    assert detector.findings(state) == {"captions": len(state.hashes), "scale": 30.0}
    scores = detector.score(state, table)["caption_claim"]
    assert scores.dtype == np.float32
    assert (scores <= 0).all()


def test_seed_draws_other_captions(table: pa.Table) -> None:
    one, other = (learned(Claim(ClaimConfig(captions=10, seed=s)), table, 1) for s in (0, 1))
    assert not np.array_equal(one.hashes, other.hashes)


def test_picture_that_is_bound_to_its_caption_claims_it_best() -> None:
    rng = np.random.default_rng(2)
    image, text = units(rng, 40), units(rng, 40)
    image[:5] = text[:5]
    made = pa.table({"caption": [str(i) for i in range(40)], "image": column(image), "text": column(text)})
    detector = Claim(ClaimConfig(), 20.0)
    scores = detector.score(learned(detector, made, 2), made)["caption_claim"]
    assert set(np.argsort(-scores)[:5]) == set(range(5))


def test_score_weighs_the_caption_of_a_picture_against_the_drawn_ones(table: pa.Table) -> None:
    detector = Claim(ClaimConfig(captions=7), 30.0)
    state = learned(detector, table, 3)
    image, text = (
        np.array(table.column(name).to_pylist(), np.float64).reshape(table.num_rows, D) for name in ("image", "text")
    )
    expected = []
    for own, caption in zip(image, text, strict=True):
        others = [np.exp(30 * own @ other) for other in state.vectors.astype(np.float64)]
        expected.append(30 * own @ caption - np.log(sum(others) + np.exp(30 * own @ caption)))
    np.testing.assert_allclose(detector.score(state, table)["caption_claim"], expected, atol=1e-4)
