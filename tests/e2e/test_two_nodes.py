"""A scan on a cluster of two nodes whose oracle pool may run on one of them only."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


def test_the_oracle_runs_on_its_own_node(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.e2e.two_nodes", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "refused: resources.oracle=1: no node of the cluster offers that much" in done.stdout
    assert "nodes: 1, proven: star" in done.stdout
