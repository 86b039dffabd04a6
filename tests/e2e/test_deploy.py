"""What of deploy/ can run on one machine: a submitted job, the Slurm script with stand-ins for its commands, the image's entry point."""

import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.conftest import write_shards

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
SHARDS, PAIRS = 4, 6
WAIT_S = 600


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("pairs"), shards=SHARDS, pairs=PAIRS)


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short path: those of Ray's sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="clipsan-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def scan_of(pairs: Path, model: Path, out: Path) -> list[str]:
    """Words of a small scan."""
    return [
        *("scan", f"data.path={pairs}/{{00000..{SHARDS - 1:05d}}}.tar", f"model.path={model}", f"out={out}"),
        *(
            "oracle=null",
            "decision=budget",
            "decision.share=0.1",
            "detectors.density.permutations=1",
            "tracking.enabled=false",
        ),
    ]


def assert_scanned(out: Path) -> None:
    verdicts = [pq.read_metadata(path).num_rows for path in (out / "verdicts").glob("part-*.parquet")]
    assert verdicts == [PAIRS] * SHARDS


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def free_range() -> int:
    """First of 2000 ports, of which the dozen that two Ray nodes listen on are free."""
    for first in range(21000, 32000, 2000):
        try:
            for port in (first + node + i for node in (0, 1000) for i in range(7)):
                socket.create_server(("0.0.0.0", port)).close()
        except OSError:
            continue
        return first
    pytest.skip("no range of free ports below the ephemeral ones")


@contextmanager
def cluster_environment(**variables: str) -> Iterator[dict[str, str]]:
    """The environment of a Ray of our own, this Python first on its path; every process that has it is ended."""
    mark = secrets.token_hex(16)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CLIPSAN_", "SLURM_"))}
    environment = {
        **kept,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0",
        "CLIPSAN_TEST_MARK": mark,
        **variables,
    }
    try:
        yield environment
    finally:
        for process in marked(mark):
            process.kill()
        psutil.wait_procs(marked(mark), timeout=60)


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CLIPSAN_TEST_MARK") == mark and process.pid != os.getpid():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def assert_gone(mark: str) -> None:
    """What Ray's end takes with it may need a moment."""
    psutil.wait_procs(marked(mark), timeout=60)
    assert marked(mark) == []


