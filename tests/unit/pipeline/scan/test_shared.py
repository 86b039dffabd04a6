"""Pairs that share a uid, shards apart: the stricter verdict holds for all of them, however often it is settled."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.commit import read_part, write_part
from clipsan.pipeline.core.parts import Parts
from clipsan.pipeline.core.pass_ import Pass
from clipsan.pipeline.scan.shared import among, settle_shared
from clipsan.stages.samples import hash_uid, uid_array, uid_rows

OUT = frozenset({"poison_suspect", "shared_uid"})
ROWS: list[list[tuple[str, str, list[str]]]] = [
    [("a", "clean", []), ("b", "suspect", ["poison_suspect"]), ("c", "suspect", ["outlier"])],
    [("d", "clean", []), ("e", "clean", [])],
    [("b", "clean", []), ("c", "clean", []), ("f", "poisoned", ["poison_suspect"]), ("b", "suspect", ["outlier"])],
]
"""Uid, verdict and reasons of the pairs of three parts."""


def settled(folder: Path) -> list[list[tuple[str, list[str]]]]:
    cluster = ClusterConfig(workers=1)
    passes = [Pass(name=name, cluster=cluster, pairs=9, ordered=True) for name in ("gather", "settle")]
    settle_shared(passes[0], passes[1], Parts.of(folder), OUT, "f")
    tables = [read_part(folder, number).to_pylist() for number in range(len(ROWS))]
    return [[(row["verdict"], row["reasons"]) for row in rows] for rows in tables]


def test_the_stricter_verdict_holds_for_every_pair_of_a_uid(tmp_path: Path) -> None:
    for number, rows in enumerate(ROWS):
        columns = {
            "uid_hex": pa.array([hash_uid(uid) for uid, _, _ in rows], pa.string()),
            "verdict": pa.array([verdict for _, verdict, _ in rows], pa.string()),
            "reasons": pa.array([reasons for _, _, reasons in rows], pa.list_(pa.string())),
            "score": pa.array(np.arange(len(rows), dtype=np.float32)),
        }
        write_part(tmp_path, number, pa.table(columns), "f")
    before = (tmp_path / "part-00001.parquet").stat().st_ino
    found = settled(tmp_path)
    assert found[:2] == [[(verdict, reasons) for _, verdict, reasons in rows] for rows in ROWS[:2]]
    assert found[2] == [
        ("suspect", ["shared_uid"]),
        ("clean", []),  # its namesake is odd, and not kept out
        ("poisoned", ["poison_suspect"]),
        ("suspect", ["outlier", "shared_uid"]),
    ]
    assert (tmp_path / "part-00001.parquet").stat().st_ino == before
    bytes_after = (tmp_path / "part-00002.parquet").read_bytes()
    assert settled(tmp_path) == found
    assert (tmp_path / "part-00002.parquet").read_bytes() == bytes_after


halves = st.integers(0, 3)


@given(st.lists(st.tuples(halves, halves)), st.lists(st.tuples(halves, halves)))
def test_uids_are_found_by_both_halves(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    rows, uids = (uid_rows([f"{a:016x}{b:016x}" for a, b in some]) for some in (left, right))
    assert among(rows, uid_array([uids])).tolist() == [uid in right for uid in left]
