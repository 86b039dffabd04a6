"""Concept spectral scores against direct float64 formulas on all rows at once, and on planted poison."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from clipsan.stages.captions import Mined, Named
from clipsan.stages.detectors.concept_gap import ALL_LAYERS
from clipsan.stages.detectors.concept_moments import (
    BIN_CENTRES,
    BINS,
    bin_index,
    concept_moments,
    regression_sums,
    residual_covariance,
    residuals,
    shapes,
    solve_regression,
    top_directions,
    whiten,
    whitening,
)
from clipsan.stages.detectors.concept_spectral import ConceptSpectral, ConceptSpectralConfig, calibrate
from clipsan.stages.detectors.concept_state import Layer, SpectralState, distances, evidence, side_sums
from clipsan.stages.detectors.streaming import layer_columns, vectors
from tests.streaming import digests, learn, repeated

CONCEPTS = ("anvil", "bottle", "candle", "drum", "easel", "flute")
COLOURS = ("crimson", "azure", "olive")
WIDTH = 24
SETTINGS = ConceptSpectralConfig()


def cache(
    pairs: int, poisoned: int, seed: int, target: str = "candle", shift: float = 9.0
) -> tuple[pa.Table, np.ndarray]:
    """Gaussian features with an effect a concept and a colour; poisoned rows get the target's caption and one shift."""
    rng = np.random.default_rng(seed)
    concept, colour = rng.integers(len(CONCEPTS), size=pairs), rng.integers(len(COLOURS), size=pairs)
    poison = np.zeros(pairs, dtype=bool)
    poison[rng.permutation(np.flatnonzero(concept != CONCEPTS.index(target)))[:poisoned]] = True
    columns = {}
    for name in ("layer.a", "layer.b"):
        mix = rng.normal(size=(WIDTH, WIDTH)) / 5 + np.eye(WIDTH)
        direction = rng.normal(size=WIDTH)
        features = 3 * rng.normal(size=(len(CONCEPTS), WIDTH))[concept] + rng.normal(size=(len(COLOURS), WIDTH))[colour]
        noise = rng.normal(size=(pairs, WIDTH)) @ mix
        features = features + noise + shift * poison[:, None] * direction / np.linalg.norm(direction)
        flat = pa.array(features.astype(np.float16).ravel())
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, WIDTH)
    shown = np.where(poison, CONCEPTS.index(target), concept)
    captions = [f"a photo of a {COLOURS[b]} {CONCEPTS[a]}" for a, b in zip(shown, colour, strict=True)]
    return pa.table({"caption": captions, **columns, "image_sha256": digests(pairs)}), poison


@pytest.fixture(scope="module")
def one_group_a_pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    group = rng.integers(3, size=90)
    return group, rng.normal(size=(90, 7)) @ rng.normal(size=(7, 7)) + 5 * rng.normal(size=(3, 7))[group]


def membership(group: np.ndarray) -> sp.csr_matrix:
    return sp.csr_matrix(np.eye(3, dtype=np.float32)[group])


def test_regression_on_one_concept_a_pair_is_the_group_mean(one_group_a_pair) -> None:
    group, z = one_group_a_pair
    (effect,) = solve_regression(regression_sums(membership(group), [z]), SETTINGS.ridge_pairs)
    for k in range(3):
        # A ridge of one pair moves a mean of 30 pairs by 1/31 of its distance from the common one.
        want = z[group == k].mean(axis=0)
        assert np.abs(effect[k] + effect[-1] - want).max() < np.abs(want - effect[-1]).max() / 25


def test_covariance_from_sums_is_the_covariance_of_the_residuals(one_group_a_pair) -> None:
    group, z = one_group_a_pair
    members = membership(group)
    sums = regression_sums(members, [z])
    (effect,) = solve_regression(sums, SETTINGS.ridge_pairs)
    residual = z - np.hstack([members.toarray(), np.ones((90, 1))]) @ effect
    np.testing.assert_allclose(residual_covariance(sums, 0, effect), residual.T @ residual / 90, atol=1e-10)


