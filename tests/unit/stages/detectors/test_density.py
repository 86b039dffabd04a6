import time

import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from clipsan.stages.detectors.density import DensityConfig, assign_blocks, block_ranks, score_block, score_group

NAMES = ("k_distance", "slof", "dao", "lid")


def unit(points: np.ndarray) -> np.ndarray:
    return (points / np.linalg.norm(points, axis=-1, keepdims=True)).astype(np.float32)


def drawn(n: int, d: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((n, d)))


def by_hand(points: np.ndarray, own: dict[int, set[int]], k: int, lid_k: int) -> dict[str, np.ndarray]:
    """The formulas of score_block, one point at a time, in float64; for points that are all distinct."""
    exact = points.astype(np.float64)
    count = len(exact)
    order, radii = {}, {}
    for x in range(count):
        distances = sorted(
            (np.linalg.norm(exact[x] - exact[u]), u) for u in range(count) if u != x and u not in own.get(x, ())
        )
        order[x] = distances
        radii[x] = distances[k][0]

    def dimension(x: int, size: int) -> float:
        radius = order[x][size][0]
        return -size / sum(np.log(min(r / radius + 1e-4, 1.0)) for r, _ in order[x][:size])

    near = {x: [u for _, u in order[x][:k]] for x in range(count)}
    return {
        "k_distance": np.array([radii[x] for x in range(count)]),
        "slof": np.array([np.mean([radii[x] / radii[u] for u in near[x]]) for x in range(count)]),
        "dao": np.array(
            [np.mean([dimension(u, k) * np.log(radii[x] / radii[u]) for u in near[x]]) for x in range(count)]
        ),
        "lid": np.array([dimension(x, lid_k) for x in range(count)]),
    }


@pytest.mark.parametrize("reference", ["image", "image_text"])
def test_scores_match_the_formulas(reference: str) -> None:
    image, text = drawn(40, 6, 0), drawn(40, 6, 1)
    settings = DensityConfig(k=5, lid_k=9, reference=reference)
    points = image if reference == "image" else np.concatenate([image, text])
    own = {} if reference == "image" else {x: {x + 40} for x in range(40)}
    expected = by_hand(points, own, 5, 9)
    scores = score_block(image, text, settings)
    assert set(scores) == set(NAMES)
    for name, values in scores.items():
        np.testing.assert_allclose(values, expected[name][:40], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("apart", [0.0, 3.0])
def test_scores_of_a_float16_cache_are_those_of_float64_brute_force(apart: float) -> None:
    """Also where captions are no image's neighbours and are not looked at."""
    image = unit(drawn(300, 24, 0) + apart).astype(np.float16).astype(np.float32)
    text = unit(drawn(300, 24, 1) - apart).astype(np.float16).astype(np.float32)
    settings = DensityConfig(k=8, lid_k=16)
    expected = by_hand(np.concatenate([image, text]), {x: {x + 300} for x in range(300)}, 8, 16)
    for name, values in score_block(image, text, settings).items():
        np.testing.assert_allclose(values, expected[name][:300], rtol=1e-12, atol=1e-13, err_msg=name)
        np.testing.assert_array_equal(np.argsort(values), np.argsort(expected[name][:300]), err_msg=name)


def test_equal_captions_count_once() -> None:
    """A caption that stands in many pairs gives the same scores as the same images with each caption once."""
    image, few = drawn(40, 6, 0), drawn(4, 6, 1)
    owner = np.arange(40) % 4
    own = {x: {40 + owner[x]} for x in range(40)}
    expected = by_hand(np.concatenate([image, few]), own, 5, 9)
    scores = score_block(image, few[owner], DensityConfig(k=5, lid_k=9))
    for name, values in scores.items():
        np.testing.assert_allclose(values, expected[name][:40], rtol=1e-9, err_msg=name)


def test_equal_images_score_alike_and_do_not_become_outliers() -> None:
    rng = np.random.default_rng(2)
    image = unit(rng.standard_normal((200, 8)) + 3)
    image[50:150] = image[50]
    image[7] = unit(-np.ones(8))
    scores = score_block(image, drawn(200, 8, 3), DensityConfig(k=8, lid_k=16, reference="image"))
    for name, values in scores.items():
        assert np.isfinite(values).all()
        assert len(set(values[50:150])) == 1
        if name != "lid":
            assert values.argmax() == 7
            assert (values[50] < values).mean() > 0.02


def test_near_copies_below_the_resolution_of_the_cache_stay_finite() -> None:
    rng = np.random.default_rng(4)
    image = drawn(100, 8, 5)
    image[:40] = image[0] + (1e-6 * rng.standard_normal((40, 8))).astype(np.float32)
    for values in score_block(image, drawn(100, 8, 6), DensityConfig(k=8, lid_k=16)).values():
        assert np.isfinite(values).all()


def test_equidistant_points_have_the_largest_dimension_not_a_negative_one() -> None:
    scores = score_block(
        np.eye(20, dtype=np.float32), np.eye(20, dtype=np.float32), DensityConfig(k=4, lid_k=6, reference="image")
    )
    np.testing.assert_array_equal(scores["lid"], 1000.0)
    np.testing.assert_allclose(scores["slof"], 1.0)
    np.testing.assert_allclose(scores["dao"], 0.0, atol=1e-9)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_points_say_nothing(count: int) -> None:
    scores = score_block(drawn(count, 4, 0), drawn(count, 4, 1), DensityConfig(reference="image"))
    assert {name: values.tolist() for name, values in scores.items()} == {name: [0.0] * count for name in NAMES}


def test_three_points_are_enough() -> None:
    points = drawn(3, 4, 0)
    expected = by_hand(points, {}, 1, 1)
    for name, values in score_block(points, points, DensityConfig(reference="image")).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, err_msg=name)
        assert (values != 0).any()


