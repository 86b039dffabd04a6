"""Pictures that crash the decoder or never leave it: whoever decodes, the scan ends, and rejects these and no others."""

import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import add_member, caption, picture
from tests.deadly import HOLDS, KILLS, square, write_decoder

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
PAIRS = 40
DEADLY = {7: (KILLS, "worker_died"), 21: (HOLDS, "decode_timeout"), 30: (KILLS, "worker_died")}
WHERE = {
    "the process itself": [],
    "workers": ["cluster.alone_below_pairs=0"],
    "decoders of a stream": ["cluster.alone_below_pairs=0", "cluster.encoders.workers=1"],
}


@pytest.mark.parametrize("where", WHERE)
def test_the_scan_ends_and_names_the_picture(where: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    with tarfile.open(tmp_path / "pairs/0.tar", "w") as tar:
        for i in range(PAIRS):
            side = DEADLY.get(i, (0, ""))[0]
            add_member(tar, f"{i:03d}.png", square(side) if side else picture(i))
            add_member(tar, f"{i:03d}.txt", caption(i).encode())
    command = [sys.executable, "-m", "clipsan.pipeline", "scan", f"data.path={tmp_path / 'pairs'}"]
    command += [f"model.path={tiny_checkpoint}", f"out={tmp_path / 'run'}", "oracle=null", "tracking.enabled=false"]
    command += ["cluster.workers=1", "embed.decode_timeout_s=5", "decision=budget", *WHERE[where]]
    paths = os.pathsep.join([str(write_decoder(tmp_path / "first")), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
        )

    if where == "the process itself":  # nobody replaces it, so it is whoever starts the same command again
        assert run().returncode == -signal.SIGSEGV
    done = run()
    assert done.returncode == 0, done.stderr[-3000:]
    rejected = {row["key"]: row["reason"] for row in pq.read_table(tmp_path / "run/rejected").to_pylist()}
    assert rejected == {f"{i:03d}": reason for i, (_, reason) in DEADLY.items()}
    assert f"scan: {PAIRS} pairs" in done.stdout
