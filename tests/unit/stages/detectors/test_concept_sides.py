"""Two sides of every concept, learned from a cache in pieces: planted triggers of every share, and natural sub-modes."""

import functools
import pickle

import numpy as np
import pyarrow as pa
import pytest

from clipsan.stages.captions import Mined, Named, normalise
from clipsan.stages.detectors import concept_division, concept_draw, concept_sides, neighbourhoods
from clipsan.stages.detectors.concept_sides import ConceptSides, ConceptSidesConfig, group_sums, orthonormal
from clipsan.stages.detectors.concept_state import nonnull
from clipsan.stages.detectors.streaming import vectors
from clipsan.stages.evaluation.detection import average_precision
from tests.streaming import digests, learn, repeated

WIDTH = 24
WORDS = [f"{a}{b}" for a in "bcdfgklm" for b in ("anvil", "ottle", "andle", "rumble", "easel")]
TARGET = WORDS[7]
SETTINGS = ConceptSidesConfig(concepts=Mined(min_pairs=16), rest=1024)
WORDLESS = ConceptSidesConfig(concepts=Mined(min_pairs=16), rest=1024)


def cache(genuine: int, poisoned: int, seed: int = 0, shots: int = 0, each: int = 50) -> tuple[pa.Table, np.ndarray]:
    """Pairs of 40 concepts; the target has so many genuine and poisoned pairs, and so many near-identical product shots."""
    rng = np.random.default_rng(seed)
    concept = np.repeat(np.arange(len(WORDS)), each)
    concept = concept[(concept != WORDS.index(TARGET)) | (np.cumsum(concept == WORDS.index(TARGET)) <= genuine)]
    n = len(concept)
    poison = np.zeros(n, dtype=bool)
    poison[rng.permutation(np.flatnonzero(concept != WORDS.index(TARGET)))[:poisoned]] = True
    shot = np.flatnonzero(concept == WORDS.index(TARGET))[:shots]
    columns = {}
    for name in ("layer.a", "layer.b"):
        means = 1.5 * rng.normal(size=(len(WORDS), WIDTH)) * (np.arange(WIDTH) < 8)
        direction = rng.normal(size=WIDTH)
        features = means[concept] + rng.normal(size=(n, WIDTH))
        features[shot] = (
            features[shot[:1]] + 4 * direction / np.linalg.norm(direction) + 0.05 * features[shot] if shots else 0
        )
        features += 9 * poison[:, None] * direction / np.linalg.norm(direction)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(features.astype(np.float16).ravel()), WIDTH)
    shown = np.where(poison, WORDS.index(TARGET), concept)
    text = rng.normal(size=(len(WORDS), WIDTH))[shown] + 0.2 * rng.normal(size=(n, WIDTH))
    columns["text"] = pa.FixedSizeListArray.from_arrays(pa.array(text.astype(np.float16).ravel()), WIDTH)
    order = rng.permutation(n)
    table = pa.table(
        {
            "uid": [f"u{i}" for i in range(n)],
            "caption": [f"a photo of a {WORDS[c]}" for c in shown],
            "image_sha256": digests(n),
            **columns,
        }
    )
    return table.take(pa.array(order)), poison[order]


@pytest.mark.parametrize(("genuine", "poisoned"), [(50, 8), (50, 9), (40, 40), (20, 60)])
def test_target_is_named_and_its_poison_accused_whatever_the_share(genuine: int, poisoned: int) -> None:
    table, poison = cache(genuine, poisoned)
    detector = ConceptSides(SETTINGS)
    state = learn(detector, table)
    scores = detector.score(state, table)["concept_sides"]
    first, *others = detector.splits(state)
    assert first.concept == TARGET
    assert first.named
    assert not any(split.named for split in others)
    accused = scores >= 1
    assert (accused & poison).sum() >= 0.95 * poisoned
    assert (accused & ~poison).sum() <= 1
    assert scores[poison].min() > np.quantile(scores[~poison], 0.99)
    uids = np.array(table.column("uid").to_pylist())
    assert set(first.poison.uids) == set(uids[accused])
    assert first.poison.pairs + first.genuine.pairs == table.column("caption").to_pylist().count(
        f"a photo of a {TARGET}"
    )