def wait_until(true: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    stop = time.monotonic() + WAIT_S
    while not true():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < stop, log.read_text()[-4000:]
        time.sleep(0.2)


def answers(url: str, token: str) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def test_a_submitted_job(pairs: Path, tiny_checkpoint: Path, home: Path) -> None:
    pytest.importorskip("aiohttp_cors", reason="the dashboard needs ray[default]: pip install 'clipsan[cluster]'")
    port, dashboard, agent, client = free_ports(4)
    start = [
        *(
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--head",
            "--block",
            "--disable-usage-stats",
            "--num-cpus=3",
        ),
        *(
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            f"--temp-dir={home / 'ray'}",
            f"--object-store-memory={2**28}",
        ),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"),
    ]
    address = f"http://127.0.0.1:{dashboard}"
    log = home / "head.log"
    with cluster_environment(RAY_ADDRESS=address) as environment, log.open("wb") as written:
        # A node that starts must not look for the cluster that RAY_ADDRESS names.
        own = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
        head = subprocess.Popen(start, env=own, cwd=home, stdout=written, stderr=written, start_new_session=True)
        wait_until(lambda: answers(f"{address}/api/version", environment["RAY_AUTH_TOKEN"]), head, log)

        def submit(*words: str) -> subprocess.CompletedProcess[str]:
            command = [DEPLOY / "submit.sh", *words, "cluster.workers=1", "cluster.alone_below_pairs=0"]
            return subprocess.run(
                command, env=environment, cwd=home, capture_output=True, text=True, timeout=WAIT_S, check=False
            )

        done = submit(*scan_of(pairs, tiny_checkpoint, home / "run"))
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        assert f"scan: {SHARDS * PAIRS} pairs" in done.stdout
        assert_scanned(home / "run")

        refused = submit("scan", "data.path=/nowhere", f"out={home / 'other'}", f"model.path={tiny_checkpoint}")
        assert refused.returncode != 0
        assert "clipsan scan: " in refused.stdout
        assert "/nowhere" in refused.stdout


STAND_INS = {
    "srun": """\
nodes=1 node=0
while [[ $1 == --* ]]; do
    case $1 in
        --nodes=*) nodes=${1#*=} ;;
        --nodelist=node-b | --exclude=node-a) node=1 ;;
        --nodelist=node-a | --ntasks=1 | --ntasks-per-node=1) ;;
        *) echo "srun: unknown $1" >&2; exit 1 ;;
    esac
    shift
done
echo "$nodes on $node: ${*:0:3}" >> "$SLURM_TEST_LOG"
SLURM_LOCALID=$node exec "$@"
""",
    "scontrol": """\
echo "scontrol $*" >> "$SLURM_TEST_LOG"
if [[ $1 == show ]]; then printf 'node-a\\nnode-b\\n'; fi
""",
    "hostname": "echo '127.0.0.1 '\n",
    "clipsan": 'exec python -m clipsan.pipeline "$@"\n',
}
"""Slurm's two commands for an allocation of node-a and node-b that are both this machine."""


def test_the_slurm_script(pairs: Path, tiny_checkpoint: Path, home: Path) -> None:
    for name, text in STAND_INS.items():
        (home / name).write_text(f"#!/bin/bash\n{text}")
        (home / name).chmod(0o755)
    calls, out = home / "calls", home / "run"
    variables = {
        "PATH": f"{home}:{BIN}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(10**6 + secrets.randbelow(10**6)),
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_TEST_LOG": str(calls),
        "CLIPSAN_PORTS": str(free_range()),
        "CLIPSAN_TMP": str(home / "ray"),
        "CLIPSAN_WAIT_S": str(WAIT_S),
    }
    words = [
        *scan_of(pairs, tiny_checkpoint, out),
        "embed.batch_size=1",
        "cluster.workers=1",
        "cluster.alone_below_pairs=0",
    ]
    command = ["bash", DEPLOY / "clipsan.sbatch", *words]
    log = home / "log"
    with cluster_environment(**variables) as environment:
        # The time limit comes near when the first part is there: the job stops, clears away, and is queued again.
        with log.open("wb") as written:
            job = subprocess.Popen(
                command,
                env=environment,
                cwd=home,
                stdout=written,
                stderr=written,
                start_new_session=True,
                # Tests that were started in the background have it ignored, and no shell can undo that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            wait_until(lambda: any(out.glob("embeddings/part-*.parquet")), job, log)
            job.send_signal(signal.SIGUSR1)
            assert job.wait(timeout=WAIT_S) == 130, log.read_text()[-4000:]
        assert "clipsan scan: stopped; the same command goes on from what is committed" in log.read_text()
        assert not (out / "summary.json").exists()
        assert_gone(environment["CLIPSAN_TEST_MARK"])
        assert not (home / "ray").exists()
        first = calls.read_text().splitlines()
        assert first[-1] == f"scontrol requeue {variables['SLURM_JOB_ID']}"
        assert [line.split(":")[0] for line in first if "bash" in line] == ["1 on 0", "1 on 1"]

        # Its output goes to a file: a job that hangs must leave what it said.
        with log.open("wb") as written:
            job = subprocess.Popen(
                command,
                env={**environment, "SLURM_RESTART_COUNT": "1"},
                cwd=home,
                stdout=written,
                stderr=written,
                start_new_session=True,
            )
            try:
                job.wait(timeout=WAIT_S)
            except subprocess.TimeoutExpired:
                pytest.fail(log.read_text()[-4000:])
        assert job.returncode == 0, log.read_text()[-4000:]
        assert_scanned(out)
        assert calls.read_text().count("requeue") == 1
        assert_gone(environment["CLIPSAN_TEST_MARK"])


def image_environment() -> dict[str, str]:
    """The variables that the image's last ENV sets."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return dict(word.split("=", 1) for word in shlex.split(re.findall(r"^ENV (.*)", text, re.M)[-1]))


def test_the_images_entry_point_in_a_clean_environment(pairs: Path, tiny_checkpoint: Path, home: Path) -> None:
    program = shutil.which("clipsan", path=str(BIN))
    if program is None:
        pytest.skip("the command clipsan is not installed beside this Python: pip install -e .")
    (home / "user").mkdir()
    caches = home / "matplotlib"
    environment = {
        **image_environment(),
        "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home / "user"),
        "MPLCONFIGDIR": str(caches),
        "TMPDIR": str(home),
        "RAY_worker_niceness": "0",
    }
    assert all(not value.startswith("$") for value in environment.values())
    clean = ["env", "-i", *(f"{name}={value}" for name, value in environment.items())]
    words = [*scan_of(pairs, tiny_checkpoint, home / "run"), "cluster.workers=1", "cluster.alone_below_pairs=0"]
    done = subprocess.run(
        [*clean, program, *words], cwd=home, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert_scanned(home / "run")
