import functools

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from clipsan.stages.detectors.whitening import Excess, Lorex, LorexConfig, trusted_moments

D = 12
ROWS = LorexConfig().sample_rows


def table_of(image: np.ndarray) -> pa.Table:
    flat = pa.array(image.astype(np.float16).ravel())
    return pa.table({"image": pa.FixedSizeListArray.from_arrays(flat, D)})


def natural(n: int, seed: int) -> np.ndarray:
    """Strong variance along the first axes, little along the last; a mean that is not zero."""
    rng = np.random.default_rng(seed)
    return 0.3 + rng.standard_normal((n, D)) * np.geomspace(1.0, 0.05, D)


def with_poison(n: int, poisons: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Poison moves along a direction of little variance: plain principal components miss it."""
    image, poisoned = natural(n, seed), np.arange(n) < poisons
    image[poisoned, D - 2] += 0.7
    return image, poisoned


def learned(detector: Lorex, tables: list[pa.Table]) -> Excess:
    summaries = [detector.summarise(detector.start(), table) for table in tables]
    return detector.update(detector.start(), functools.reduce(detector.merge, summaries))


def test_trusted_moments_are_those_of_all_tables() -> None:
    tables = [table_of(natural(n, seed)) for seed, n in enumerate((50, 0, 3, 70))]
    rows = np.concatenate([np.array(t.column("image").to_pylist(), np.float64).reshape(-1, D) for t in tables])
    trusted = trusted_moments(tables, sample_rows=ROWS)
    assert trusted.count == 123
    np.testing.assert_allclose(trusted.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(trusted.covariance, np.cov(rows.T, bias=True), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(trusted.sample, rows.astype(np.float32))


def test_trusted_sample_is_bounded_and_spread() -> None:
    rows = np.arange(1000)[:, None] + np.zeros(D)
    sample = trusted_moments([table_of(rows[:400]), table_of(rows[400:])], sample_rows=50, seed=2).sample[:, 0]
    assert len(sample) == 50
    assert 10 <= (sample < 400).sum() <= 30
    again = trusted_moments([table_of(rows[:400]), table_of(rows[400:])], sample_rows=50, seed=2).sample[:, 0]
    np.testing.assert_array_equal(sample, again)


def test_too_few_trusted_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"more trusted pairs \(12\)"):
        trusted_moments([table_of(natural(12, 0))], sample_rows=ROWS)


def test_scores_match_the_formula() -> None:
    settings = LorexConfig(directions=2, epsilon=0.01)
    trusted_rows, (rows, _) = natural(400, 0), with_poison(300, 20, 1)
    trusted_table, table = table_of(trusted_rows), table_of(rows)
    a, b = (np.array(t.column("image").to_pylist(), np.float64) for t in (trusted_table, table))
    values, axes = np.linalg.eigh(np.cov(a.T, bias=True))
    whiten = axes @ np.diag((values + 0.01 * values.mean()) ** -0.5) @ axes.T
    white = (b - a.mean(axis=0)) @ whiten
    _, _, right = np.linalg.svd(white - white.mean(axis=0), full_matrices=False)
    expected = np.abs(white @ right[:2].T).max(axis=1)
    threshold = np.quantile(np.abs((a - a.mean(axis=0)) @ whiten @ right[:2].T).max(axis=1), 0.995)

    detector = Lorex(settings, trusted_moments([trusted_table], sample_rows=ROWS))
    state = learned(detector, [table])
    scores = detector.score(state, table)["lorex"]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert state.threshold == pytest.approx(threshold, rel=1e-6)
    np.testing.assert_allclose(state.variances, np.linalg.svd(white - white.mean(axis=0))[1][:2] ** 2 / 300, rtol=1e-6)


def test_chunks_merge_to_the_state_of_one_chunk() -> None:
    table = table_of(with_poison(500, 10, 1)[0])
    detector = Lorex(LorexConfig(), trusted_moments([table_of(natural(400, 0))], sample_rows=ROWS))
    whole = learned(detector, [table])
    parts = learned(detector, [table.slice(0, 1), table.slice(1, 200), table.slice(201, 0), table.slice(201)])
    np.testing.assert_allclose(*(detector.score(state, table)["lorex"] for state in (whole, parts)), rtol=1e-5)
    assert whole.threshold == pytest.approx(parts.threshold)
    again = learned(detector, [table.slice(0, 1), table.slice(1, 200), table.slice(201, 0), table.slice(201)])
    np.testing.assert_array_equal(*(detector.score(state, table)["lorex"] for state in (parts, again)))


def test_finds_poison_in_a_quiet_direction_and_is_silent_without() -> None:
    detector = Lorex(LorexConfig(directions=1), trusted_moments([table_of(natural(3000, 0))], sample_rows=ROWS))
    image, poisoned = with_poison(3000, 60, 1)
    table = table_of(image)
    state = learned(detector, [table])
    scores = detector.score(state, table)["lorex"]
    assert roc_auc_score(poisoned, scores) > 0.99
    assert (scores[poisoned] > state.threshold).mean() > 0.95
    plain = np.abs((image - image.mean(axis=0)) @ np.linalg.svd(image - image.mean(axis=0))[2][0])
    assert roc_auc_score(poisoned, plain) < 0.7, "the control: without whitening the direction is hidden"

    clean = learned(detector, [table_of(natural(3000, 2))])
    assert detector.findings(state)["excess_variances"][0] > 1.5
    assert detector.findings(clean)["excess_variances"][0] < 1.3


def test_no_pairs_is_refused() -> None:
    detector = Lorex(LorexConfig(), trusted_moments([table_of(natural(100, 0))], sample_rows=ROWS))
    with pytest.raises(ValueError, match="at least one pair"):
        learned(detector, [table_of(np.empty((0, D)))])


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"directions": 0}, "directions"), ({"epsilon": 0.0}, "epsilon"), ({"trusted_quantile": 1.0}, "quantile")],
)
def test_impossible_settings_are_refused(settings: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        LorexConfig(**settings)
