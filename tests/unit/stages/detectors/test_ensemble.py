"""The combiner: exact ranks, whoever speaks is heard, nobody is accused on clean data."""

import numpy as np
import pyarrow as pa
import pytest

from clipsan.stages.captions import name_vocabulary
from clipsan.stages.detectors import DetectorsConfig, build_suite
from clipsan.stages.detectors.ensemble import (
    Ensemble,
    EnsembleConfig,
    EnsembleState,
    bernoulli_divergence,
    evidence,
    merge_sketches,
    sketch,
    sortable,
)
from clipsan.stages.evaluation.detection import average_precision

NAMES = [f"thing{letter}" for letter in "abcdefghijklmnopqrst"]
PAIRS = 8000


def scores(poisoned: int, speaker: str | None, seed: int = 0) -> tuple[pa.Table, np.ndarray]:
    """Columns at chance, but for `speaker`, which puts the poisoned pairs of one concept first."""
    rng = np.random.default_rng(seed)
    concept = rng.integers(len(NAMES), size=PAIRS)
    poison = np.zeros(PAIRS, dtype=bool)
    poison[np.flatnonzero(concept == 3)[:poisoned]] = True
    columns = {name: rng.random(PAIRS) for name in ("slof", "dao", "lid", "k_distance", "isolation_forest")}
    columns |= {"clip_score": -rng.normal(0.3, 0.05, PAIRS), "caption_duplicates": rng.integers(5, size=PAIRS)}
    columns["concept_spectral"] = rng.uniform(-0.5, 0.6, PAIRS)
    if speaker == "concept_spectral":
        columns[speaker][poison] = rng.uniform(1.6, 1.9, poisoned)
    elif speaker is not None:
        columns[speaker] = columns[speaker] * 0.99
        columns[speaker][poison] = rng.uniform(0.991, 1.0, poisoned)
    table = {name: np.asarray(v, np.float32) for name, v in columns.items()}
    return pa.table({"caption": [f"a {NAMES[c]}" for c in concept], **table}), poison


def combine(table: pa.Table, chunk: int = 3000) -> tuple[Ensemble, EnsembleState, np.ndarray]:
    known = build_suite(DetectorsConfig(), pairs=1, trusted=None).columns
    columns = {name: known[name] for name in table.column_names if name != "caption"}
    ensemble = Ensemble(EnsembleConfig(), columns, name_vocabulary(dict.fromkeys(NAMES, ())))
    state = ensemble.start()
    for _ in range(ensemble.rounds):
        summary = None
        for i in range(0, table.num_rows, chunk):
            part = ensemble.summarise(state, table.slice(i, chunk))
            summary = part if summary is None else ensemble.merge(summary, part)
        state = ensemble.update(state, summary)
    return ensemble, state, ensemble.score(state, table)["ensemble"]


def test_codes_keep_the_order_of_floats() -> None:
    values = np.sort(
        np.concatenate([np.random.default_rng(0).normal(size=500) * 10.0 ** np.arange(-250, 250).clip(-5, 5), [0.0]])
    )
    assert (np.diff(sortable(values)) >= 0).all()
    assert sortable(np.array([-0.0]))[0] == sortable(np.array([0.0]))[0]


def test_survival_is_the_share_above_with_ties_half() -> None:
    values = np.array([1, 1, 2, 3, 3, 3, 8], dtype=np.float32)
    whole = sketch(values)
    parts = merge_sketches(sketch(values[4:]), sketch(values[:4]))
    want = [((values > v).sum() + (values == v).sum() / 2) / 7 for v in values]
    np.testing.assert_allclose(whole.survival(values), want)
    np.testing.assert_allclose(parts.survival(values), want)
    assert sketch(np.zeros(9, np.float32)).survival(np.zeros(1, np.float32)) == pytest.approx(0.5)


def test_evidence_is_one_for_the_highest_and_zero_for_the_lowest() -> None:
    np.testing.assert_allclose(evidence(np.array([1 / 200, 1.0, 1 / np.sqrt(200)]), 100), [1, 0, 0.5])


def test_divergence_by_hand() -> None:
    got = bernoulli_divergence(np.array([0.5, 1.0, 0.1]), np.array([0.1, 0.05, 0.2]))
    np.testing.assert_allclose(got, [0.5 * np.log(5) + 0.5 * np.log(0.5 / 0.9), np.log(20), 0])