def test_identical_pairs_say_nothing() -> None:
    same = np.repeat(drawn(1, 4, 0), 30, axis=0)
    assert all((values == 0).all() for values in score_block(same, same, DensityConfig()).values())


def test_small_block_uses_the_k_that_it_allows() -> None:
    image, text = drawn(20, 4, 0), drawn(20, 4, 1)
    expected = score_block(image, text, DensityConfig(k=18, lid_k=18, reference="image"))
    scores = score_block(image, text, DensityConfig(k=32, lid_k=64, reference="image"))
    for name in NAMES:
        np.testing.assert_array_equal(scores[name], expected[name])


# The defect of the reference implementation, on a set that shows it: 1,024 points in 40 Gaussian
# clusters of varying scale, images only, k = 16. It lives here alone.


def clustered(seed: int, poisons: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres, scale = rng.standard_normal((40, 32)), rng.uniform(0.05, 0.5, 40)
    cluster = rng.integers(40, size=1024)
    points = centres[cluster] + scale[cluster, None] * rng.standard_normal((1024, 32))
    poisoned = np.zeros(1024, bool)
    poisoned[rng.choice(1024, poisons, replace=False)] = True
    step = rng.standard_normal((poisons, 32))
    points[poisoned] += 3.5 * scale[cluster[poisoned], None] * step / np.linalg.norm(step, axis=1, keepdims=True)
    return points.astype(np.float32), poisoned


def slof_of_the_reference(points: np.ndarray, k: int, misaligned: bool) -> np.ndarray:
    """SLOF with the shipped radii (D2); `misaligned`: and rows taken from the matrix without diagonal (D1)."""
    exact = points.astype(np.float64)
    full = cdist(exact, exact)
    count = len(full)
    without = full[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    order = np.argsort(without, axis=1, kind="stable")
    rows = order[:, :k] if misaligned else order[:, :k] + (order[:, :k] >= np.arange(count)[:, None])
    own_radius = np.sort(without, axis=1)[:, k]
    return (own_radius[:, None] / np.sort(full, axis=1)[:, k][rows]).mean(axis=1)


def test_shipped_neighbour_rows_are_off_by_one_and_ours_are_not() -> None:
    shipped, aligned, ours, ours_dao = [], [], [], []
    for seed in range(4):
        points, poisoned = clustered(seed, 30)
        scores = score_block(points, points, DensityConfig(k=16, lid_k=16, reference="image"))
        shipped.append(roc_auc_score(poisoned, slof_of_the_reference(points, 16, misaligned=True)))
        aligned.append(roc_auc_score(poisoned, slof_of_the_reference(points, 16, misaligned=False)))
        ours.append(roc_auc_score(poisoned, scores["slof"]))
        ours_dao.append(roc_auc_score(poisoned, scores["dao"]))
    assert np.mean(ours) > np.mean(shipped) + 0.04
    assert np.mean(ours_dao) > np.mean(shipped) + 0.04
    assert np.mean(ours) == pytest.approx(np.mean(aligned), abs=0.02), "the radii (D2) hardly matter"


def test_block_ranks_average_ties() -> None:
    np.testing.assert_allclose(block_ranks(np.array([3.0, 1.0, 1.0, 9.0])), [0.625, 0.25, 0.25, 0.875])
    np.testing.assert_allclose(block_ranks(np.zeros(5)), 0.5)
    assert block_ranks(np.empty(0)).shape == (0,)


def test_blocks_cover_every_row_once_and_none_is_small() -> None:
    for count in (1, 10, 99, 100, 149, 151, 1234):
        blocks = assign_blocks([f"s/{i}" for i in range(count)], 0, 0, 100)
        assert sorted(np.concatenate(blocks).tolist()) == list(range(count))
        sizes = [len(block) for block in blocks]
        assert max(sizes) - min(sizes) <= 1
        assert count < 67 or all(67 <= size <= 150 for size in sizes)
    assert assign_blocks([], 0, 0, 100) == []


def test_blocks_hang_on_uids_seed_and_permutation_not_on_order() -> None:
    uids = [f"s/{i}" for i in range(500)]
    shuffled = list(np.random.default_rng(0).permutation(uids))

    def members(names: list[str], seed: int, permutation: int) -> list[list[str]]:
        return [[names[row] for row in block] for block in assign_blocks(names, seed, permutation, 100)]

    assert members(uids, 1, 0) == members(shuffled, 1, 0)
    assert members(uids, 1, 0) != members(uids, 1, 1)
    assert members(uids, 1, 0) != members(uids, 2, 0)


def cache(image: np.ndarray, text: np.ndarray, captions: list[str]) -> pa.Table:
    width = image.shape[1]

    def column(vectors: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), width)

    uids = [f"s/{i:05d}" for i in range(len(image))]
    return pa.table({"uid": uids, "caption": captions, "image": column(image), "text": column(text)})


def test_group_finds_outliers_whatever_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((6, 16)) * 2
    image = centres[rng.integers(6, size=600)] + 0.3 * rng.standard_normal((600, 16))
    outliers = np.arange(0, 600, 60)
    image[outliers] += 1.5 * rng.standard_normal((10, 16))
    table = cache(unit(image), drawn(600, 16, 1), [f"caption {i}" for i in range(600)])
    settings = DensityConfig(k=8, lid_k=16, block_size=300)
    ranks = score_group(table, settings, 0)
    assert set(ranks) == settings.adds
    planted = np.isin(np.arange(600), outliers)
    for name in ("k_distance", "slof", "dao", "isolation_forest"):
        assert ranks[name].dtype == np.float32
        assert ranks[name].mean() == pytest.approx(0.5, abs=1e-3)
        assert roc_auc_score(planted, ranks[name]) > 0.9, name
    assert roc_auc_score(rng.permutation(planted), ranks["slof"]) < 0.8, "the control: labels at random"
    order = rng.permutation(600)
    moved = score_group(table.take(order), settings, 0)
    for name, values in ranks.items():
        np.testing.assert_array_equal(moved[name], values[order])
    assert (score_group(table, settings, 1)["slof"] != ranks["slof"]).any()


def test_last_bit_of_a_repeated_caption_does_not_matter() -> None:
    image, text = drawn(80, 8, 0), np.repeat(drawn(1, 8, 1), 80, axis=0).astype(np.float16)
    text[::3, 2] = np.nextafter(text[0, 2], np.float16(2))
    captions = ["the same words"] * 80
    settings = DensityConfig(k=4, lid_k=8)
    clean = score_group(cache(image, np.repeat(text[:1], 80, axis=0), captions), settings, 0)
    noisy = score_group(cache(image, text, captions), settings, 0)
    for name in ("k_distance", "lid", "isolation_forest"):
        np.testing.assert_array_equal(noisy[name], clean[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"k": 0}, "at least 1"), ({"block_size": 65}, "block_size"), ({"permutations": 0}, "permutations")],
)
def test_impossible_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DensityConfig(**settings)


def test_a_full_block_is_fast() -> None:
    image, text = drawn(2048, 128, 0), drawn(2048, 128, 1)
    started = time.process_time()
    score_block(image, text, DensityConfig())
    assert time.process_time() - started < 4, "about .5 s on one core; the limit leaves room for a busy machine"
