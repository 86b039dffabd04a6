"""The Slurm script's own logic, with stand-ins for srun, scontrol, ray and clipsan: what is started where, signals, requeueing, clean-up.

tests/e2e/test_deploy.py runs it with the real Ray and clipsan.
"""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.unit.deploy.helpers import DEPLOY

STAND_INS = {
    # One process for the step, as srun is; what it would run on each node it runs once.
    "srun": """\
echo "srun $*" >> "$CALLS"
while [[ $1 == --* ]]; do shift; done
exec "$@"
""",
    "scontrol": """\
echo "scontrol $*" >> "$CALLS"
if [[ $1 == show ]]; then printf 'a1\\na2\\na3\\n'; fi
""",
    "hostname": "echo 'fe80::1 10.0.0.7 10.1.0.7 '\n",
    # Waits until the steps have begun, as the real one waits for their nodes.
    "python3": """\
echo "nodes ${*:2}" >> "$CALLS"
while (($(grep -c "^ray start" "$CALLS") < ($3 > 1 ? 2 : 1))); do sleep 0.02; done
exit "${NODES_STATUS:-0}"
""",
    "ray": """\
deaf=${RAY_DEAF:-0}
trap 'if ((deaf-- <= 0)); then echo "ray ends" >> "$CALLS"; exit 0; fi' TERM
echo "ray $*" >> "$CALLS"
while true; do sleep 0.05; done
""",
    "clipsan": """\
trap "${CLIPSAN_ON_INT:-exit 130}" INT
echo "clipsan $*" >> "$CALLS"
if [[ -n $CLIPSAN_STATUS ]]; then exit "$CLIPSAN_STATUS"; fi
while true; do sleep 0.05; done
""",
}


