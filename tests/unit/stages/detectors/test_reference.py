"""Disagreement with a second encoder: dirty labels rank first whatever their share, and a pair is no witness for itself."""

import numpy as np
import pyarrow as pa
import pytest

from clipsan.stages.captions import Mined
from clipsan.stages.detectors import DetectorsConfig, build_suite
from clipsan.stages.detectors.concept_sides import group_sums
from clipsan.stages.detectors.concept_state import nonnull
from clipsan.stages.detectors.reference import ReferenceReader, ReferenceReaderConfig
from clipsan.stages.evaluation.detection import auroc
from tests.streaming import learn

WIDTH = 16
WORDS = [f"{a}{b}" for a in "bcdf" for b in ("anvil", "ottle", "andle", "rumble", "easel")]


def cache(share: float, spread: float = 3.0, each: int = 40) -> tuple[pa.Table, np.ndarray]:
    """Pairs of 20 concepts; the first one's captions are a share of dirty labels, of pictures from everywhere else."""
    rng = np.random.default_rng(0)
    shown = np.repeat(np.arange(len(WORDS)), each)
    dirty = np.zeros(len(shown), bool)
    dirty[rng.permutation(np.flatnonzero(shown > 0))[: round(share / (1 - share) * each)]] = True
    features = spread * rng.normal(size=(len(WORDS), WIDTH))[shown] + rng.normal(size=(len(shown), WIDTH))
    said = np.where(dirty, 0, shown)
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.astype(np.float16).ravel()), WIDTH)
    return pa.table({"caption": [f"a {WORDS[c]}" for c in said], "reference": column}), dirty


READER_SETTINGS = ReferenceReaderConfig(concepts=Mined(min_pairs=16))
READER = ReferenceReader(READER_SETTINGS)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_dirty_labels_are_first_whatever_their_share(share: float) -> None:
    table, dirty = cache(share)
    scores = READER.score(learn(READER, table), table)["reference_disagreement"].astype(np.float64)
    assert auroc(scores, dirty) > 0.99
    assert (scores[dirty] > 0).mean() > 0.95
    assert (scores[~dirty] < 0).mean() > 0.9


def test_distances_leave_the_pair_itself_out() -> None:
    table, _ = cache(0.1, spread=0.5)
    state = learn(READER, table)
    row = 7
    rest = np.delete(np.arange(table.num_rows), row)
    assert state.white is not None
    assert state.vocabulary is not None
    assert state.means is not None
    features = np.array(table.column("reference").to_pylist(), np.float64) @ state.white
    captions = table.column("caption").to_pylist()
    own = [i for i in rest if captions[i] == captions[row]]
    concept = state.vocabulary.names.index(captions[row].removeprefix("a "))
    others = np.delete(((features[row] - state.means) ** 2).sum(axis=1), concept)
    odds = (((features[row] - features[own].mean(axis=0)) ** 2).sum() - others.min()) / 2
    score = READER.score(state, table)["reference_disagreement"][row]
    assert score == pytest.approx(odds / (1 + abs(odds)), abs=1e-3)


def test_result_does_not_depend_on_how_the_cache_is_cut() -> None:
    table, _ = cache(0.3)
    one, other = (READER.score(learn(READER, table, n), table)["reference_disagreement"] for n in (1, 5))
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("captions", [["", "..."], ["a lonely word that no other caption has", "b"], ["same picture"]])
def test_captions_without_a_concept_and_pictures_that_are_all_the_same_pass(captions: list[str]) -> None:
    n = 40
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(n * WIDTH, np.float16)), WIDTH)
    table = pa.table({"caption": (captions * n)[:n], "reference": column})
    scores = READER.score(learn(READER, table), table)["reference_disagreement"]
    assert np.isfinite(scores).all()
    assert (scores < 1).all()


def test_what_rounding_leaves_of_pictures_that_are_all_the_same_is_no_spread() -> None:
    table, _ = cache(0.1)
    state = READER.update(READER.start(), READER.summarise(READER.start(), table))
    alike = np.full((table.num_rows, WIDTH), 0.1)
    sums = group_sums(nonnull(state.vocabulary).members(table.column("caption").to_pylist()), [alike])
    sums.second[0] += 1e-13 * np.eye(WIDTH)
    white = READER.update(state, sums).white
    np.testing.assert_allclose(white, np.eye(WIDTH) / np.sqrt(1 + READER_SETTINGS.shrinkage), rtol=1e-9)


def test_it_is_there_only_where_the_cache_has_its_column() -> None:
    without = build_suite(DetectorsConfig(), pairs=1, trusted=None)
    with_it = build_suite(DetectorsConfig(), pairs=1, trusted=None, offered=frozenset({"reference"}))
    assert set(with_it.columns) - set(without.columns) == {"reference_disagreement"}
