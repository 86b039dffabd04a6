"""Faults, made on purpose in the middle of a scan: what becomes of it, and how long it takes to go on.

    python -m tests.benchmarks.drills

Each drill scans the same few hundred pairs with the command line and holds every part and every uid list against those of a scan that
nothing disturbed: a drill whose bytes differ fails. Its row is stored in results/faults.json.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.benchmarks import results
from tests.benchmarks.results import Row
from tests.conftest import add_member, caption, make_tiny, picture, write_shards
from tests.deadly import HOLDS, KILLS, square, write_decoder

ROOT = Path(__file__).resolve().parents[2]
SHARDS, PAIRS = 24, 12
EARLY = 3
"""Parts of the embed pass after which a fault comes."""
WAIT_S = 600.0
COMMAND = "python -m tests.benchmarks.drills"
LISTS = ("flagged.npy", "allow.npy", "rejected.npy")
FOLDERS = ("embeddings", "rejected", "scores", "verdicts")
ON_WORKERS = ("cluster.alone_below_pairs=0",)
APART = (*ON_WORKERS, "cluster.encoders.workers=1")
"""Decoders and the process that holds the model are others."""


class DrillError(AssertionError):
    """A scan did not do what it must after a fault."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where drills find their data, their model and the scan that nothing disturbed."""

    home: Path

    @property
    def data(self) -> Path:
        return self.home / "pairs"

    @property
    def undisturbed(self) -> Path:
        return self.home / "undisturbed"

    def command(self, out: Path, *settings: str, address: str | None = None, data: Path | None = None) -> list[str]:
        """Return the command of a scan."""
        joined = [] if address is None else [f"cluster.address={address}"]
        return [
            *(sys.executable, "-m", "clipsan.pipeline", "scan", f"data.path={data or self.data}"),
            *(f"model.path={self.home / 'checkpoint'}", f"out={out}", "oracle=null", "decision=budget"),
            *("decision.share=0.1", "embed.batch_size=1", "detectors.density.permutations=1"),
            *("tracking.enabled=false", "cluster.workers=1", *joined, *settings),
        ]


@dataclass(frozen=True, slots=True)
class Drill:
    """One fault."""

    fault: str
    tried: str
    """How it is made."""
    outcome: str
    """What must become of the scan; it is held to that."""
    run: Callable[[Place, Path], float]
    """Does it with a run folder of its own; returns the seconds until the scan went on, or until the same command was through."""
    same_bytes: bool = True
    """Whether the scan must leave the bytes of the undisturbed one; not where the fault lies in data of its own."""


def prepare(home: Path) -> Place:
    """Write the data set and the model, and scan it once."""
    place = Place(home)
    write_shards(place.data, shards=SHARDS, pairs=PAIRS)
    make_tiny(home)
    expect(finish(begin(place.command(place.undisturbed))), 0)
    return place


def drill(one: Drill, place: Place) -> Row:
    """Make a fault and return its row.

    Raises:
        DrillError: the scan did not end as it must, or with other bytes than an undisturbed one.
    """
    out = place.home / one.fault.replace(" ", "-").replace(",", "")
    seconds = one.run(place, out)
    expected, found = (made_of(place.undisturbed), made_of(out)) if one.same_bytes else ({}, {})
    differ = [name for name, content in expected.items() if found.get(name) != content]
    if differ:
        raise DrillError(f"{one.fault}: {len(differ)} files differ from an undisturbed scan's, among them {differ[0]}")
    return {
        "fault": one.fault,
        "tried": one.tried,
        "outcome": one.outcome,
        "same_bytes": True if one.same_bytes else None,
        "recovery_s": round(seconds, 1),
    }


def made_of(run: Path) -> dict[str, bytes]:
    """Return what a scan leaves of its pairs: relative path -> content."""
    files = [path for folder in FOLDERS for path in sorted((run / folder).glob("part-*.parquet"))]
    lists = [path for path in (run / name for name in LISTS) if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in [*files, *lists]}


def begin(command: list[str], *modules: str) -> "subprocess.Popen[str]":
    """Start a scan; modules of some folders come before all others."""
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(*modules), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def environment(*modules: str) -> dict[str, str]:
    """Return that of scans and clusters: one thread each, and workers that are not slowed down beside other work."""
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    paths = [*modules, *(path or os.curdir for path in sys.path)]
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(paths)}


def finish(job: "subprocess.Popen[str]") -> tuple[int, str]:
    """Wait for a scan; return its exit status and what it said."""
    said, _ = job.communicate(timeout=WAIT_S)
    return job.returncode, said


def expect(ended: tuple[int, str], status: int, words: str = "") -> None:
    """Hold a scan to its exit status and to what it must say.

    Raises:
        DrillError: it ended otherwise.
    """
    code, said = ended
    if code != status or words not in said:
        raise DrillError(f"exit status {code}, not {status}, or without {words!r}: {said[-2000:]}")


def committed(out: Path) -> int:
    """Return the number of parts of the embed pass."""
    return len(list((out / "embeddings").glob("part-*.parquet")))


