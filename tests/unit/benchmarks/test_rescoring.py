"""The detectors over a cache that is there: figures of every column, naming, and two versions side by side."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsan.pipeline.core.commit import write_part
from clipsan.pipeline.core.parts import Parts
from clipsan.stages.captions import count_terms
from clipsan.stages.detectors import DetectorsConfig, build_suite
from tests.benchmarks.rescoring import beside_the_best, compare, figures, line
from tests.benchmarks.scoring import made_pairs, score, without_words

DETECTORS = DetectorsConfig()


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("scan")
    table = made_pairs(600, 16, 2)
    for number, start in enumerate(range(0, 600, 200)):
        write_part(home / "embeddings", number, table.slice(start, 200), "")
    poisoned = table.column("uid").to_pylist()[:30]
    pq.write_table(pa.table({"uid": poisoned, "target": ["abobobo"] * 30}), home / "manifest.parquet")
    (home / "scale").write_text("20.0", encoding="utf-8")
    return home


def test_every_column_is_measured(scan: Path) -> None:
    row = figures(scan, DETECTORS)
    names = {*build_suite(DETECTORS, pairs=1, trusted=None).columns, "ensemble"}
    assert set(row["average_precision"]) == set(row["auroc"]) == set(row["fpr_at_full_recall"]) == names
    assert (row["pairs"], row["poisoned"]) == (600, 30)
    assert row["right"] == [name for name in row["named"] if "abobobo" in name]
    assert "AP " in line(row)


def test_what_each_detector_takes_is_told_once(scan: Path, tmp_path: Path) -> None:
    clock, _ = score(Parts.of(scan / "embeddings"), tmp_path, DETECTORS)
    learning = {one.name for one in build_suite(DETECTORS, pairs=1, trusted=None).detectors if one.rounds} | {
        "Ensemble"
    }
    assert {name for name, own in clock.own.items() if own["learn"] > 0} == learning
    assert all(own["score"] > 0 for own in clock.own.values())
    assert sum(own["updates"] for own in clock.own.values()) <= clock.spent["updates"]
    assert sum(sum(own.values()) for own in clock.own.values()) <= sum(clock.spent.values())


def test_two_versions_stand_side_by_side(scan: Path, tmp_path: Path) -> None:
    row = figures(scan, DETECTORS)
    before = {**row, "named": ["an owl"], "average_precision": {**row["average_precision"], "ensemble": 0.25}}
    for name, found in (("before", before), ("after", row)):
        (tmp_path / f"{name}.json").write_text(json.dumps([found]), encoding="utf-8")
    table = compare(tmp_path / "before.json", tmp_path / "after.json").splitlines()
    assert len(table) == 3
    assert "| 0.250 |" in table[2]
    assert "| an owl |" in table[2]
    assert len({one.count("|") for one in table}) == 1


def test_ensemble_stands_beside_the_best_single_column() -> None:
    def row(ensemble: float, best: float) -> dict[str, object]:
        return {"average_precision": {"ensemble": ensemble, "dao": best, "lid": 0.01}}

    assert "2 scans: the ensemble's AP is at most 0.125 below" in beside_the_best([row(0.9, 0.5), {}, row(0.25, 0.375)])
    assert "1 scans: the ensemble's AP is at most 0.000 below" in beside_the_best([row(0.9, 0.5)])
    assert "no scan" in beside_the_best([{}])


def test_captions_can_be_replaced_by_ones_that_share_no_word(scan: Path, tmp_path: Path) -> None:
    embeddings = Parts.of(scan / "embeddings")
    fresh, were = without_words(embeddings, tmp_path / "embeddings")
    before, after = pa.concat_tables(embeddings.tables()), pa.concat_tables(fresh.tables())
    captions = after.column("caption").to_pylist()
    assert len(count_terms(captions)) == len(set(captions)) == 600
    assert [were[caption] for caption in captions] == before.column("caption").to_pylist()
    assert after.drop_columns("caption").equals(before.drop_columns("caption"))
    row = figures(scan, DETECTORS, wordless=True)
    assert all(name in were.values() for name in row["named"])
