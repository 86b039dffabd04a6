"""kill -9 in the middle of the embed pass: what was committed stays, and the result is that of an undisturbed run."""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from clipsan.pipeline.cli import main
from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.scan import verb as scan
from clipsan.pipeline.scan.plan import ScanConfig
from clipsan.pipeline.status import describe
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.stages.detectors import DetectorsConfig
from clipsan.stages.detectors.density import DensityConfig
from clipsan.stages.embed import EmbedConfig
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.sources import WebDataset
from clipsan.stages.verdicts import BudgetDecision
from tests.conftest import write_shards

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
UNITS, PAIRS, EARLY = 48, 12, 3
WAIT_S = 240


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Many small shards, so that a kill after the third part comes long before the last."""
    return write_shards(tmp_path_factory.mktemp("pairs"), shards=UNITS, pairs=PAIRS)


def run_in_process(pairs: Path, model: Path, out: Path) -> None:
    settings = ScanConfig(
        data=WebDataset(path=str(pairs)),
        model=ModelConfig(path=str(model)),
        out=str(out),
        decision=BudgetDecision(share=0.1),
        embed=EmbedConfig(batch_size=1),
        detectors=DetectorsConfig(density=DensityConfig(permutations=1)),
        cluster=ClusterConfig(workers=1, alone_below_pairs=0),
        tracking=TrackingConfig(enabled=False),
    )
    scan.VERB.start(settings)


@pytest.fixture(scope="module")
def undisturbed(pairs, tiny_checkpoint, tmp_path_factory, ray_cluster) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run_in_process(pairs, tiny_checkpoint, out)
    return out


def committed(out: Path) -> dict[str, tuple[int, int]]:
    """Part of the embed pass -> inode and time."""
    found = {}
    for path in out.glob("embeddings/part-*.parquet"):
        status = path.stat()
        found[path.name] = (status.st_ino, status.st_mtime_ns)
    return found


def same_result(first: Path, second: Path) -> None:
    for name in ("embeddings", "scores", "verdicts"):
        expected = {path.name: path.read_bytes() for path in (first / name).glob("part-*.parquet")}
        assert len(expected) == UNITS
        assert {path.name: path.read_bytes() for path in (second / name).glob("part-*.parquet")} == expected, name


def wait_for_parts(out: Path, alive: Callable[[], bool]) -> bool:
    """Return whether the embed pass has committed its first parts, as soon as it has."""
    stop = time.monotonic() + WAIT_S
    while time.monotonic() < stop and alive():
        if len(committed(out)) >= EARLY:
            return True
        time.sleep(0.01)
    return False


def test_a_killed_job_goes_on_where_it_was(pairs, tiny_checkpoint, undisturbed, tmp_path, capsys):
    out = tmp_path / "run"
    settings = [
        "oracle=null",
        "decision=budget",
        "decision.share=0.1",
        "embed.batch_size=1",
        "detectors.density.permutations=1",
        "cluster.workers=1",
        "cluster.alone_below_pairs=0",
        "tracking.enabled=false",
    ]
    places = [f"data.path={pairs}", f"model.path={tiny_checkpoint}", f"out={out}"]
    command = [sys.executable, "-m", "pipeline", "scan", *places, *settings]
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)
        early = wait_for_parts(out, lambda: job.poll() is None)
        processes = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        job.wait()
        psutil.wait_procs(processes, timeout=30)
    assert early, (tmp_path / "log").read_text()

    before = committed(out)
    assert EARLY <= len(before) < UNITS
    # What a kill in the middle of a write leaves behind.
    (out / "embeddings" / f".part-{UNITS - 1:05d}.parquet.1.tmp").write_bytes(b"PAR1 half a part")
    assert main(["status", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"embed     {len(before)}/{UNITS} parts, {len(before) * PAIRS:,} rows" in told
    assert "not finished" in told

    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"scan: {UNITS * PAIRS} pairs, ")
    after = committed(out)
    assert len(after) == UNITS
    assert {name: after[name] for name in before} == before
    same_result(undisturbed, out)
    assert "finished in" in describe(out)


def kill_an_embed_worker(out: Path, killed: list[int]) -> None:
    """Kill a worker while it is at a task: between two tasks, a few milliseconds each, it is idle and goes by another name."""
    if not wait_for_parts(out, lambda: True):
        return
    workers = [process for process in psutil.Process().children(recursive=True) if process.name().startswith("ray::")]
    while not killed and len(committed(out)) < UNITS:
        for process in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith("ray::Worker.do"):
                    process.kill()
                    killed.append(process.pid)
                    return


def test_a_killed_worker_costs_nothing(pairs, tiny_checkpoint, undisturbed, tmp_path):
    killed: list[int] = []
    watcher = threading.Thread(target=kill_an_embed_worker, args=(tmp_path / "run", killed))
    watcher.start()
    run_in_process(pairs, tiny_checkpoint, tmp_path / "run")
    watcher.join()
    assert killed
    same_result(undisturbed, tmp_path / "run")
