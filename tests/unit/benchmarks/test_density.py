"""The side-by-side of density scores: its two ends are the published behaviour and ours, and it reads a scan's folder."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial.distance import cdist

from clipsan.stages.detectors.density import DensityConfig, block_ranks, score_block
from tests.benchmarks import density as bench
from tests.benchmarks.density_table import admitted_side_by_side, density_finding
from tests.benchmarks.results import Row, check


def unit(points: np.ndarray) -> np.ndarray:
    return (points / np.linalg.norm(points, axis=-1, keepdims=True)).astype(np.float32)


def drawn(n: int, d: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((n, d)))


def published(image: np.ndarray, text: np.ndarray | None, k: int) -> dict[str, np.ndarray]:
    """The published procedure, step by step: the diagonal leaves the matrix, the rows that are read do not know it."""
    n = len(image)
    image = image.astype(np.float64)
    off = ~np.eye(n, dtype=bool)
    parts = [image] if text is None else [image, text.astype(np.float64)]
    d = np.concatenate([cdist(image, part)[off].reshape(n, n - 1) for part in parts], axis=1)
    idx = np.argsort(d, axis=1)[:, :k]
    radius = np.sort(d, axis=1)[:, k]
    full = np.sort(cdist(np.concatenate(parts), np.concatenate(parts)), axis=1)
    lid = -k / np.log(full[:, :k] / full[:, k : k + 1] + 1e-4).sum(axis=1)
    ratio = radius[:, None] / full[:, k][idx]
    return {"k_distance": radius, "slof": ratio.mean(axis=1), "dao": (lid[idx] * np.log(ratio)).mean(axis=1)}


@pytest.mark.parametrize("captions", [False, True])
@pytest.mark.parametrize("k", [3, 8])
def test_the_first_version_is_the_published_procedure(captions: bool, k: int) -> None:
    image, text = drawn(60, 6, 0), drawn(60, 6, 1) if captions else None
    expected = published(image, text, k)
    for name, values in bench.density(bench.all_points(image, text, 9), k, bench.PUBLISHED).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("captions", [False, True])
def test_the_last_version_is_ours_also_where_images_and_captions_repeat(captions: bool) -> None:
    image, text = drawn(60, 6, 0), drawn(8, 6, 1)[np.arange(60) % 8]
    image[50:] = image[50]
    expected = score_block(image, text, DensityConfig(k=5, reference="image_text" if captions else "image"))
    found = bench.density(bench.distinct_points(image, text if captions else None, 6), 5, bench.OURS)
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-9, err_msg=name)


def test_a_caption_that_stands_in_many_pairs_gives_the_published_code_its_largest_score() -> None:
    image, text = drawn(60, 6, 0), np.repeat(drawn(1, 6, 1), 60, axis=0)
    image[0] = text[0]
    aligned = bench.density(bench.all_points(image, text, 9), 8, bench.RADII)["slof"]
    assert aligned[0] == 1000.0
    once = bench.density(bench.distinct_points(image, text, 9), 8, bench.DISTINCT)["slof"]
    assert once.max() < 1000.0


def test_versions_differ_from_the_one_before_in_one_thing() -> None:
    switches = ("rows_aligned", "one_radius", "equal_once", "ranks")
    for before, after in zip(bench.VERSIONS, bench.VERSIONS[1:], strict=False):
        assert sum(getattr(before, name) != getattr(after, name) for name in switches) == 1


def written_scan(home: Path) -> Path:
    """A scan of 300 pairs, 12 of them poisoned and far from all others."""
    image, text = drawn(300, 8, 0) + 3, drawn(300, 8, 1)
    image[:12] -= 5 * drawn(12, 8, 2)
    uids = [f"s/{i:05d}" for i in range(300)]

    def column(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(unit(values).astype(np.float16).ravel()), 8)

    table = pa.table({"uid": uids, "caption": uids, "image": column(image), "text": column(text)})
    scan = home / "scan"
    for folder in (scan / "embeddings", home / "poison"):
        folder.mkdir(parents=True)
    pq.write_table(table.slice(0, 100), scan / "embeddings" / "part-00000.parquet")
    pq.write_table(table.slice(100), scan / "embeddings" / "part-00001.parquet")
    pq.write_table(table.select(["uid"]).slice(0, 12), home / "poison" / "manifest.parquet")
    (scan / "run.yaml").write_text("config: {manifest: null}\n", encoding="utf-8")
    (scan / "summary.json").write_text("{}", encoding="utf-8")
    return scan


def test_a_scan_gives_rows_of_every_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "KS", (8, 32))
    monkeypatch.setattr(bench, "BLOCK_SIZE", 150)
    scan = bench.Scan(written_scan(tmp_path), "drawn", "far", "none", 0)
    assert scan.missing() is None
    rows = list(bench.rows_of(scan))
    for row in rows:
        check("density", row)
    assert {row["version"] for row in rows} == {version.name for version in bench.VERSIONS}
    blocks = [row for row in rows if row["block_pairs"] == 150]
    assert {row["poisoned_per_block"] for row in blocks} == {6.0}
    assert {row["averaged"] for row in blocks} == {1, 3, 6}
    ours = [row for row in blocks if row["version"] == "ours" and row["k"] == 32]
    assert all(row["k_distance_auroc"] > 0.9 for row in ours)
    assert all(row["k_distance_auroc_sd"] is not None for row in ours if row["averaged"] < 6)


def test_k_distance_is_the_same_under_every_version_but_for_ranks() -> None:
    image, text = drawn(80, 6, 0), drawn(80, 6, 1)
    points = bench.all_points(image, text, 9), bench.distinct_points(image, text, 9)
    values = [bench.density(points[version.equal_once], 8, version)["k_distance"] for version in bench.VERSIONS]
    for other in values[1:]:
        np.testing.assert_array_equal(block_ranks(other), block_ranks(values[0]))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    assert "no finished scan" in (bench.Scan(tmp_path / "scan", "d", "a", "m", 0).missing() or "")
    scan = written_scan(tmp_path)
    (tmp_path / "poison" / "manifest.parquet").unlink()
    assert "no manifest" in (bench.Scan(scan, "d", "a", "m", 0).missing() or "")


def stored(version: str, k: int, dao: float, **fields: float | int) -> Row:
    row: Row = {"data": "photos", "attack": "patch", "rate_pct": 1.0, "model": "tiny", "seed": 0, "asr_pct": 95.0}
    row |= {"reference": "image_text", "block_pairs": 2000, "divisions": 6, "averaged": 1, "poisoned_per_block": 4.0}
    return {**row, "version": version, "k": k, "k_distance_auroc": 0.9, "slof_auroc": 0.8, "dao_auroc": dao, **fields}


def test_the_table_puts_versions_side_by_side_and_the_finding_says_where_the_correction_pays() -> None:
    aucs = {16: (0.7, 0.5, 0.6), 64: (0.8, 0.9, 0.95)}
    names = ("published", "rows aligned", "ours")
    rows = [stored(name, k, dao) for k, daos in aucs.items() for name, dao in zip(names, daos, strict=True)]
    rows += [
        stored("published", 32, 0.1, asr_pct=40.0),
        stored("published", 32, 0.1, averaged=3),
        stored("published", 32, 0.1, divisions=1),
    ]
    table = admitted_side_by_side(rows)
    assert [row["k"] for row in table] == [16, 64]
    assert [table[0][f"dao_{name}"] for name in ("published", "rows", "ours")] == [0.7, 0.5, 0.6]
    text = density_finding(rows)
    assert (
        "at least 8 times the poisoned pairs of a block, reading the right neighbour rows takes DAO from a mean" in text
    )
    assert "0.800 to 0.900" in text
    assert "better in 1 of 1 cells" in text
    assert "0.700 to 0.500" in text
    assert "better in 0 of 1 cells" in text
    assert "0.900 at k = 16, 0.900 at k = 64" in text
    assert density_finding([]) == ""
