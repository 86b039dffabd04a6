import numpy as np
import pytest

from clipsan.stages.detectors import neighbours
from clipsan.stages.detectors.neighbours import nearest


def brute_force(points: np.ndarray, k: int, excluded: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Every distance in float64, a full sort; ties by row."""
    exact = points.astype(np.float64)
    distance = np.sqrt(((exact[:, None] - exact[None]) ** 2).sum(-1))
    np.fill_diagonal(distance, np.inf)
    if excluded is not None:
        distance[excluded[:, 0], excluded[:, 1]] = np.inf
    index = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return index, np.take_along_axis(distance, index, axis=1)


def unit(points: np.ndarray) -> np.ndarray:
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def drawn(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 5, 59])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_matches_brute_force_for_any_vectors(k: int, shift: float) -> None:
    points = drawn(60, 7) * np.float32(3) + np.float32(shift)
    found = nearest(points, k)
    index, distance = brute_force(points, k)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-12)


def test_matches_brute_force_over_several_tiles_of_unit_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "TILE_ROWS", 37)
    monkeypatch.setattr(neighbours, "PAIRS_AT_ONCE", 64)
    points = unit(drawn(300, 16) + 2)
    found = nearest(points, 9)
    index, distance = brute_force(points, 9)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-12)


def test_distances_of_a_float16_cache_are_exact_and_those_of_a_part_are_those_of_all() -> None:
    points = unit(drawn(500, 96) + 1).astype(np.float16).astype(np.float32)
    points[400:] = (points[:100] + 2.0**-12 * np.sign(drawn(100, 96, seed=3))).astype(np.float16)
    index, distance = brute_force(points, 20)
    found = nearest(points, 20)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_array_equal(found.distance, distance)
    some = np.array([3, 77, 401, 499])
    own = np.array([[3, 403], [4, 5], [499, 99]])
    index, distance = brute_force(points, 20, own)
    part = nearest(points, 20, own, queries=some)
    np.testing.assert_array_equal(part.index, index[some])
    np.testing.assert_array_equal(part.distance, distance[some])


def test_a_wide_row_is_bounded_by_its_groups_whatever_is_left_over() -> None:
    points = unit(drawn(1100, 8))
    excluded = np.stack([np.zeros(1050, np.int64), np.arange(1, 1051)], axis=1)
    for k in (1, 33, 49):
        index, distance = brute_force(points, k, excluded)
        found = nearest(points, k, excluded)
        np.testing.assert_array_equal(found.index, index)
        np.testing.assert_allclose(found.distance, distance, rtol=1e-11)


def test_near_duplicates_keep_their_distances_and_order() -> None:
    rng = np.random.default_rng(1)
    centre = unit(rng.standard_normal((1, 64)))
    points = np.concatenate([unit(drawn(100, 64)), centre + (1e-5 * rng.standard_normal((40, 64))).astype(np.float32)])
    index, distance = brute_force(points, 10)
    found = nearest(points, 10)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-12)
    # What the test guards against: at these distances 2 - 2 cos in float32 is mostly noise.
    cosine = np.sqrt(np.maximum(2 - 2 * np.einsum("ij,ikj->ik", points[100:], points[index[100:]]), 0))
    assert np.abs(cosine / distance[100:] - 1).max() > 0.5


def test_no_point_is_its_own_neighbour_even_among_duplicates() -> None:
    points = np.repeat(unit(drawn(5, 4)), 6, axis=0)
    found = nearest(points, 5)
    assert (found.index != np.arange(30)[:, None]).all()
    assert (found.distance == 0).all()


def test_ties_come_in_the_order_of_rows() -> None:
    grid = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), -1).reshape(-1, 2).astype(np.float32)
    for k in (3, 4, 6, 20):
        np.testing.assert_array_equal(nearest(grid, k).index, brute_force(grid, k)[0])


def test_excluded_pairs_are_left_out_and_rows_are_those_of_the_full_array() -> None:
    images, captions = unit(drawn(40, 8)), unit(drawn(40, 8, seed=1))
    captions[:20] = images[:20]  # an own caption would be the first neighbour
    points = np.concatenate([images, captions])
    own = np.stack([np.arange(40), np.arange(40) + 40], axis=1)
    found = nearest(points, 6, own)
    index, distance = brute_force(points, 6, own)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-12)
    assert not (found.index[:40] == own[:, 1:]).any()
    assert (found.index[40:60, 0] == np.arange(20)).all(), "the exclusion runs one way"


@pytest.mark.parametrize(("k", "message"), [(0, "positive"), (10, "k = 10"), (11, "k = 11")])
def test_impossible_k_is_refused(k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest(drawn(10, 3), k)


def test_a_point_with_everything_excluded_is_refused() -> None:
    with pytest.raises(ValueError, match="k = 2"):
        nearest(drawn(4, 3), 2, np.array([[0, 1], [0, 2]]))


def test_vectors_that_are_not_finite_are_refused() -> None:
    points = drawn(10, 3)
    points[4, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        nearest(points, 2)
