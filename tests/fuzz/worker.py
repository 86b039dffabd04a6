"""Puts mutated files to a target in a process of its own, and says what came of each: `python -m tests.fuzz.worker HOME`.

Reads lines `TARGET number seed` (JSON lists) and answers each with a line of JSON. Who drives it ends it when an answer does not come.
"""

import contextlib
import hashlib
import json
import os
import resource
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.mutations import mutate
from tests.fuzz.targets import PNG, REFUSALS, TARGETS, Wrong

ADDRESS_SPACE = 6 * 2**30
"""Of the whole process, so that no input takes the machine's memory; what one takes is measured."""
WRITES = {
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.chmod",
    "os.truncate",
    "shutil.rmtree",
}
LEAVES = (
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "pty.spawn",
)
CANARY = PNG[0]
"""A picture outside the folder, which no reader may give back."""


class Guard:
    """What an input does beside reading its folder: files written elsewhere, processes started, connections made."""

    def __init__(self, home: Path) -> None:
        self._home = str(home)
        self.said: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = given
            if isinstance(path, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            self._check(event, path)
        elif event in WRITES:
            self._check(event, given[0])
        elif event in LEAVES:
            self.said.append(f"{event} {given!r}"[:200])

    def _check(self, event: str, path: Any) -> None:
        place = os.path.realpath(os.fsdecode(path)) if not isinstance(path, int) else self._home
        if not place.startswith(self._home) and place != "/dev/null":
            self.said.append(f"{event} {place!r}"[:200])


def answer(name: str, number: int, seed: int, home: Path, guard: Guard) -> dict[str, Any]:
    """Return what came of one input: outcome (read, refused, or how it failed), counts, seconds of CPU, and MiB beyond those before."""
    target = TARGETS[name]
    stable = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    data = mutate(target.seeds(), np.random.default_rng([seed, stable, number]))
    inputs, out = home / "in" / "data", home / "out"
    for folder in (home / "in", out):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    (home / "in" / "canary.png").write_bytes(CANARY)
    inputs.mkdir()
    target.around(inputs)
    file = inputs / target.file
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    before = {path: path.stat().st_mtime_ns for path in (home / "in").rglob("*")}
    Path("/proc/self/clear_refs").write_text("5")
    guard.said.clear()
    resident, started = _resident("VmRSS"), time.process_time()
    counts: Counter[str] = Counter()
    try:
        with silence():
            counts = target.read(file, out)
        outcome, detail = "read", ""
    except REFUSALS as error:
        outcome, detail = "refused", " ".join(str(error).split())
        if str(home) not in detail and file.name not in detail:
            outcome = "names no file"
    except Wrong as error:
        outcome, detail = "wrong", str(error)
    except RecursionError:
        outcome, detail = "RecursionError", ""
    except BaseException as error:
        outcome = type(error).__name__
        detail = f"{error} " + " <- ".join(
            f"{f.name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-4:][::-1]
        )
    seconds, peak = time.process_time() - started, _resident("VmHWM") - resident
    if guard.said:
        outcome, detail = "reached out", guard.said[0]
    touched = [
        path for path in (home / "in").rglob("*") if before.get(path) != path.stat().st_mtime_ns and path != file
    ]
    if touched and outcome in ("read", "refused"):
        outcome, detail = "wrote beside", str(touched[0])
    told = {"target": name, "number": number, "outcome": outcome, "detail": detail[:400]}
    return told | {"counts": counts, "seconds": seconds, "mib": peak / 2**10}


def _resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep what libraries print of broken files from the answers."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def main() -> None:
    """Answer until the input ends."""
    home = Path(sys.argv[1]).resolve()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    guard = Guard(home)
    for line in sys.stdin:
        name, number, seed = json.loads(line)
        sys.stdout.write(json.dumps(answer(name, number, seed, home, guard)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
