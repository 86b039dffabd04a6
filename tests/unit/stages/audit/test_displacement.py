"""How far a label's text stands from its pictures: against a fit without the label, false alarms, a label that a trigger draws away."""

import numpy as np
import pytest
from scipy import stats

from clipsan.stages.audit.displacement import (
    LEAST_LABELS,
    LEAST_PICTURES,
    Clouds,
    displacements,
    p_values,
)

LABELS, WIDTH = 16, 64


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def model(seed: int, *, each: int = 40, share: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Pictures around middles, more or less alike, and texts near the middles; label 3's is drawn towards a trigger by a share."""
    rng = np.random.default_rng(seed)
    middles = unit(rng.standard_normal((LABELS, WIDTH)))
    alike = rng.uniform(0.02, 0.06, LABELS)
    pictures = unit(
        np.repeat(middles, each, axis=0) + np.repeat(alike, each)[:, None] * rng.standard_normal((LABELS * each, WIDTH))
    )
    texts = middles + 0.06 * rng.standard_normal((LABELS, WIDTH))
    trigger = unit(rng.standard_normal(WIDTH))
    texts[3] = (1 - share) * texts[3] + share * trigger
    return pictures, unit(texts)


def found(seed: int, **options) -> np.ndarray:
    pictures, texts = model(seed, **options)
    return displacements(Clouds.of(pictures, texts), texts)


def test_each_label_is_held_against_a_line_through_the_others() -> None:
    pictures, texts = model(0)
    said = (pictures @ texts.T).argmax(axis=1)
    means = np.stack([pictures[said == label].mean(axis=0) for label in range(LABELS)])
    lengths = np.linalg.norm(means, axis=1)
    far = np.arccos([mean @ text / length for mean, text, length in zip(means, texts, lengths, strict=True)])
    expected = []
    for label in range(LABELS):
        others = np.delete(np.arange(LABELS), label)
        line = stats.linregress(lengths[others], far[others])
        left = far[others] - line.intercept - line.slope * lengths[others]
        deviation = np.sqrt((left**2).sum() / (len(others) - 2))
        centre, width = lengths[others].mean(), ((lengths[others] - lengths[others].mean()) ** 2).sum()
        error = deviation * np.sqrt(1 + 1 / len(others) + (lengths[label] - centre) ** 2 / width)
        expected.append((far[label] - line.intercept - line.slope * lengths[label]) / error)
    np.testing.assert_allclose(displacements(Clouds.of(pictures, texts), texts), expected, rtol=1e-9)


def test_a_text_that_a_trigger_shares_is_displaced() -> None:
    for seed in range(5):
        p = p_values(found(seed, share=0.45))
        assert p.argmin() == 3
        assert p[3] * LABELS < 0.01


def test_labels_of_a_clean_model_are_displaced_as_often_as_is_stated() -> None:
    least = np.array([LABELS * p_values(found(seed)).min() for seed in range(400)])
    assert (least <= 0.05).mean() < 0.08
    assert (least <= 0.01).mean() < 0.02


def test_pictures_in_parts_are_the_same_pictures() -> None:
    pictures, texts = model(1)
    whole = Clouds.of(pictures, texts)
    parts = Clouds.of(pictures[:100], texts).plus(Clouds.of(pictures[100:], texts))
    assert (parts.counts == whole.counts).all()
    np.testing.assert_allclose(parts.sums, whole.sums, atol=1e-12)


def test_a_label_without_pictures_is_not_known_and_the_others_are() -> None:
    pictures, texts = model(2)
    rare = Clouds.of(pictures, texts)
    rare.counts[5] = LEAST_PICTURES - 1
    displaced = displacements(rare, texts)
    assert np.isnan(displaced[5])
    assert np.isfinite(np.delete(displaced, 5)).all()
    assert np.isnan(p_values(displaced)[5])


@pytest.mark.parametrize("labels", [1, LEAST_LABELS - 1])
def test_a_handful_of_labels_says_nothing(labels: int) -> None:
    pictures, texts = model(3)
    clouds = Clouds.of(pictures, texts[:labels])
    displaced = displacements(clouds, texts[:labels])
    assert np.isnan(displaced).all()
    assert np.isnan(p_values(displaced)).all()


def test_texts_that_all_stand_alike_make_no_outlier_of_a_rounding_error() -> None:
    clouds = Clouds(np.full(LABELS, 10), 10 * np.eye(LABELS, WIDTH))
    texts = np.eye(LABELS, WIDTH)
    texts[4, 0] += 1e-9
    assert p_values(displacements(clouds, texts)).min() > 0.4