def test_nothing_is_named_on_clean_data() -> None:
    for seed in range(3):
        table, _ = cache(50, 0, seed)
        detector = ConceptSides(SETTINGS)
        state = learn(detector, table)
        assert not any(split.named for split in detector.splits(state))
        assert detector.score(state, table)["concept_sides"].max() < 1


def of_various_sizes(seed: int) -> pa.Table:
    """Clean pairs of concepts of 4 to 40 pictures."""
    table, _ = cache(50, 0, seed)
    said = np.array(table.column("caption").to_pylist())
    wanted = np.random.default_rng(seed).integers(4, 41, len(WORDS))
    own = [np.flatnonzero(said == f"a photo of a {word}")[:size] for word, size in zip(WORDS, wanted, strict=True)]
    return table.take(pa.array(np.sort(np.concatenate(own))))


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_named_where_every_picture_has_five_captions(seed: int) -> None:
    table = of_various_sizes(seed)
    table = repeated(table, np.arange(table.num_rows), 5)
    detector = ConceptSides(SETTINGS)
    state = learn(detector, table)
    assert state.divided > 20
    assert max(one.sides.ratio for one in state.found) < 10
    assert not any(one.named for one in state.found)


@pytest.mark.parametrize(("genuine", "poisoned"), [(50, 12), (20, 60)])
def test_poison_is_named_where_every_other_picture_has_five_captions(genuine: int, poisoned: int) -> None:
    table, poison = cache(genuine, poisoned)
    table = repeated(table, np.flatnonzero(~poison), 5)
    detector = ConceptSides(SETTINGS)
    state = learn(detector, table)
    assert [split.concept for split in detector.splits(state) if split.named] == [TARGET]
    accused = detector.score(state, table)["concept_sides"] >= 1
    known = set(cache(genuine, poisoned)[0].filter(pa.array(poison)).column("image_sha256").to_pylist())
    right = np.isin(table.column("image_sha256").to_pylist(), list(known))
    assert (accused & right).sum() >= 0.9 * poisoned
    assert (accused & ~right).sum() <= 5


def test_near_identical_product_shots_are_a_side_but_no_poison() -> None:
    table, _ = cache(50, 0, shots=10)
    detector = ConceptSides(SETTINGS)
    state = learn(detector, table)
    first = detector.splits(state)[0]
    assert first.concept == TARGET
    assert first.poison.pairs == 10
    assert first.diversity < 0
    assert first.spread < SETTINGS.least_spread
    assert not first.named


def test_pictures_that_vary_more_than_the_data_do_are_a_side_but_no_poison() -> None:
    table, poison = cache(40, 40)
    columns = {}
    for name in ("layer.a", "layer.b"):
        features = vectors(table, name)
        centre = features[poison].mean(axis=0)
        features[poison] = centre + (features[poison] - centre) * np.where(np.arange(WIDTH) < 8, 2.5, 1.0)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(features.astype(np.float16).ravel()), WIDTH)
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    detector = ConceptSides(SETTINGS)
    state = learn(detector, table)
    first = detector.splits(state)[0]
    assert first.concept == TARGET
    assert first.diversity > 2
    assert not first.named
    scores = detector.score(state, table)["concept_sides"]
    assert scores.max() < 1
    assert scores[poison].min() > scores[~poison].max()


def test_score_of_a_concept_that_is_not_named_is_its_evidence_times_the_belief() -> None:
    table, _ = cache(50, 0, shots=10)
    detector = ConceptSides(SETTINGS)
    state = learn(detector, table)
    one = state.found[0]
    clean = one.chance * one.sides.share  # of the pairs, each with one concept
    scores = detector.score(state, table)["concept_sides"]
    want = min(np.log(1 / clean) / np.log(2 * table.num_rows), 1)
    assert scores.max() == pytest.approx(want, rel=0.02)


