"""How far a label's text stands from its pictures: against a fit without the label, false alarms, a label that a trigger draws away."""

import numpy as np
import pytest
from scipy import stats

from clipsan.stages.audit.displacement import (
    LEAST_LABELS,
    LEAST_PICTURES,
    Clouds,
    Displaced,
    descends,
    displacements,
    nearest,
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


def clouds_of(pictures: np.ndarray, texts: np.ndarray) -> Clouds:
    return Clouds.of(pictures, nearest(pictures, texts), len(texts))


def found(seed: int, **options) -> Displaced:
    pictures, texts = model(seed, **options)
    return displacements(clouds_of(pictures, texts), texts)


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
    np.testing.assert_allclose(displacements(clouds_of(pictures, texts), texts).value, expected, rtol=1e-9)


def test_a_text_that_a_trigger_shares_is_displaced() -> None:
    for seed in range(5):
        p = found(seed, share=0.45).p
        assert p.argmin() == 3
        assert p[3] * LABELS < 0.01


def test_labels_of_a_clean_model_are_displaced_as_often_as_is_stated() -> None:
    least = np.array([LABELS * found(seed).p.min() for seed in range(400)])
    assert (least <= 0.05).mean() < 0.08
    assert (least <= 0.01).mean() < 0.02


def test_pictures_in_parts_are_the_same_pictures() -> None:
    pictures, texts = model(1)
    whole = clouds_of(pictures, texts)
    parts = clouds_of(pictures[:100], texts).plus(clouds_of(pictures[100:], texts))
    assert (parts.counts == whole.counts).all()
    np.testing.assert_allclose(parts.sums, whole.sums, atol=1e-12)


def test_a_label_without_pictures_is_not_known_and_the_others_are() -> None:
    pictures, texts = model(2)
    rare = clouds_of(pictures, texts)
    rare.counts[5] = LEAST_PICTURES - 1
    displaced = displacements(rare, texts)
    assert np.isnan(displaced.value[5])
    assert np.isfinite(np.delete(displaced.value, 5)).all()
    assert np.isnan(displaced.p[5])


@pytest.mark.parametrize("labels", [1, LEAST_LABELS - 1])
def test_a_handful_of_labels_says_nothing(labels: int) -> None:
    pictures, texts = model(3)
    clouds = clouds_of(pictures, texts[:labels])
    displaced = displacements(clouds, texts[:labels])
    assert np.isnan(displaced.value).all()
    assert np.isnan(displaced.p).all()


def test_texts_that_all_stand_alike_make_no_outlier_of_a_rounding_error() -> None:
    clouds = Clouds(np.full(LABELS, 10), 10 * np.eye(LABELS, WIDTH))
    texts = np.eye(LABELS, WIDTH)
    texts[4, 0] += 1e-9
    assert displacements(clouds, texts).p.min() > 0.4


def tuned(seed: int, *, share: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A model whose texts stand from its pictures at odds, and one tuned from it, whose text of label 3 a trigger draws away."""
    rng = np.random.default_rng(seed)
    pictures, texts = model(seed)
    texts = unit(texts + rng.uniform(0, 1, (LABELS, 1)) * unit(rng.standard_normal((LABELS, WIDTH))))
    later = texts + 0.02 * rng.standard_normal((LABELS, WIDTH))
    later[3] = (1 - share) * later[3] + share * unit(rng.standard_normal(WIDTH))
    return pictures, texts, unit(pictures + 0.02 * rng.standard_normal(pictures.shape)), unit(later)


def beside(seed: int, *, share: float = 0.0) -> tuple[Displaced, Displaced]:
    before, texts, after, later = tuned(seed, share=share)
    said = nearest(before, texts)
    clouds = Clouds.of(after, said, LABELS)
    return displacements(clouds, later), displacements(clouds, later, (Clouds.of(before, said, LABELS), texts))


def test_what_stood_apart_before_the_tuning_accuses_nobody_and_hides_nothing() -> None:
    for seed in range(5):
        alone, with_parent = beside(seed, share=0.45)
        assert with_parent.p.argmin() == 3
        assert with_parent.p[3] * LABELS < 0.01
        assert with_parent.p[3] < alone.p[3]


def test_labels_of_a_clean_model_beside_its_parent_stand_out_as_often_as_is_stated() -> None:
    least = np.array([LABELS * beside(seed)[1].p.min() for seed in range(400)])
    assert (least <= 0.05).mean() < 0.08


def test_the_plane_goes_through_the_other_labels_alone() -> None:
    before, texts, after, later = tuned(7)
    said = nearest(before, texts)

    def stand(pictures: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        means = np.stack([pictures[said == label].mean(axis=0) for label in range(LABELS)])
        lengths = np.linalg.norm(means, axis=1)
        return lengths, np.arccos((means * texts).sum(axis=1) / lengths)

    (length, angle), (length_before, angle_before) = stand(after, later), stand(before, texts)
    design = np.stack([np.ones(LABELS), length, length_before, angle_before], axis=1)
    expected = []
    for label in range(LABELS):
        others = np.delete(np.arange(LABELS), label)
        fitted, *_ = np.linalg.lstsq(design[others], angle[others], rcond=None)
        left = angle[others] - design[others] @ fitted
        error = np.sqrt(
            (left @ left / (LABELS - 5))
            * (1 + design[label] @ np.linalg.inv(design[others].T @ design[others]) @ design[label])
        )
        expected.append((angle[label] - design[label] @ fitted) / error)
    clouds, parent = Clouds.of(after, said, LABELS), (Clouds.of(before, said, LABELS), texts)
    shown = displacements(clouds, later, parent)
    np.testing.assert_allclose(shown.value, expected, rtol=1e-6)
    np.testing.assert_allclose(shown.p, stats.t.sf(expected, LABELS - 5), rtol=1e-6)


def test_a_model_of_another_training_is_no_parent() -> None:
    _, texts, _, later = tuned(3)
    assert descends(later, texts)
    assert not descends(later, np.roll(texts, 1, axis=0))
    assert not descends(later, unit(np.random.default_rng(1).standard_normal((LABELS, WIDTH))))
    assert not descends(later, texts[:, : WIDTH // 2])


def siblings(seed: int, *, share: float = 0.0, peers: int = 3) -> tuple[Displaced, Displaced]:
    """A suspect and clean models, all tuned from the same one: alone, and beside these."""
    pictures, texts, after, later = tuned(seed, share=share)
    rng = np.random.default_rng([seed, 1])
    theirs = []
    for _ in range(peers):
        their_pictures = unit(pictures + 0.02 * rng.standard_normal(pictures.shape))
        their_texts = unit(texts + 0.02 * rng.standard_normal(texts.shape))
        theirs.append((clouds_of(their_pictures, their_texts), their_texts))
    clouds = clouds_of(after, later)
    return displacements(clouds, later), displacements(clouds, later, peers=theirs)


def test_clean_models_of_the_same_parent_say_how_a_text_stood_before_the_tuning() -> None:
    for seed in range(5):
        alone, with_peers = siblings(seed, share=0.45)
        assert with_peers.p.argmin() == 3
        assert with_peers.p[3] * LABELS < 0.01
        assert with_peers.p[3] < alone.p[3]


def test_labels_of_a_clean_model_beside_others_are_displaced_as_often_as_is_stated() -> None:
    least = np.array([LABELS * siblings(seed)[1].p.min() for seed in range(300)])
    assert (least <= 0.05).mean() < 0.08


def stand(clouds: Clouds, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Length of each label's mean picture, and the angle between that and its text."""
    means = clouds.sums / clouds.counts[:, None]
    lengths = np.linalg.norm(means, axis=1)
    return lengths, np.arccos((means * texts).sum(axis=1) / lengths)


def test_beside_peers_angles_and_lengths_are_those_beyond_their_means() -> None:
    pictures, texts = model(0)
    clouds = clouds_of(pictures, texts)
    assert np.abs(displacements(clouds, texts, peers=[(clouds, texts)] * 2).value).max() < 1e-6
    their_pictures, their_texts = model(5)
    theirs = clouds_of(their_pictures, their_texts)
    lengths, angles = (own - other for own, other in zip(stand(clouds, texts), stand(theirs, their_texts), strict=True))
    found = displacements(clouds, texts, peers=[(theirs, their_texts)]).value
    for label in range(LABELS):
        others = np.delete(np.arange(LABELS), label)
        line = stats.linregress(lengths[others], angles[others])
        left = angles - line.intercept - line.slope * lengths
        width = ((lengths[others] - lengths[others].mean()) ** 2).sum()
        error = np.sqrt(
            (left[others] ** 2).sum()
            / (LABELS - 3)
            * (1 + 1 / (LABELS - 1) + (lengths[label] - lengths[others].mean()) ** 2 / width)
        )
        assert found[label] == pytest.approx(left[label] / error, rel=1e-6)
    few = Clouds(clouds.counts.copy(), clouds.sums)
    few.counts[5] = LEAST_PICTURES - 1
    assert np.isnan(displacements(clouds, texts, peers=[(clouds, texts), (few, texts)]).value[5])