def wait(until: Callable[[], bool], job: "subprocess.Popen[str] | None" = None) -> float:
    """Return the seconds until something is so.

    Raises:
        DrillError: it never was, or the job ended before.
    """
    started = time.monotonic()
    while not until():
        if time.monotonic() - started > WAIT_S or (job is not None and job.poll() is not None):
            raise DrillError("the scan ended, or waited, where it should have gone on")
        time.sleep(0.02)
    return time.monotonic() - started


@dataclass(frozen=True, slots=True)
class Nodes:
    """A cluster of two nodes."""

    host: "subprocess.Popen[str]"
    address: str

    def kill(self, name: str) -> None:
        """Kill a process of the cluster that is at a task of this name."""

        def killed() -> bool:
            for process in psutil.Process(self.host.pid).children(recursive=True):
                try:
                    if process.name().startswith(name):
                        process.kill()
                        return True
                except psutil.NoSuchProcess:
                    continue
            return False

        wait(killed)

    def remove(self) -> None:
        """Take the second node away, with all that runs there."""
        assert self.host.stdin is not None
        self.host.stdin.write("remove\n")
        self.host.stdin.flush()


@contextmanager
def two_nodes(cpus: tuple[int, int] = (1, 2), store_mb: int = 256) -> Iterator[Nodes]:
    """Have a cluster of two nodes."""
    command = [sys.executable, "-m", "tests.benchmarks.two_nodes", *(str(n) for n in cpus), str(store_mb)]
    host = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert host.stdout is not None
    try:
        address = host.stdout.readline().strip()
        if not address:
            raise DrillError("the cluster did not start")
        yield Nodes(host, address)
    finally:
        below = psutil.Process(host.pid).children(recursive=True)
        assert host.stdin is not None
        host.stdin.close()
        try:
            host.wait(timeout=60)
        finally:
            for process in [*below, psutil.Process(host.pid)] if host.poll() is None else below:
                if process.is_running():
                    process.kill()


def disturbed(place: Place, out: Path, nodes: Nodes, fault: Callable[[Nodes], None], *settings: str) -> float:
    """Scan on a cluster, make a fault after the first parts, and wait for the end; return the seconds to the next part.

    Where workers that the fault spares go on, these are next to none.
    """
    job = begin(place.command(out, *settings, address=nodes.address))
    wait(lambda: committed(out) >= EARLY, job)
    before = committed(out)
    fault(nodes)
    seconds = wait(lambda: committed(out) > before, job)
    expect(finish(job), 0)
    return seconds


def worker_killed(place: Place, out: Path) -> float:
    with two_nodes() as nodes:
        return disturbed(place, out, nodes, lambda at: at.kill("ray::Worker.do"), *ON_WORKERS)


def encoder_killed(place: Place, out: Path) -> float:
    with two_nodes((2, 2)) as nodes:
        return disturbed(place, out, nodes, lambda at: at.kill("ray::MapWorker("), *APART)


def node_lost(place: Place, out: Path) -> float:
    with two_nodes() as nodes:
        return disturbed(place, out, nodes, lambda at: at.remove(), *ON_WORKERS, "cluster.workers=3")


def driver_killed(place: Place, out: Path) -> float:
    with two_nodes() as nodes:
        command = place.command(out, *ON_WORKERS, address=nodes.address)
        job = begin(command)
        wait(lambda: committed(out) >= EARLY, job)
        job.kill()
        job.communicate()
        before = committed(out)
        again = begin(command)
        seconds = wait(lambda: committed(out) > before, again)
        expect(finish(again), 0)
        return seconds


def small_store(place: Place, out: Path) -> float:
    with two_nodes((2, 2), store_mb=80) as nodes:
        started = time.monotonic()
        expect(finish(begin(place.command(out, *APART, address=nodes.address))), 0)
        return time.monotonic() - started


def terminated(place: Place, out: Path) -> float:
    job = begin(place.command(out))
    wait(lambda: committed(out) >= EARLY, job)
    job.send_signal(signal.SIGTERM)
    expect(finish(job), 143, "stopped; the same command goes on from what is committed")
    return again(place, out)


def killed(place: Place, out: Path) -> float:
    job = begin(place.command(out))
    wait(lambda: committed(out) >= EARLY, job)
    job.kill()
    job.communicate()
    return again(place, out)


def shard_gone(place: Place, out: Path) -> float:
    shard = place.data / f"{SHARDS - 1:05d}.tar"
    job = begin(place.command(out))
    wait(lambda: (out / "run.yaml").is_file(), job)
    away = shard.rename(place.home / shard.name)
    try:
        expect(finish(job), 1, f"could not be read ({shard}: no such file")
        if json.loads((out / "summary.json").read_text())["unread_shards"]["names"] != [shard.name]:
            raise DrillError("summary.json names another shard")
    finally:
        away.rename(shard)
    return again(place, out)


def shard_changed(place: Place, out: Path) -> float:
    expect(finish(begin(place.command(out))), 0)
    shard = place.data / "00001.tar"
    before = shard.read_bytes()
    try:
        shard.write_bytes(before[:700] + bytes([before[700] ^ 1]) + before[701:])
        expect(finish(begin(place.command(out))), 2, "00001.tar changed since this run read it")
    finally:
        shard.write_bytes(before)
    return again(place, out)