def test_score_is_the_largest_over_the_concepts_of_a_pair_which_share_the_evidence() -> None:
    table, _ = cache(40, 12)
    colours = ("red", "blue", "green", "black", "white")
    captions = [f"{said} in {colours[i % 5]}" for i, said in enumerate(table.column("caption").to_pylist())]
    table = table.set_column(table.schema.get_field_index("caption"), "caption", [captions])
    detector = ConceptSides(SETTINGS)
    state = learn(detector, table)
    assert state.vocabulary is not None
    assert state.count is not None
    members = state.vocabulary.members(captions).toarray() > 0
    concepts_of_a_pair = members.sum() / len(captions)
    assert concepts_of_a_pair > 1.9
    whitened = detector._whitened(state, table)
    expected = np.zeros(len(captions))
    for one in state.found:
        clean = one.chance * one.sides.share * concepts_of_a_pair
        weight = min(np.log(1 / clean) / np.log(2 * len(captions)), 1) if clean < 1 else 0
        for row in np.flatnonzero(members[:, one.concept]):
            position = whitened[row] @ one.sides.direction - one.sides.offset
            belief = one.sides.belief(np.array([position]))[0]
            expected[row] = max(
                expected[row], min(weight * belief, 1 - 2**-20) + (one.named and position >= one.sides.cut)
            )
    np.testing.assert_allclose(detector.score(state, table)["concept_sides"], expected, atol=1e-5)
    assert 0 < (expected >= 1).sum() < 20


def test_layers_are_whitened_by_the_covariance_within_the_concepts() -> None:
    table, _ = cache(50, 0)
    state = learn(ConceptSides(SETTINGS), table)
    concept = np.unique(table.column("caption").to_numpy(zero_copy_only=False), return_inverse=True)[1]
    for name, white in zip(("layer.a", "layer.b"), state.whites, strict=True):
        features = vectors(table, name).astype(np.float64)
        residual = features - np.stack([features[concept == c].mean(axis=0) for c in range(len(WORDS))])[concept]
        within = residual.T @ residual / (len(features) - len(WORDS))
        shrunk = within + SETTINGS.shrinkage * np.trace(within) / WIDTH * np.eye(WIDTH)
        np.testing.assert_allclose(WIDTH * white.T @ shrunk @ white, np.eye(WIDTH), atol=1e-6)


def test_result_does_not_depend_on_how_the_cache_is_cut() -> None:
    table, _ = cache(40, 30)
    detector = ConceptSides(SETTINGS)
    whole, cut = learn(detector, table, 1), learn(detector, table, 5)
    one, other = (detector.score(state, table)["concept_sides"] for state in (whole, cut))
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert [s.poison.uids for s in detector.splits(whole)] == [s.poison.uids for s in detector.splits(cut)]


def test_named_concepts_and_few_dimensions_do_as_well() -> None:
    table, poison = cache(40, 40)
    settings = ConceptSidesConfig(
        concepts=Named(names=dict.fromkeys(WORDS, ())), rest=1024, memory_mib=2 * 2000 * 2 * 16 / 2**20
    )
    detector = ConceptSides(settings)
    state = learn(detector, table)
    assert detector.findings(state)["dimensions"] < 2 * WIDTH
    scores = detector.score(state, table)["concept_sides"]
    assert scores[poison].min() > np.quantile(scores[~poison], 0.95)


def test_group_sums_are_those_of_each_pairs_rarest_concept() -> None:
    table, _ = cache(40, 0)
    detector = ConceptSides(SETTINGS)
    summary = detector.summarise(detector.start(), table)
    state = detector.update(detector.start(), summary)
    assert state.vocabulary is not None
    members = state.vocabulary.members(table.column("caption").to_pylist())
    layers = [vectors(table, "layer.a").astype(np.float64), vectors(table, "layer.b").astype(np.float64)]
    whole = group_sums(members, layers)
    halves = group_sums(members[:700], [z[:700] for z in layers]) + group_sums(members[700:], [z[700:] for z in layers])
    rarest = np.array([row.indices.max() if row.nnz else members.shape[1] for row in members])
    for group, size, total in zip(whole.groups, whole.sizes, whole.sums, strict=True):
        assert size == (rarest == group).sum()
        np.testing.assert_allclose(total, np.hstack(layers)[rarest == group].sum(axis=0), rtol=1e-9)
    np.testing.assert_allclose(whole.sums, halves.sums, rtol=1e-9)
    np.testing.assert_array_equal(whole.count, halves.count)
    np.testing.assert_allclose(whole.second[1], halves.second[1], rtol=1e-9)