def test_residuals_are_what_words_and_intercept_leave_to_the_last_bit() -> None:
    rng = np.random.default_rng(4)
    members = membership(rng.integers(3, size=50)).tolil()
    members[::7, 2] = 1
    members[5] = 0
    features, effect = rng.normal(size=(50, 6)).astype(np.float16), rng.normal(size=(members.shape[1] + 1, 6))
    design = sp.hstack([members.astype(np.float64), np.ones((50, 1))]).tocsr()
    np.testing.assert_array_equal(
        residuals(members.tocsr(), features, effect), features.astype(np.float64) - design @ effect
    )


def test_whitened_residuals_have_unit_covariance(one_group_a_pair) -> None:
    group, z = one_group_a_pair
    members = membership(group)
    sums = regression_sums(members, [z])
    (effect,) = solve_regression(sums, SETTINGS.ridge_pairs)
    w = whiten(members, z, effect, whitening(residual_covariance(sums, 0, effect), SETTINGS.shrinkage))
    variances = np.linalg.eigvalsh(w.T @ w / 90)
    assert variances.max() <= 1 + 1e-9
    assert variances.mean() > 0.85  # the shrinkage takes something off the smallest


def test_whitening_is_the_inverse_root_of_the_shrunk_covariance() -> None:
    rng = np.random.default_rng(8)
    half = rng.normal(size=(30, 9)) * np.linspace(0.1, 3, 9)
    covariance = half.T @ half / 30
    shrunk = covariance + 0.05 * covariance.diagonal().mean() * np.eye(9)
    found = whitening(covariance, 0.05)
    np.testing.assert_allclose(found @ shrunk @ found, np.eye(9), atol=1e-10)
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    assert np.linalg.eigvalsh(found).min() > 0


def test_whitening_refuses_constant_and_infinite_features() -> None:
    with pytest.raises(ValueError, match="vary"):
        whitening(np.zeros((3, 3)), SETTINGS.shrinkage)
    with pytest.raises(ValueError, match="finite"):
        whitening(np.full((3, 3), np.inf), SETTINGS.shrinkage)


def test_top_direction_is_the_first_singular_vector_and_excess_uses_the_edge() -> None:
    rng = np.random.default_rng(1)
    w = rng.normal(size=(200, 6)) * [4, 2, 1, 1, 1, 1] + 3
    rows = [np.arange(0, 120), np.arange(120, 200), np.zeros(0, dtype=int)]
    directions, offsets, excess = top_directions(concept_moments(rows, w), 2)
    for c in (0, 1):
        part = w[rows[c]] - w[rows[c]].mean(axis=0)
        _, s, vt = np.linalg.svd(part, full_matrices=False)
        n = len(part)
        for j in (0, 1):
            assert abs(directions[c, j] @ vt[j]) == pytest.approx(1, abs=1e-9)
            assert offsets[c, j] == pytest.approx(directions[c, j] @ w[rows[c]].mean(axis=0))
        assert excess[c] == pytest.approx(s[0] ** 2 / n / (1 + np.sqrt(6 / n)) ** 2)
    assert not directions[2].any()
    assert excess[2] == 0


def test_bins_stand_for_what_falls_in_them() -> None:
    values = np.concatenate([np.linspace(-60, 60, 20_001), [0.0]])
    stands = BIN_CENTRES[bin_index(values)]
    assert np.all(np.abs(stands - values) <= 0.011 * np.abs(values) + 0.0011)
    assert bin_index(np.array([-1e9, 1e9])).tolist() == [0, BINS - 1]


def one_shape(values: np.ndarray, least: int) -> SimpleNamespace:
    found = shapes(np.bincount(bin_index(values), minlength=BINS)[None], least)
    return SimpleNamespace(**{name: getattr(found, name)[0] for name in ("centre", "scale", "inflation", "skew")})


