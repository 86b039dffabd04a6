"""SIGTERM in the middle of a pass: one line, its status, no process left, and the run goes on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import write_shards

pytestmark = [pytest.mark.ray, pytest.mark.slow]

WAIT_S = 240


@pytest.mark.parametrize(("alone_below", "workers"), [(0, True), (10_000, False)], ids=["on Ray", "alone"])
def test_sigterm_ends_a_scan_in_one_line_and_leaves_no_process(
    tmp_path: Path, tiny_checkpoint: Path, alone_below: int, workers: bool
) -> None:
    pairs = write_shards(tmp_path / "pairs", shards=48, pairs=12)
    out = tmp_path / "run"
    settings = [f"data.path={pairs}", f"model.path={tiny_checkpoint}", f"out={out}", "embed.batch_size=1"]
    quiet = ["tracking.enabled=false", "oracle=null"]
    cluster = ["cluster.workers=1", f"cluster.alone_below_pairs={alone_below}"]
    command = [sys.executable, "-m", "clipsan.pipeline", "scan", *settings, *quiet, *cluster]
    with (tmp_path / "said").open("wb") as said:
        job = subprocess.Popen(command, stdout=said, stderr=said)
        stop = time.monotonic() + WAIT_S
        while job.poll() is None and time.monotonic() < stop and not list((out / "embeddings").glob("part-*")):
            time.sleep(0.05)
        assert job.poll() is None, (tmp_path / "said").read_text()
        children = psutil.Process(job.pid).children(recursive=True)
        assert bool(children) is workers
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=60) == 143
    lines = (tmp_path / "said").read_text().splitlines()
    assert lines[-1] == "clipsan scan: stopped; the same command goes on from what is committed"
    assert "Traceback" not in "\n".join(lines)
    assert "SIGTERM" not in "\n".join(lines)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert list(out.rglob("*.tmp")) == []
