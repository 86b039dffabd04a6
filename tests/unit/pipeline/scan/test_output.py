"""What a scan says in figures, from parts written by hand."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsan.pipeline.core.commit import write_part
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.core.parts import Parts
from clipsan.pipeline.scan.output import Measured, accused_mask, score_names, truth_mask
from clipsan.pipeline.scan.wall import most_suspicious

UIDS = ["a", "b", "c", "d", "e"]
SCORES = [0.1, 0.9, 0.9, 0.4, 1.2]
REASONS = [[], ["poison_suspect"], ["poison_suspect"], ["outlier"], ["proven_trigger", "poison_suspect"]]


@pytest.fixture
def verdicts(tmp_path: Path) -> Parts:
    table = pa.table(
        {
            "uid": UIDS,
            "caption": [f"a {uid}" for uid in UIDS],
            "reasons": pa.array(REASONS, pa.list_(pa.string())),
            "concept": pa.array([None, "kite", "kite", None, "kite"], pa.string()),
            "verdict": ["clean", "suspect", "suspect", "suspect", "poisoned"],
            "trigger_id": pa.array([None, None, None, None, "t1"], pa.string()),
            "dao": pa.array(SCORES[::-1], pa.float32()),
            "ensemble": pa.array(SCORES, pa.float32()),
        }
    )
    for number, rows in enumerate(([0, 1], [2, 3, 4])):
        write_part(tmp_path / "verdicts", number, table.take(rows), "f")
    return Parts.of(tmp_path / "verdicts")


def manifest(path: Path, uids: list[str]) -> str:
    pq.write_table(pa.table({"uid": pa.array(uids, pa.string())}), path)
    return str(path)


def test_the_ensemble_comes_first_and_strings_are_no_scores(verdicts: Parts):
    assert score_names(verdicts) == ["ensemble", "dao"]


def test_masks_are_in_the_order_of_the_data_set(verdicts: Parts):
    assert accused_mask(verdicts).tolist() == [False, True, True, False, True]
    assert accused_mask(verdicts, frozenset({"outlier"})).tolist() == [False, False, False, True, False]
    assert truth_mask(verdicts, pa.array(["e", "b", "other"])).tolist() == [False, True, False, False, True]


def test_a_scan_is_measured_where_the_truth_divides_it(verdicts: Parts, tmp_path: Path, capsys):
    found = Measured.of(verdicts, manifest(tmp_path / "some.parquet", ["b", "e"]))
    assert np.flatnonzero(found.truth).tolist() == [1, 4]
    assert found.detection is not None
    assert list(found.detection) == ["ensemble", "dao"]
    assert Measured.of(verdicts, manifest(tmp_path / "all.parquet", UIDS)).detection is None
    assert not capsys.readouterr().err
    assert Measured.of(verdicts, manifest(tmp_path / "none.parquet", ["z"])).detection is None
    assert "names none of the scanned pairs" in capsys.readouterr().err
    (tmp_path / "odd.parquet").write_bytes(b"no Parquet")
    with pytest.raises(ConfigError, match="not a manifest"):
        Measured.of(verdicts, str(tmp_path / "odd.parquet"))


def test_the_most_suspicious_pairs_come_first_and_ties_by_uid(verdicts: Parts):
    assert [pair.uid for pair in most_suspicious(verdicts, ["ensemble", "dao"])] == ["e", "b", "c"]
    assert [pair.part for pair in most_suspicious(verdicts, ["ensemble"], limit=2)] == [1, 0]