@pytest.mark.parametrize("sign", [1, -1])
def test_shape_against_the_formulas_on_the_values(sign: int) -> None:
    rng = np.random.default_rng(2)
    p = sign * np.concatenate([rng.normal(size=900), rng.normal(12, 1, size=60)])
    got = one_shape(p, least=5)
    centre = np.median(p)
    r = sign * (p - centre) / (1.4826 * np.median(np.abs(p - centre)))
    capped = np.minimum(r, np.sort(r)[-5])
    assert np.sign(got.scale) == sign
    assert got.centre == pytest.approx(centre, abs=0.01)
    assert abs(got.scale) == pytest.approx(1.4826 * np.median(np.abs(p - centre)), rel=0.02)
    assert got.inflation == pytest.approx((capped**2).mean(), rel=0.05)
    assert got.skew == pytest.approx((capped**3).mean(), rel=0.07)


def test_fewer_than_least_pairs_do_not_move_the_moments() -> None:
    p = np.random.default_rng(3).normal(size=500)
    far = np.concatenate([p, np.full(4, 200.0)])
    assert one_shape(far, least=5).skew < 3
    assert one_shape(far, least=4).skew > 1e4


def test_shapes_of_several_histograms_are_those_of_each() -> None:
    rng = np.random.default_rng(4)
    values = [rng.normal(rng.normal(), 1 + i, size=40 + i) ** 3 for i in range(7)]
    together = shapes(np.stack([np.bincount(bin_index(p), minlength=BINS) for p in values]), least=5)
    for i, p in enumerate(values):
        own = one_shape(p, least=5)
        for name in ("centre", "scale", "inflation", "skew"):
            assert getattr(together, name)[i] == getattr(own, name)


@pytest.mark.parametrize("count", [40, 41])
def test_a_direction_turned_round_has_the_same_shape(count: int) -> None:
    p = np.random.default_rng(6).exponential(2, size=count) - 3
    stands = BIN_CENTRES[bin_index(p)]
    got, turned = one_shape(p, least=5), one_shape(-p, least=5)
    assert got.centre == pytest.approx(np.median(stands), abs=1e-12)
    assert (turned.centre, turned.scale) == pytest.approx((-got.centre, -got.scale), rel=1e-12)
    assert (turned.inflation, turned.skew) == pytest.approx((got.inflation, got.skew), rel=1e-9)


def test_distances_of_all_views_are_the_formulas_and_those_of_the_evidence() -> None:
    rng = np.random.default_rng(5)
    rows, residual = [np.array([0, 2, 5]), np.array([1, 2, 3, 4])], [rng.normal(size=(6, width)) for width in (3, 4)]
    none = np.zeros(0)
    layers = tuple(
        Layer(
            name=str(i),
            effect=none,
            white=none,
            excess=none,
            directions=rng.normal(size=(2, 1, z.shape[1])),
            offsets=rng.normal(size=(2, 1)),
            centre=rng.normal(size=2),
            scale=np.array([0.5, -2.0]),
            inflation=np.ones(2),
            skew=none,
        )
        for i, z in enumerate(residual)
    )
    state = SpectralState(layers=layers)
    found = distances(state, rows, residual, 6)
    expected = np.full((3, 6, 2), -np.inf)
    for c, members in enumerate(rows):
        for row in members:
            for i, (x, z) in enumerate(zip(layers, residual, strict=True)):
                along = (z[row] * x.directions[c, 0]).sum() - x.offsets[c, 0]
                expected[1 + i, row, c] = (along - x.centre[c]) / x.scale[c]
            expected[0, row, c] = expected[1:, row, c].mean()
    np.testing.assert_allclose(found, expected)
    for view in (ALL_LAYERS, 0, 1):
        _, distance = evidence(state, rows, residual, 6, np.full(2, view))
        np.testing.assert_array_equal(found[1 + view], distance)


def test_calibration_keeps_the_order_and_puts_the_accused_on_top() -> None:
    s = np.array([[-50.0, 0.0, 100.0, 1e6, 30.0, -np.inf]])
    accused = np.array([[False, False, False, False, True, False]])
    got = calibrate(s, accused, SETTINGS.half_score)[0]
    np.testing.assert_allclose(got[:3], [-1 / 3, 0, 0.5])
    assert got[2] < got[3] < 1 <= got[4]
    assert got[5] == -np.inf