def test_what_rounding_leaves_of_features_that_are_all_the_same_is_no_spread() -> None:
    table, _ = cache(40, 0)
    detector = ConceptSides(SETTINGS)
    state = detector.update(detector.start(), detector.summarise(detector.start(), table))
    members = nonnull(state.vocabulary).members(table.column("caption").to_pylist())
    sums = group_sums(members, [np.full((table.num_rows, WIDTH), 0.1), vectors(table, "layer.b")])
    sums.second[0] += 1e-13 * np.eye(WIDTH)
    alike, other = detector.update(state, sums).whites
    assert np.abs(alike).max() <= 1
    assert np.isfinite(other).all()


@pytest.mark.parametrize(
    "captions", [["照片", "一只狗在草地上"], ["", "..."], ["un perro", "ein Hund", "собака", "كلب"]]
)
def test_captions_of_any_language_pass(captions: list[str]) -> None:
    rng = np.random.default_rng(0)
    n = 60 * len(captions)
    column = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=n * WIDTH).astype(np.float16)), WIDTH)
    facts = {"uid": [str(i) for i in range(n)], "caption": captions * 60, "image_sha256": digests(n)}
    table = pa.table({**facts, "text": column, "layer.a": column})
    detector = ConceptSides(SETTINGS)
    state = learn(detector, table)
    scores = detector.score(state, table)["concept_sides"]
    assert np.isfinite(scores).all()
    assert scores.max() < 1


def test_projection_keeps_all_or_is_orthonormal() -> None:
    np.testing.assert_array_equal(orthonormal(5, 5), np.eye(5))
    narrow = orthonormal(30, 7)
    np.testing.assert_allclose(narrow.T @ narrow, np.eye(7), atol=1e-12)


def test_a_trigger_that_one_of_many_layers_shows_is_named() -> None:
    table, poison = cache(40, 40)
    rng = np.random.default_rng(5)
    for name in ("layer.c", "layer.d", "layer.e"):
        noise = rng.normal(size=table.num_rows * 4 * WIDTH).astype(np.float16)
        table = table.append_column(name, pa.FixedSizeListArray.from_arrays(pa.array(noise), 4 * WIDTH))
    clean, _ = cache(40, 40, seed=1)
    table = table.set_column(table.schema.get_field_index("layer.b"), "layer.b", clean.column("layer.a"))
    detector = ConceptSides(SETTINGS)
    state = learn(detector, table)
    assert [split.concept for split in detector.splits(state) if split.named] == [TARGET]
    accused = detector.score(state, table)["concept_sides"] >= 1
    assert (accused == poison).mean() > 0.999


def test_pictures_that_a_trigger_has_made_alike_in_content_are_poison_still() -> None:
    table, poison = cache(40, 40)
    columns = {}
    for name in ("layer.a", "layer.b"):
        features = vectors(table, name)
        centre = features[poison].mean(axis=0)
        features[poison] = centre + (features[poison] - centre) * (np.arange(WIDTH) >= 8)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(features.astype(np.float16).ravel()), WIDTH)
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    detector = ConceptSides(SETTINGS)
    first = detector.splits(learn(detector, table))[0]
    assert first.concept == TARGET
    assert first.diversity < 0
    assert first.named


@pytest.mark.parametrize(
    "name", ["school bus", "ice-cream", "Schnürsenkel", "autobús escolar", "mice", "雪豹", "снежный барс"]
)
def test_a_target_may_be_of_several_words_in_the_plural_or_in_another_language(name: str) -> None:
    table, poison = cache(40, 40)
    captions = [caption.replace(TARGET, name) for caption in table.column("caption").to_pylist()]
    table = table.set_column(table.schema.get_field_index("caption"), "caption", [captions])
    detector = ConceptSides(SETTINGS)
    state = learn(detector, table)
    named = [split.concept for split in detector.splits(state) if split.named]
    assert len(named) == 1
    assert named[0] in name.casefold()
    accused = detector.score(state, table)["concept_sides"] >= 1
    assert (accused & poison).sum() >= 38
    assert (accused & ~poison).sum() <= 1