def test_spectral_accusation_is_not_diluted_by_seven_columns_at_chance() -> None:
    table, poison = scores(30, "concept_spectral")
    _, _, got = combine(table)
    assert set(np.flatnonzero(got >= 1)) == set(np.flatnonzero(poison))


@pytest.mark.parametrize("speaker", ["slof", "k_distance"])
def test_a_density_column_whose_top_is_one_concept_speaks(speaker: str) -> None:
    table, poison = scores(40, speaker)
    ensemble, state, got = combine(table)
    voices = ensemble.findings(state)["voices"]
    assert list(voices) == [speaker]
    assert voices[speaker]["concept"] == NAMES[3]
    assert (got[poison] >= 1).mean() >= 0.95
    assert (got[~poison] >= 1).mean() < 0.001


def test_of_the_tops_that_speak_the_widest_counts_and_in_it_only_pairs_of_the_concept() -> None:
    table, poison = scores(76, "slof")
    top = np.argsort(-table["slof"].to_numpy())[:80]
    strange = top[~poison[top]]
    concept = np.array([caption.endswith(NAMES[3]) for caption in table["caption"].to_pylist()])
    assert 0 < (~concept[strange]).sum() <= 4
    ensemble, state, found = combine(table)
    assert ensemble.findings(state)["voices"]["slof"]["top_pct"] == 1.0
    assert (found[poison] >= 1).all()
    assert not (found[strange[~concept[strange]]] >= 1).any()


@pytest.mark.parametrize("seed", range(3))
def test_nobody_is_accused_on_clean_data(seed: int) -> None:
    table, _ = scores(0, None, seed)
    ensemble, state, got = combine(table)
    assert got.max() < 1
    assert not ensemble.findings(state)["voices"]


def test_poison_that_is_high_in_two_silent_columns_comes_first_and_is_not_accused() -> None:
    """Twelve pairs in the top 2 % of the spectral scores and of the k-distances, behind many clean pairs in each."""
    table, _ = scores(0, None)
    poison = np.zeros(PAIRS, dtype=bool)
    poison[np.random.default_rng(9).choice(PAIRS, 12, replace=False)] = True

    def with_column(name: str, values: np.ndarray) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, pa.array(values, pa.float32()))

    for name, low, high in (("concept_spectral", 0.58, 0.6), ("k_distance", 0.98, 1.0)):
        values = table[name].to_numpy().copy()
        values[poison] = np.random.default_rng(len(name)).uniform(low, high, 12)
        table = with_column(name, values)
    _, _, both = combine(table)
    assert both.max() < 1
    assert (np.argsort(-both)[:40][:, None] == np.flatnonzero(poison)).any(axis=0).mean() >= 0.75
    _, _, alone = combine(with_column("k_distance", np.random.default_rng(1).random(PAIRS)))
    assert (np.argsort(-alone)[:40][:, None] == np.flatnonzero(poison)).any(axis=0).mean() <= 0.5


def test_the_joint_score_by_hand() -> None:
    """Four pairs: survival (1/8, 3/8, 5/8, 7/8) by rank, evidence log(1 / survival) / log 8, spectral at one half."""
    table = pa.table(
        {
            "caption": ["a", "b", "c", "d"],
            "concept_spectral": pa.array([0.4, 0.3, 0.2, 0.1], pa.float32()),
            "k_distance": pa.array([0.3, 0.4, 0.2, 0.1], pa.float32()),
        }
    )
    first, second, third, fourth = np.log(8 / np.array([1, 3, 5, 7])) / np.log(8)
    want = [(second + first / 2) / 1.5, (first + second / 2) / 1.5, third, fourth]
    np.testing.assert_allclose(combine(table)[2], want, rtol=1e-6)


def test_a_column_that_accuses_is_followed_and_then_none_needs_support() -> None:
    """By hand as before: the first pair is accused, so that ranks of the accusing column count in full, of the other by half."""
    table = pa.table(
        {
            "caption": ["a", "b", "c", "d"],
            "concept_spectral": pa.array([1.5, 0.3, 0.2, 0.1], pa.float32()),
            "k_distance": pa.array([0.1, 0.2, 0.3, 0.4], pa.float32()),
        }
    )
    first, second, third, _ = np.log(8 / np.array([1, 3, 5, 7])) / np.log(8)
    np.testing.assert_allclose(combine(table)[2], [2, second, max(third, second / 2), first / 2], rtol=2e-6)