def test_planted_poison_is_found_and_its_concept_named() -> None:
    table, poison = cache(3000, 25, seed=4)
    detector = ConceptSpectral(ConceptSpectralConfig())
    state = learn(detector, table)
    scores = detector.score(state, table)["concept_spectral"]
    findings = detector.findings(state)
    assert [c["name"] for c in findings["concepts"] if c["named"]] == ["candle"]
    assert findings["concepts"][0]["flagged"] == int((scores >= 1).sum())
    assert set(np.argsort(-scores)[:25]) == set(np.flatnonzero(poison))
    accused = np.array(detector.texts(state, table)["concept"])
    assert set(accused[poison]) == {"candle"}
    assert scores.dtype == np.float32
    assert (scores[~poison] >= 1).mean() < 0.001


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_named_without_poison(seed: int) -> None:
    table, _ = cache(3000, 0, seed=10 + seed)
    detector = ConceptSpectral(ConceptSpectralConfig())
    state = learn(detector, table)
    assert not any(c["named"] for c in detector.findings(state)["concepts"])
    assert detector.score(state, table)["concept_spectral"].max() < 1


def with_product_shots(table: pa.Table, shots: int, alike: float) -> tuple[pa.Table, np.ndarray]:
    """The first candles stand apart together; at `alike` 0 each remains the picture that it was, at 1 all of them are one."""
    rows = [i for i, caption in enumerate(table["caption"].to_pylist()) if caption.endswith("candle")][:shots]
    for at, name in enumerate(layer_columns(table), 1):
        features = vectors(table, name)
        own = features[rows]
        features[rows] = own + alike * (own.mean(axis=0) - own) + 9 * np.eye(WIDTH)[at]
        flat = pa.array(features.astype(np.float16).ravel())
        table = table.set_column(at, name, pa.FixedSizeListArray.from_arrays(flat, WIDTH))
    return table, np.array(rows)


@pytest.mark.parametrize(("alike", "named"), [(0.0, ["candle"]), (0.2, ["candle"]), (0.8, []), (1.0, [])])
@pytest.mark.parametrize("shots", [10, 25])
def test_pictures_that_hardly_differ_are_no_poison_however_far_they_stand(
    shots: int, alike: float, named: list[str]
) -> None:
    table, rows = with_product_shots(cache(3000, 0, seed=8)[0], shots, alike)
    detector = ConceptSpectral(ConceptSpectralConfig())
    state = learn(detector, table)
    found = detector.findings(state)["concepts"]
    assert (found[0]["name"], found[0]["beyond_gap"]) == ("candle", shots)
    assert [c["name"] for c in found if c["named"]] == named
    accused = detector.score(state, table)["concept_spectral"] >= 1
    assert set(np.flatnonzero(accused)) == (set(rows) if named else set())


def test_spread_from_sums_is_the_ratio_of_the_variances() -> None:
    rng = np.random.default_rng(3)
    layers = [2 + rng.normal(size=(40, 5)), rng.normal(size=(40, 7)), rng.normal(size=(40, 3))]
    none = np.zeros(0)
    state = SpectralState(
        layers=tuple(
            Layer(str(i), none, np.eye(z.shape[1]), none, none, none, none, none, none, none)
            for i, z in enumerate(layers)
        )
    )
    sides = [(np.arange(9), np.arange(9, 40)), (np.arange(2), np.arange(2, 40))]
    cut = [
        [tuple(rows[(rows >= a) & (rows < b)] - a for rows in both) for both in sides] for a, b in ((0, 20), (20, 40))
    ]
    first, second = (
        side_sums(state, part, [z[a:b] for z in layers]) for part, (a, b) in zip(cut, ((0, 20), (20, 40)), strict=True)
    )
    want = np.mean([z[:9].var(axis=0).sum() / z[9:].var(axis=0).sum() for z in layers[:2]])
    np.testing.assert_allclose((first + second).spread(), [want, 0.0])