class Allocation:
    """Runs the script as Slurm would on three nodes with eight CPUs each."""

    script = DEPLOY / "clipsan.sbatch"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.calls.touch()
        for name, text in STAND_INS.items():
            (folder / name).write_text(f"#!/bin/bash\n{text}")
            (folder / name).chmod(0o755)

    def start(self, *words: str, **variables: str) -> "subprocess.Popen[str]":
        environment = {
            "PATH": f"{self.folder}:/usr/local/bin:/usr/bin:/bin",
            "CALLS": str(self.calls),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "a[1-3]",
            "SLURM_JOB_NUM_NODES": "3",
            "SLURM_CPUS_PER_TASK": "8",
            "CLIPSAN_TMP": str(self.folder / "ray-files"),
            "CLIPSAN_STATUS": "",
            **variables,
        }
        (self.folder / "ray-files").mkdir(exist_ok=True)
        return subprocess.Popen(
            ["bash", self.script, *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # Tests that were started in the background have it ignored, and no shell can undo that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def finish(self, job: "subprocess.Popen[str]") -> tuple[int, str]:
        output, _ = job.communicate(timeout=300)
        with pytest.raises(ProcessLookupError):
            os.killpg(job.pid, 0)
        assert not (self.folder / "ray-files").exists()
        return job.returncode, output

    def said(self, start: str) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if line.startswith(start)]

    def wait_for(self, start: str) -> None:
        stop = time.monotonic() + 300
        while not self.said(start):
            assert time.monotonic() < stop, self.calls.read_text()
            time.sleep(0.02)


@pytest.fixture
def allocation(tmp_path: Path) -> Allocation:
    return Allocation(tmp_path)


def test_what_is_started_where(allocation: Allocation) -> None:
    status, output = allocation.finish(
        allocation.start("scan", "data.path=/d/{0..9}.tar", "out=/s/run", CLIPSAN_STATUS="0")
    )
    assert status == 0, output
    assert allocation.said("clipsan") == [
        "clipsan scan data.path=/d/{0..9}.tar out=/s/run cluster.address=10.0.0.7:20000 cluster.workers=21"
    ]
    head, workers = allocation.said("ray start")
    for line in (head, workers):
        assert "--block" in line
        assert "--num-cpus=8" in line
        assert "--node-manager-port=20001 --object-manager-port=20002" in line
        assert "--min-worker-port=20100 --max-worker-port=20999" in line
    assert "--head --node-ip-address=10.0.0.7 --port=20000 --include-dashboard=false" in head
    assert workers.endswith("--address=10.0.0.7:20000")
    steps = [line for line in allocation.said("srun") if "start_node" in line]
    assert "--nodes=1 --ntasks=1 --nodelist=a1" in steps[0]
    assert "--nodes=2 --ntasks-per-node=1 --exclude=a1" in steps[1]
    # The head alone first, then all.
    assert allocation.said("nodes") == ["nodes 10.0.0.7:20000 1 300", "nodes 10.0.0.7:20000 3 300"]
    assert len(allocation.said("ray ends")) == 2
    assert allocation.said("srun")[-1].startswith("srun --nodes=3 --ntasks-per-node=1 rm -rf ")
    assert allocation.said("scontrol") == ["scontrol show hostnames a[1-3]"]


def test_the_workers_of_the_command_count(allocation: Allocation) -> None:
    allocation.finish(allocation.start("scan", "cluster.workers=5", CLIPSAN_STATUS="0"))
    assert allocation.said("clipsan") == ["clipsan scan cluster.workers=5 cluster.address=10.0.0.7:20000"]


@pytest.mark.parametrize("wanted", ["1", "2", "3"])
def test_it_leaves_with_clipsans_status(allocation: Allocation, wanted: str) -> None:
    status, _ = allocation.finish(allocation.start("scan", CLIPSAN_STATUS=wanted))
    assert status == int(wanted)
    assert allocation.said("scontrol requeue") == []


@pytest.mark.parametrize(("restarts", "requeued"), [("0", True), ("9", True), ("10", False)])
def test_near_the_time_limit_it_queues_again(allocation: Allocation, restarts: str, requeued: bool) -> None:
    job = allocation.start("scan", SLURM_RESTART_COUNT=restarts)
    allocation.wait_for("clipsan")
    job.send_signal(signal.SIGUSR1)
    status, _ = allocation.finish(job)
    assert status == 130
    assert bool(allocation.said("scontrol requeue 4711")) == requeued
    # Only when all is cleared away: it ends the job.
    if requeued:
        assert allocation.calls.read_text().splitlines()[-1] == "scontrol requeue 4711"


def test_a_child_that_is_killed_as_it_begins_clears_nothing_away(tmp_path: Path) -> None:
    # The script's own function, with the traps that it sets; a child that a signal ends just after the fork has them too.
    text = (DEPLOY / "clipsan.sbatch").read_text()
    clear_away = re.search(r"^clear_away\(\) \{.*?^\}", text, re.DOTALL | re.MULTILINE)
    assert clear_away
    calls = tmp_path / "calls"
    script = f"""
        set -euo pipefail; set -m
        job="" again="" SLURM_JOB_NUM_NODES=1 CLIPSAN_TMP=/nowhere
        timeout() {{ echo "$*" >> {calls}; }}
        {clear_away[0]}
        trap clear_away EXIT
        for _ in {{1..50}}; do
            (sleep 60 && true) &
            kill -- "-$!"
            wait "$!" || true
        done
    """
    subprocess.run(["bash", "-c", script], check=True, capture_output=True, timeout=300)
    assert len(calls.read_text().splitlines()) == 1


def test_cancelling_does_not_queue_again(allocation: Allocation) -> None:
    job = allocation.start("scan")
    allocation.wait_for("clipsan")
    job.send_signal(signal.SIGTERM)
    status, _ = allocation.finish(job)
    assert status == 143
    assert allocation.said("scontrol requeue") == []
    assert len(allocation.said("ray ends")) == 2


@pytest.mark.parametrize(("number", "wanted"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 130)])
def test_a_signal_just_after_clipsans_start_reaches_it(allocation: Allocation, number: int, wanted: int) -> None:
    # On a busy node the script may stand still between the fork and the line that keeps the number of the child.
    text = allocation.script.read_text()
    assert text.count("\njob=${job:-$!}\n") == 1
    allocation.script = allocation.folder / "slow.sbatch"
    allocation.script.write_text(text.replace("\njob=${job:-$!}\n", "\nsleep 1\njob=${job:-$!}\n"))
    job = allocation.start("scan")
    allocation.wait_for("clipsan")
    job.send_signal(number)
    status, _ = allocation.finish(job)
    assert status == wanted
    assert len(allocation.said("ray ends")) == 2


def test_a_clipsan_that_does_not_end_in_time_is_killed(allocation: Allocation) -> None:
    text = allocation.script.read_text()
    assert text.count("SECONDS + 120") == 1
    allocation.script = allocation.folder / "impatient.sbatch"
    allocation.script.write_text(text.replace("SECONDS + 120", "SECONDS + 1"))
    job = allocation.start("scan", CLIPSAN_ON_INT=":")
    allocation.wait_for("clipsan")
    job.send_signal(signal.SIGUSR1)
    status, _ = allocation.finish(job)
    assert status == 128 + signal.SIGKILL
    assert allocation.calls.read_text().splitlines()[-1] == "scontrol requeue 4711"


def test_nodes_that_do_not_come_end_the_job(allocation: Allocation) -> None:
    status, _ = allocation.finish(allocation.start("scan", NODES_STATUS="1"))
    assert status == 1
    assert allocation.said("clipsan") == []
    assert len(allocation.said("ray ends")) == 1


def test_a_step_that_did_not_hear_the_first_signal_gets_another(allocation: Allocation) -> None:
    # As bash does not where the signal comes between the fork and its own reset of the traps.
    status, _ = allocation.finish(allocation.start("scan", CLIPSAN_STATUS="3", RAY_DEAF="1"))
    assert status == 3
    assert len(allocation.said("ray ends")) == 2


def test_each_job_has_a_token_of_its_own() -> None:
    text = (DEPLOY / "clipsan.sbatch").read_text()
    assert re.search(r"RAY_AUTH_TOKEN=\$\(od -An -N32 -tx1 /dev/urandom", text)
    assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN" in text