def test_a_top_of_caption_duplicates_never_speaks() -> None:
    table, _ = scores(0, None)
    duplicates = [9.0 if "thingd" in c else 0.0 for c in table["caption"].to_pylist()]
    at = table.column_names.index("caption_duplicates")
    _, _, got = combine(table.set_column(at, "caption_duplicates", pa.array(duplicates, pa.float32())))
    assert got.max() < 1


def test_chunks_do_not_matter() -> None:
    table, _ = scores(40, "slof")
    np.testing.assert_array_equal(combine(table, 500)[2], combine(table, 8000)[2])


def test_a_score_that_is_no_number_is_refused() -> None:
    table, _ = scores(0, None)
    at = table.column_names.index("dao")
    broken = table["dao"].to_numpy().copy()
    broken[5] = np.nan
    with pytest.raises(ValueError, match="dao"):
        combine(table.set_column(at, "dao", pa.array(broken)))


def test_column_of_calibrated_evidence_is_heard_as_it_is_and_accuses_from_one() -> None:
    table, _ = scores(0, None)
    rng = np.random.default_rng(5)
    sides = np.where(rng.random(PAIRS) < 0.02, 0.97 * rng.random(PAIRS), 0.0).astype(np.float32)
    sides[:40] = rng.uniform(1.9, 1.99, 40)
    sides[0] = 1.0  # as sure as nothing, and named
    with_sides = table.append_column("concept_sides", pa.array(sides, pa.float32()))
    _, _, found = combine(with_sides)
    assert ((found >= 1) == (sides >= 1)).all()
    np.testing.assert_allclose(found[1:40], sides[1:40], atol=1e-6)  # louder than half of any rank
    assert (found >= sides - 1e-6).all()


def test_silent_columns_seldom_overtake_the_one_that_speaks() -> None:
    """The bound of the docstring: of K silent columns at most K N s^(1/w) pairs come before survival s."""
    table, poison = scores(60, "dao")
    _, state, found = combine(table)
    assert "dao" in (state.voices or {})
    unaccused = found - (found >= 1)
    own = evidence((state.sketches or {})["dao"].survival(table.column("dao").to_numpy()), state.pairs)
    s = 60 / PAIRS
    before = (unaccused > own[poison].min()) & ~poison
    silent = len(table.column_names) - 2
    assert before.sum() <= silent * PAIRS * s**2 + PAIRS * s


def random_columns(seed: int) -> tuple[pa.Table, np.ndarray]:
    """All columns of the suite, some of few values and with heavy tails, three that know the poison of one concept more or less."""
    table, poison = scores(int(10 + 60 * (seed % 2)), None, seed)
    rng = np.random.default_rng([seed, 1])
    columns = build_suite(DetectorsConfig(), pairs=1, trusted=None).columns
    made: dict[str, np.ndarray] = {}
    for name in columns:
        kind = rng.integers(3)
        own = (
            rng.random(PAIRS) if kind == 0 else rng.standard_t(1.5, PAIRS) if kind == 1 else rng.integers(9, size=PAIRS)
        )
        made[name] = own.astype(np.float64)
    made["concept_spectral"] = np.minimum(made["concept_spectral"], 0.9)
    made["concept_sides"] = np.where(rng.random(PAIRS) < 0.02, 0.5 * rng.random(PAIRS), 0.0)
    for name in rng.choice([n for n in columns if not n.startswith("concept")], 3, replace=False):
        made[name][poison] = np.quantile(made[name], 1 - 0.02 * rng.random(int(poison.sum())))
    return pa.table({"caption": table["caption"], **{n: pa.array(v, pa.float32()) for n, v in made.items()}}), poison