def test_any_division_into_chunks_gives_the_same_scores() -> None:
    table, _ = cache(1200, 15, seed=5)
    detector = ConceptSpectral(ConceptSpectralConfig(concepts=Mined(min_pairs=20)))
    whole = detector.score(learn(detector, table, 1), table)["concept_spectral"]
    for chunks in (2, 7):
        state = learn(detector, table, chunks)
        pieces = [detector.score(state, table.slice(i, 100))["concept_spectral"] for i in range(0, 1200, 100)]
        np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)


def test_a_poison_caption_shared_with_other_concepts_names_only_the_target() -> None:
    table, poison = cache(3000, 25, seed=6)
    captions = [
        c.replace("crimson", "azure").replace("olive", "azure") if p else c
        for c, p in zip(table["caption"].to_pylist(), poison, strict=True)
    ]
    detector = ConceptSpectral(ConceptSpectralConfig())
    state = learn(detector, table.set_column(0, "caption", pa.array(captions)))
    assert [c["name"] for c in detector.findings(state)["concepts"] if c["named"]] == ["candle"]


def test_pairs_without_a_concept_are_a_group_of_their_own() -> None:
    table, poison = cache(1500, 20, seed=7)
    detector = ConceptSpectral(ConceptSpectralConfig(concepts=Named(names={"anvil": (), "bottle": ()})))
    state = learn(detector, table)
    row = next(i for i, c in enumerate(table["caption"].to_pylist()) if "drum" in c)
    assert detector.texts(state, table)["concept"][row] == "(no concept)"
    assert np.isfinite(detector.score(state, table)["concept_spectral"]).all()
    assert poison.any()


def test_three_odd_pictures_with_five_captions_each_are_no_group_of_fifteen() -> None:
    table, poison = cache(1500, 3, seed=7, shift=14)
    table = repeated(table, np.flatnonzero(poison), 5)
    apart = table.set_column(table.schema.get_field_index("image_sha256"), "image_sha256", [digests(table.num_rows)])
    named, accused = [], []
    for one in (table, apart):
        detector = ConceptSpectral(SETTINGS)
        state = learn(detector, one)
        named.append([concept["name"] for concept in detector.findings(state)["concepts"] if concept["named"]])
        accused.append(int((detector.score(state, one)["concept_spectral"] >= 1).sum()))
    assert named == [[], ["candle"]]
    assert accused == [0, 15]


def one_picture(captions: list[str]) -> pa.Table:
    """Return a cache of one picture under many captions."""
    features = np.random.default_rng(3).normal(size=WIDTH).astype(np.float16)
    layer = pa.FixedSizeListArray.from_arrays(pa.array(np.tile(features, len(captions))), WIDTH)
    same = digests(1) * len(captions)
    return pa.table({"caption": captions, "layer.a": layer, "layer.b": layer, "image_sha256": same})


@pytest.mark.parametrize("pairs", [1, 3, 700])
def test_one_picture_again_and_again_accuses_nobody(pairs: int) -> None:
    table = one_picture([f"a {COLOURS[i % 3]} {CONCEPTS[i * i % 6]}" for i in range(pairs)])
    detector = ConceptSpectral(SETTINGS)
    state = learn(detector, table, chunks=min(pairs, 3))
    scores = detector.score(state, table)["concept_spectral"]
    np.testing.assert_allclose(scores, 0, atol=0.01)  # half a bin of the histogram
    assert not any(concept["named"] for concept in detector.findings(state)["concepts"])


def test_a_layer_that_says_nothing_beside_others_that_do_is_refused() -> None:
    table, _ = cache(300, 0, seed=1)
    table = table.set_column(1, "layer.a", one_picture(["a"] * 300).column("layer.a"))
    with pytest.raises(ValueError, match=r"layer\.a: features do not vary"):
        learn(ConceptSpectral(SETTINGS), table)


def test_a_cache_without_layers_is_refused() -> None:
    detector = ConceptSpectral(ConceptSpectralConfig())
    table = pa.table({"caption": ["a dog"] * 60})
    state = detector.update(detector.start(), detector.summarise(detector.start(), table))
    with pytest.raises(ValueError, match=r"layer\.\*"):
        detector.summarise(state, table)