def part_flipped(place: Place, out: Path) -> float:
    expect(finish(begin(place.command(out))), 0)
    for folder in FOLDERS:
        path = out / folder / "part-00002.parquet"
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 16
        path.write_bytes(raw)
    return again(place, out, "part-00002.parquet is damaged")


def part_cut(place: Place, out: Path) -> float:
    expect(finish(begin(place.command(out))), 0)
    for folder in FOLDERS:
        path = out / folder / "part-00002.parquet"
        path.write_bytes(path.read_bytes()[:-100])
    return again(place, out, "part-00002.parquet is damaged")


def deadly(place: Place, out: Path, side: int, reason: str) -> float:
    """Scan on workers a set with one picture that its decoder does not survive; return the seconds of the whole scan."""
    pairs = out.with_name(f"{out.name}-pairs")
    pairs.mkdir()
    with tarfile.open(pairs / "0.tar", "w") as tar:
        for i in range(PAIRS):
            add_member(tar, f"{i:02d}.png", square(side) if i == PAIRS // 2 else picture(i))
            add_member(tar, f"{i:02d}.txt", caption(i).encode())
    decoder = write_decoder(out.with_name(f"{out.name}-decoder"))
    settings = (*ON_WORKERS, "embed.decode_timeout_s=5")
    started = time.monotonic()
    expect(finish(begin(place.command(out, *settings, data=pairs), str(decoder))), 0)
    found = json.loads((out / "summary.json").read_text())["counts"]["rejected_by_reason"]
    if found != {reason: 1}:
        raise DrillError(f"rejected: {found}")
    return time.monotonic() - started


def again(place: Place, out: Path, words: str = "") -> float:
    """Give the same command again; return the seconds that it took."""
    started = time.monotonic()
    expect(finish(begin(place.command(out))), 0, words)
    return time.monotonic() - started


DRILLS = (
    Drill(
        "a worker killed",
        "SIGKILL in the middle of the embed pass, two nodes",
        "the scan goes on; another worker does what it had in hand",
        worker_killed,
    ),
    Drill(
        "the process with the model killed",
        "SIGKILL in the middle of a stream, two nodes, decoders and encoder apart",
        "the scan goes on; another process loads the model",
        encoder_killed,
    ),
    Drill(
        "a node lost",
        "the second of two nodes removed in the middle of the embed pass",
        "the scan goes on with the node that is left",
        node_lost,
    ),
    Drill(
        "the driver killed, on a cluster",
        "SIGKILL in the middle of the embed pass, two nodes that stay",
        "the same command goes on from what is committed",
        driver_killed,
    ),
    Drill(
        "a small object store",
        "80 MB on each of two nodes, decoders and encoder apart",
        "the scan ends; the seconds are those of the whole scan",
        small_store,
    ),
    Drill("SIGTERM", "in the middle of the embed pass", "exit status 143; the same command goes on", terminated),
    Drill("kill -9", "in the middle of the embed pass", "the same command goes on", killed),
    Drill(
        "a shard gone while the scan runs",
        "renamed after the plan, put back after the run",
        "exit status 1, the shard is named; the same command reads it",
        shard_gone,
    ),
    Drill(
        "a shard changed under its name and size",
        "a bit of it, after a finished run",
        "exit status 2, the shard is named; put back, the same command accepts it",
        shard_changed,
    ),
    Drill(
        "a bit of a part changed",
        "one in each of embeddings, rejected, scores and verdicts",
        "the parts are named and made again",
        part_flipped,
    ),
    Drill(
        "a part cut off",
        "one in each of embeddings, rejected, scores and verdicts",
        "the parts are named and made again",
        part_cut,
    ),
    Drill(
        "a picture crashes its decoder",
        "SIGSEGV in the decoder of one picture of 12, each time, on workers",
        "that picture alone is rejected (worker_died); the seconds are those of the whole scan",
        lambda place, out: deadly(place, out, KILLS, "worker_died"),
        same_bytes=False,
    ),
    Drill(
        "a picture that is never decoded",
        "an endless decoder for one picture of 12, a limit of 5 s, on workers",
        "that picture alone is rejected (decode_timeout); the seconds are those of the whole scan",
        lambda place, out: deadly(place, out, HOLDS, "decode_timeout"),
        same_bytes=False,
    ),
)


def main(words: list[str]) -> int:
    """Do the drills whose names hold one of the words, or all; return 1 where one failed."""
    chosen = [one for one in DRILLS if not words or any(word in one.fault for word in words)]
    failed = 0
    with tempfile.TemporaryDirectory() as home:
        place = prepare(Path(home))
        for one in chosen:
            try:
                row = drill(one, place)
            except (DrillError, subprocess.TimeoutExpired) as error:
                sys.stderr.write(f"{one.fault}: failed: {error}\n")
                failed = 1
                continue
            results.record("faults", [row], command=COMMAND)
            sys.stdout.write(f"{one.fault}: as it must, on after {row['recovery_s']} s\n")
            sys.stdout.flush()
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
