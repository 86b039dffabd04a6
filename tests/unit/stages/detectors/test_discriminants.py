"""Fisher's discriminants and principal axes against full decompositions."""

import numpy as np
import pytest

from clipsan.stages.detectors.discriminants import RIDGE, Scatter, solve

WIDTH = 40


@pytest.mark.parametrize("pairs", [30, 90])
def test_discriminant_is_fishers_with_a_ridge(pairs: int) -> None:
    rng = np.random.default_rng(0)
    inside = rng.normal(size=(pairs, WIDTH)) * np.linspace(0.5, 3, WIDTH) + rng.normal(size=WIDTH)
    divisions = rng.random((4, pairs)) < 0.4
    inside[divisions[0]] += 2.0
    scatter = Scatter(inside)
    found, along = scatter.discriminants(divisions)
    for upper, direction, own in zip(divisions, found, along, strict=True):
        around = inside - np.where(upper[:, None], inside[upper].mean(axis=0), inside[~upper].mean(axis=0))
        within = around.T @ around / len(around)
        gap = inside[upper].mean(axis=0) - inside[~upper].mean(axis=0)
        expected = np.linalg.solve(within + RIDGE * np.trace(within) / WIDTH * np.eye(WIDTH), gap)
        np.testing.assert_allclose(direction, expected, rtol=1e-8, atol=1e-9 * np.abs(expected).max())
        np.testing.assert_allclose(own, (inside - scatter.middle) @ expected, atol=1e-8)


@pytest.mark.parametrize("pairs", [30, 90])
def test_axes_are_the_principal_ones(pairs: int) -> None:
    inside = np.random.default_rng(1).normal(size=(pairs, WIDTH)) * np.linspace(0.5, 3, WIDTH)
    left, lengths, _ = np.linalg.svd(inside - inside.mean(axis=0), full_matrices=False)
    found = Scatter(inside).axes(3)
    cosines = np.abs((found * left.T[:3]).sum(axis=1)) / np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(cosines, 1, atol=1e-9)
    assert len(Scatter(inside[:, :2]).axes(3)) == 2
    assert lengths[0] > lengths[3]


def test_pairs_that_are_the_same_within_each_side_have_a_direction() -> None:
    inside = np.repeat(np.array([[0.0, 1.0, 2.0], [3.0, 1.0, 0.0]], np.float32), 20, axis=0)
    direction, along = Scatter(inside).discriminants(np.arange(40)[None] < 20)
    assert np.isfinite(direction).all()
    assert along[0, :20].min() > along[0, 20:].max()


@pytest.mark.parametrize("ridge", [3e-3, 3.0])
def test_solutions_for_several_ridges_at_once(ridge: float) -> None:
    rng = np.random.default_rng(2)
    half = rng.normal(size=(50, 50))
    matrix, right = half @ half.T / 50, rng.normal(size=(3, 50))
    ridges = ridge * np.array([1.0, 2.0, 5.0])
    found = solve(matrix, ridges, right)
    for r, b, x in zip(ridges, right, found, strict=True):
        np.testing.assert_allclose(x, np.linalg.solve(matrix + r * np.eye(50), b), rtol=1e-6, atol=1e-6)
    assert not solve(matrix, ridges, np.zeros((3, 50))).any()
