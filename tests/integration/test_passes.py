"""A pass on CPUs: each process builds its worker once a pass, and never does a piece with the worker of another pass."""

import os
from pathlib import Path

import pytest

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.pass_old import Row, run_pass

pytestmark = pytest.mark.ray

CLUSTER = ClusterConfig(workers=2)
PIECES = list(range(24))


class Counting:
    """Leaves a file for each time that it is built."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        number = len(list(folder.glob(f"{name}-{os.getpid()}-*")))
        (folder / f"{name}-{os.getpid()}-{number}").touch()

    def run(self, piece: int) -> Row:
        return {"pairs": 1, "piece": piece, "by": self._name, "process": os.getpid()}


def test_a_process_builds_its_worker_once_a_pass(ray_cluster: None, tmp_path: Path) -> None:
    for name in ("first", "second"):
        for heavy in (True, False):
            called = f"{name}-{heavy}"
            args = (called, tmp_path)
            rows = list(run_pass(called, PIECES, Counting, args, cluster=CLUSTER, heavy=heavy, ordered=True))
            assert [row["piece"] for row in rows] == PIECES
            assert {row["by"] for row in rows} == {called}
            processes = {row["process"] for row in rows}
            assert {path.name for path in tmp_path.glob(f"{called}-*")} == {f"{called}-{pid}-0" for pid in processes}