@pytest.mark.parametrize("seed", range(6))
def test_no_pair_falls_further_behind_its_place_in_any_column_than_stated(seed: int) -> None:
    """The bound of the docstring, for the first hundred pairs of every column, whether it speaks or not."""
    table, _ = random_columns(seed)
    settings, columns = EnsembleConfig(), build_suite(DetectorsConfig(), pairs=1, trusted=None).columns
    _, state, found = combine(table)
    values = {name: table.column(name).to_numpy() for name in columns}
    survivals = {name: (state.sketches or {})[name].survival(v) for name, v in values.items()}
    quiet = {"image": settings.silent_weight, "caption": settings.caption_weight}
    loud = state.followed | {name for name, accused in (state.accusing or {}).items() if accused}
    weight = {name: 1.0 if name in loud else quiet[column.about] for name, column in columns.items()}
    heard = [weight[name] for name, column in columns.items() if not column.calibrated]
    heard += [1.0, 1.0] * (not loud)  # k_distance, supported
    unaccused = np.sort(found[found < 1])
    for name in (name for name, column in columns.items() if not column.calibrated):
        for row in [row for row in np.argsort(survivals[name], kind="stable")[:100] if found[row] < 1]:
            s, w = survivals[name][row], weight[name]
            own = w * evidence(np.array([s]), PAIRS)[0]
            bound = sum(2 * PAIRS * s ** (w / v) for v in heard) + (values["concept_sides"] >= own).sum()
            overtaken = len(unaccused) - np.searchsorted(unaccused, found[row], side="right")
            assert overtaken <= bound
    sides = values["concept_sides"]
    for row in np.argsort(-sides)[:100]:
        bound = sum((2 * PAIRS) ** (1 - sides[row] / v) for v in heard) + (sides >= sides[row]).sum()
        assert len(unaccused) - np.searchsorted(unaccused, found[row], side="right") <= bound


@pytest.mark.parametrize("sure", [0.65, 0.8, 0.95])
@pytest.mark.parametrize("poisoned", [20, 90, 200])
def test_concept_that_is_nearly_named_is_seldom_overtaken(poisoned: int, sure: float) -> None:
    """m / (m + x), as the docstring has it, x being what k_distance and its support may lift: the others are silent."""
    table, poison = scores(poisoned, None)
    rng = np.random.default_rng(poisoned)
    sides = np.where(rng.random(PAIRS) < 0.01, 0.6 * rng.random(PAIRS), 0.0)
    sides[poison] = sure * rng.uniform(0.99, 1.0, poisoned)
    _, _, found = combine(table.append_column("concept_sides", pa.array(sides, pa.float32())))
    assert found.max() < 1
    lifted = 2 * (2 * PAIRS) ** (1 - 0.99 * sure)
    own = average_precision(sides, poison)
    assert own == pytest.approx(1)
    assert average_precision(found, poison) >= own * poisoned / (poisoned + lifted)


SPEAKERS = ("k_distance", "slof", "dao", "lid", "isolation_forest", "concept_spectral", "concept_sides")


@pytest.mark.parametrize("speaker", SPEAKERS)
@pytest.mark.parametrize("poisoned", [12, 25, 60, 200])
def test_average_precision_is_that_of_the_best_column_less_what_the_silent_ones_may_take(
    speaker: str, poisoned: int
) -> None:
    """K m / 2 N, as the docstring has it; the others are at chance, and concept_sides as sure as on clean data."""
    table, poison = scores(poisoned, speaker if speaker != "concept_sides" else None)
    rng = np.random.default_rng(poisoned)
    sides = np.where(rng.random(PAIRS) < 0.01, 0.5 * rng.random(PAIRS), 0.0)
    if speaker == "concept_sides":
        sides[poison] = rng.uniform(1.5, 1.6, poisoned)
    table = table.append_column("concept_sides", pa.array(sides, pa.float32()))
    _, _, found = combine(table)
    single = {name: average_precision(table.column(name).to_numpy(), poison) for name in table.column_names[1:]}
    assert max(single, key=lambda name: single[name]) == speaker
    silent = len(single) - 1
    assert average_precision(found, poison) >= single[speaker] - silent * poisoned / (2 * PAIRS)


def test_column_is_followed_before_it_accuses() -> None:
    table, poison = scores(12, "dao")
    ensemble, state, found = combine(table)
    assert state.followed == {"dao"}
    assert not ensemble.findings(state)["voices"]
    assert found.max() < 1
    assert set(np.argsort(-found)[:12]) == set(np.flatnonzero(poison))


@pytest.mark.parametrize("seed", range(3))
def test_no_column_at_chance_is_followed(seed: int) -> None:
    table, _ = scores(0, None, seed)
    assert combine(table)[1].followed == frozenset()