@pytest.mark.parametrize(("room", "sample"), [(512.0, 1024), (0.105, 512), (0.06, 256), (0.001, 256)])
def test_fewer_pairs_are_looked_at_where_memory_is_short(room: float, sample: int) -> None:
    table, _ = cache(40, 0, each=600)
    detector = ConceptSides(
        ConceptSidesConfig(concepts=Named(names={TARGET: (), WORDS[0]: (), WORDS[1]: ()}), rest=1024, memory_mib=room)
    )
    state = learn(detector, table, 1)
    assert detector.findings(state)["sample"] == sample
    assert (detector.findings(state)["dimensions"] == 2 * WIDTH) == (room > 0.01)


def unworded(table: pa.Table, script: str) -> pa.Table:
    """The same pairs, each with a caption of its own that has no word in common with any other."""
    digits = [format(i * 7919 % 65_521, "04x") for i in range(table.num_rows)]
    captions = {
        "letters": [f"q{code}x" for code in digits],
        "chinese": ["".join(chr(0x4E00 + 97 * int(d, 16)) for d in code) for code in digits],
        "signs": ["!" * (i % 90) + "?" * (i // 90) + "." for i in range(table.num_rows)],
    }
    return table.set_column(table.schema.get_field_index("caption"), "caption", [captions[script]])


@pytest.mark.parametrize("script", ["letters", "chinese", "signs"])
@pytest.mark.parametrize(("genuine", "poisoned"), [(60, 20), (40, 40), (20, 60)])
def test_target_is_named_where_no_two_captions_share_a_word(script: str, genuine: int, poisoned: int) -> None:
    table, poison = cache(genuine, poisoned, each=max(genuine, 50))
    table = unworded(table, script)
    detector = ConceptSides(WORDLESS)
    state = learn(detector, table)
    assert state.vocabulary is not None
    assert not state.vocabulary.names
    (first,) = [split for split in detector.splits(state) if split.named]
    captions = table.column("caption").to_pylist()
    assert first.concept in {normalise(caption) for caption in captions}
    scores = detector.score(state, table)["concept_sides"]
    assert average_precision(scores, poison) >= 0.95
    accused = scores >= 1
    assert (accused & poison).sum() >= 0.95 * poisoned
    assert (accused & ~poison).sum() <= 1
    known = detector.vocabulary(state)
    members = known.members(captions).toarray()
    target = members[:, known.names.index(first.concept)] > 0
    assert first.poison.pairs + first.genuine.pairs == target.sum()
    assert target[poison].all()
    others = np.delete(members, known.names.index(first.concept), axis=1)
    assert (others.sum(axis=0) == 1).all()  # each by its most typical caption


def test_nothing_is_named_on_clean_data_where_no_two_captions_share_a_word() -> None:
    for seed in range(6):
        table, _ = cache(50, 0, seed)
        table = unworded(table, "letters")
        detector = ConceptSides(WORDLESS)
        state = learn(detector, table)
        assert detector.findings(state)["neighbourhoods"] == round(table.num_rows / WORDLESS.neighbourhood)
        assert not any(split.named for split in detector.splits(state))
        assert detector.score(state, table)["concept_sides"].max() < 1


def test_neighbourhoods_do_not_depend_on_how_the_cache_is_cut() -> None:
    table, _ = cache(40, 30)
    table = unworded(table, "letters")
    detector = ConceptSides(WORDLESS)
    states = [learn(detector, table, chunks) for chunks in (1, 2, 7)]
    for state in states[1:]:
        assert state.neighbourhoods.names == states[0].neighbourhoods.names
        np.testing.assert_array_equal(state.neighbourhoods.centres, states[0].neighbourhoods.centres)
        one, other = (detector.score(s, table)["concept_sides"] for s in (states[0], state))
        np.testing.assert_allclose(one, other, atol=1e-5)
        assert [s.poison.uids for s in detector.splits(state)] == [s.poison.uids for s in detector.splits(states[0])]
        assert detector.vocabulary(state) == detector.vocabulary(states[0])


def test_pairs_with_a_word_are_of_no_neighbourhood() -> None:
    table, _ = cache(40, 40)
    captions = table.column("caption").to_pylist()
    bare = unworded(table, "letters").column("caption").to_pylist()
    mixed = [own if i % 2 else word for i, (own, word) in enumerate(zip(bare, captions, strict=True))]
    table = table.set_column(table.schema.get_field_index("caption"), "caption", [mixed])
    detector = ConceptSides(WORDLESS)
    state = learn(detector, table)
    assert state.vocabulary is not None
    words = state.vocabulary.members(mixed)
    members = state.neighbourhoods.members(words, vectors(table, "text"))
    assert set(np.diff(words.indptr).tolist()) == {0, 1}
    assert set(np.diff(members.indptr).tolist()) == {1}
    named = [split.concept for split in detector.splits(state) if split.named]
    assert TARGET in named
    assert len(named) == 2  # the word, and the captions that mean it


def test_there_are_no_neighbourhoods_where_words_tell_or_the_user_has_named_the_concepts() -> None:
    table, _ = cache(40, 40)
    state = learn(ConceptSides(SETTINGS), table)
    assert not state.neighbourhoods.names
    detector = ConceptSides(ConceptSidesConfig(concepts=Named(names={TARGET: (), WORDS[0]: ()}), rest=1024))
    assert not learn(detector, table).neighbourhoods.names


def test_what_is_kept_of_captions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbourhoods, "SAMPLE", 400)
    monkeypatch.setattr(concept_sides, "MOST_CAPTIONS", 20)
    table, poison = cache(40, 40)
    table = unworded(table, "letters")
    detector = ConceptSides(WORDLESS)
    start = detector.start()
    parts = [detector.summarise(start, table.slice(a, 500)) for a in range(0, table.num_rows, 500)]
    merged = parts[0]
    for part in parts[1:]:
        merged = detector.merge(merged, part)
        assert len(merged[4].captions) == len(merged[4].text) == 400
    states = [learn(detector, table, chunks) for chunks in (1, 5)]
    for state in states:
        assert len(state.neighbourhoods.names) == 31
        assert state.captions == states[0].captions
        assert len(state.captions) == 20
        assert average_precision(detector.score(state, table)["concept_sides"], poison) >= 0.95


def test_shared_out_or_not_the_state_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concept_draw, "SHARE_PAIRS", 100)
    monkeypatch.setattr(concept_division, "AT_ONCE", 2)
    monkeypatch.setattr(concept_draw, "AT_ONCE", 2)
    table, _ = cache(40, 40)
    detector = ConceptSides(SETTINGS)
    parts = [table.slice(start, 150) for start in range(0, table.num_rows, 150)]
    state, shared_out = detector.start(), 0
    for _ in range(detector.rounds):
        summary = functools.reduce(detector.merge, [detector.summarise(state, part) for part in parts])
        shares = detector.shares(state, summary)
        alone = detector.update(state, summary)
        if shares is not None:
            tables = list(shares.tables)
            common = pickle.loads(pickle.dumps(shares.common))
            worked_out = [pickle.loads(pickle.dumps(detector.work_out(common, share))) for share in tables]
            state = detector.update_with(state, summary, worked_out)
            assert sum(share.num_rows for share in tables) == summary.members.nnz
            assert alone.divided == state.divided
            for one, other in zip(alone.found, state.found, strict=True):
                assert (one.concept, one.chance, one.named) == (other.concept, other.chance, other.named)
                np.testing.assert_array_equal(one.sides.direction, other.sides.direction)
            shared_out += len(tables)
        else:
            state = alone
    assert shared_out > 1
    assert any(split.named for split in detector.splits(state))
