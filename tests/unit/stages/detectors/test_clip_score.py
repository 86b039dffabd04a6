import functools

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture

from clipsan.stages.detectors.clip_score import ClipMixture, ClipMixtureConfig, ClipScore, Mixture, fit_mixture

SETTINGS = ClipMixtureConfig()


def table_of(cosines: np.ndarray, seed: int = 0, d: int = 16) -> pa.Table:
    """Unit vectors in float16 whose pairwise cosines are about the given ones."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((len(cosines), d))
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    other = rng.standard_normal(image.shape)
    other -= (other * image).sum(1, keepdims=True) * image
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    text = cosines[:, None] * image + np.sqrt(1 - cosines[:, None] ** 2) * other

    def column(vectors: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), d)

    return pa.table({"image": column(image), "text": column(text)})


def learned(detector: ClipMixture, tables: list[pa.Table]) -> Mixture:
    summaries = [detector.summarise(detector.start(), table) for table in tables]
    return detector.update(detector.start(), functools.reduce(detector.merge, summaries))


def two_groups(low_share: float, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    low = rng.random(n) < low_share
    return np.where(low, rng.normal(0.05, 0.04, n), rng.normal(0.32, 0.06, n)), low


def test_clip_score_is_the_negated_cosine() -> None:
    cosines = np.linspace(-0.9, 0.99, 50)
    scores = ClipScore().build(0, None).score(None, table_of(cosines))["clip_score"]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, -cosines, atol=2e-3)
    assert ClipScore().build(0, None).rounds == 0
    assert ClipScore().build(0, None).findings(None) == {}


def test_clip_score_finds_mismatched_captions() -> None:
    cosines, low = two_groups(0.02)
    scores = ClipScore().build(0, None).score(None, table_of(cosines))["clip_score"]
    assert roc_auc_score(low, scores) > 0.99


@pytest.mark.parametrize("low_share", [0.02, 0.3, 0.8])
def test_mixture_agrees_with_the_fit_on_the_raw_values(low_share: float) -> None:
    cosines, low = two_groups(low_share, 20_000)
    fit = fit_mixture(np.histogram(cosines, SETTINGS.bins, (-1, 1))[0], SETTINGS)
    raw = GaussianMixture(2, means_init=[[0.05], [0.32]], tol=1e-8, max_iter=1000).fit(cosines[:, None])
    np.testing.assert_allclose(fit.means, raw.means_.ravel(), atol=2e-3)
    np.testing.assert_allclose(fit.weights, raw.weights_, atol=5e-3)
    np.testing.assert_allclose(fit.deviations, np.sqrt(raw.covariances_.ravel()), atol=2e-3)
    np.testing.assert_allclose(fit.weights[0], low.mean(), atol=0.01)
    assert fit.separation > 4


def test_probability_is_bayes_rule_between_the_means_and_never_rises() -> None:
    mixture = Mixture(np.array([0.3, 0.7]), np.array([0.1, 0.4]), np.array([0.02, 0.1]))
    x = np.linspace(0.1, 0.4, 20)
    low, high = 0.3 * norm.pdf(x, 0.1, 0.02), 0.7 * norm.pdf(x, 0.4, 0.1)
    np.testing.assert_allclose(mixture.low_probability(x), low / (low + high), rtol=1e-9)
    everywhere = mixture.low_probability(np.linspace(-1, 1, 2001))
    assert (np.diff(everywhere) <= 0).all()
    assert everywhere[0] == mixture.low_probability(np.array([0.1]))[0] > 0.8


def test_chunks_merge_to_the_state_of_one_chunk() -> None:
    table = table_of(two_groups(0.1, 900)[0])
    detector = ClipMixture()
    whole = learned(detector, [table])
    parts = learned(detector, [table.slice(0, 1), table.slice(1, 500), table.slice(501, 0), table.slice(501)])
    assert detector.findings(whole) == detector.findings(parts)
    np.testing.assert_array_equal(*(detector.score(state, table)["clip_mixture"] for state in (whole, parts)))


def test_mixture_finds_mismatched_captions_and_says_so() -> None:
    cosines, low = two_groups(0.03)
    detector, table = ClipMixture(), table_of(cosines)
    state = learned(detector, [table])
    probability = detector.score(state, table)["clip_mixture"]
    assert probability.dtype == np.float32
    assert (probability[low] > 0.5).mean() > 0.9
    assert (probability[~low] > 0.5).mean() < 0.01
    assert detector.findings(state)["separation"] > 2


def test_control_one_group_has_no_separation() -> None:
    cosines = np.random.default_rng(0).normal(0.3, 0.05, 5000)
    assert fit_mixture(np.histogram(cosines, SETTINGS.bins, (-1, 1))[0], SETTINGS).separation < 2


def test_equal_cosines_are_all_alike() -> None:
    counts = np.zeros(SETTINGS.bins, np.int64)
    counts[3000] = 7
    fit = fit_mixture(counts, SETTINGS)
    assert np.isfinite([*fit.means, *fit.deviations, *fit.weights]).all()
    probability = fit.low_probability(np.full(3, 3000.5 * 2 / SETTINGS.bins - 1))
    assert np.isfinite(probability).all()
    assert len(set(probability)) == 1


def test_no_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        fit_mixture(np.zeros(SETTINGS.bins, np.int64), SETTINGS)
