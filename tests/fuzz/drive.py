"""Drives workers through inputs: one that hangs or dies is ended, what it had in hand is noted, and the next goes on."""

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HANG_S = 60.0
"""Of the clock, for one input; start included. Whoever shares the machine takes of it, too."""
MAX_CPU_S = 5.0
"""Of a processor, for one input of at most some kilobytes."""
MAX_MIB = 600.0
"""Memory that one input may take beside what was there: two images of the largest size that is decoded, and a model's libraries."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one input."""

    target: str
    number: int
    outcome: str
    """`read`, `refused`, or how it failed."""
    detail: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    mib: float = 0.0

    @property
    def failed(self) -> str:
        """How it failed; empty where it did not."""
        if self.outcome not in ("read", "refused"):
            return f"{self.outcome}: {self.detail}"
        if self.seconds > MAX_CPU_S:
            return f"took {self.seconds:.1f} s"
        return f"took {self.mib:.0f} MiB" if self.mib > MAX_MIB else ""


class Worker:
    """A process with a folder of its own."""

    def __init__(self, home: Path) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        }
        self._log = (home / "worker.log").open("ab")
        (home / "data").mkdir(exist_ok=True)
        self._job = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", str(home / "data")],
            cwd=home / "data", env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, bufsize=0,
        )  # fmt: skip
        self._rest = b""

    def ask(self, name: str, number: int, seed: int) -> Outcome:
        """Put one input to a target."""
        assert self._job.stdin is not None
        try:
            self._job.stdin.write(json.dumps([name, number, seed]).encode() + b"\n")
            line = self._line()
        except (BrokenPipeError, EOFError):
            return Outcome(name, number, "crash", f"exit status {self._job.wait()}")
        except TimeoutError:
            return Outcome(name, number, "hang", f"no answer in {HANG_S:.0f} s")
        return Outcome(**json.loads(line))

    def _line(self) -> bytes:
        assert self._job.stdout is not None
        while b"\n" not in self._rest:
            if not select.select([self._job.stdout], [], [], HANG_S)[0]:
                raise TimeoutError
            piece = os.read(self._job.stdout.fileno(), 65536)
            if not piece:
                raise EOFError
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def end(self) -> None:
        """End the process, whatever it does."""
        self._job.kill()
        self._job.wait()
        self._log.close()


def run(inputs: Iterable[tuple[str, int]], seed: int) -> Iterator[Outcome]:
    """Yield what came of every (target, number)."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        home = Path(folder)
        worker = Worker(home)
        try:
            for name, number in inputs:
                found = worker.ask(name, number, seed)
                yield found
                if found.outcome in ("crash", "hang"):
                    worker.end()
                    worker = Worker(home)
        finally:
            worker.end()


def summary(found: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Return a flat row a target: inputs, what came of them, the slowest and the largest."""
    rows: dict[str, dict[str, Any]] = {}
    for one in found:
        row = rows.setdefault(
            one.target,
            {"format": one.target, "inputs": 0, "read": 0, "refused": 0, "failed": 0, "pairs_read": 0, "pairs_rejected": 0,
             "slowest_s": 0.0, "largest_mib": 0.0},
        )  # fmt: skip
        row["inputs"] += 1
        row["failed" if one.failed else one.outcome] += 1
        row["pairs_read"] += one.counts.get("read", 0)
        row["pairs_rejected"] += one.counts.get("rejected", 0)
        row["slowest_s"] = round(max(row["slowest_s"], one.seconds), 2)
        row["largest_mib"] = round(max(row["largest_mib"], one.mib), 1)
    return list(rows.values())
