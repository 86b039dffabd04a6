"""What keeps one picture from holding a process for ever, or from killing it again and again.

A decoder is C code on a stranger's bytes. What crashes it, or what it never comes back from, takes the process along: a worker is lost,
which costs nothing but its time. On the second try the worker is careful: every picture goes through a process beside it first, and
the one on which that dies or takes too long is rejected, and no other.
"""

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from .samples import Reject

TIMEOUT_S = 60.0
"""The slowest picture that the limit on pixels admits takes a few seconds."""
Timeout = Annotated[float, Field(gt=0)]
"""Setting of the seconds that one picture may take."""
TRIES = 2
"""Processes that a picture may kill: the first may have been killed by chance."""
HEADER = struct.Struct("<QQ")
"""Before the bytes of a picture: their number, and the limit on its pixels."""
DONE = b"\x01"


class _Clock:
    """Ends this process, by the system's own timer, when no picture came out of the decoders in time and one is in them.

    The timer needs neither a thread nor Python's lock. Where several threads decode, it starts anew with each picture.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def begin(self, timeout_s: float) -> None:
        with self._lock:
            self._inside += 1
            signal.setitimer(signal.ITIMER_REAL, timeout_s)

    def end(self, timeout_s: float) -> None:
        with self._lock:
            self._inside -= 1
            signal.setitimer(signal.ITIMER_REAL, timeout_s if self._inside else 0.0)


class Probe:
    """A process that decodes pictures and is not missed when it dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __call__(self, data: bytes, max_pixels: int, timeout_s: float) -> tuple[Reject, str] | None:
        """Return why a picture must not be decoded here; None where it may be."""
        with self._lock:
            for _ in range(TRIES):
                told = self._tried(data, max_pixels, timeout_s)
                if told is None or told[0] is Reject.DECODE_TIMEOUT:
                    return told
            return told

    def _tried(self, data: bytes, max_pixels: int, timeout_s: float) -> tuple[Reject, str] | None:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(timeout_s, process.kill)
        started = time.monotonic()
        watch.start()
        try:
            process.stdin.write(HEADER.pack(len(data), max_pixels) + data)
            process.stdin.flush()
            answer = process.stdout.read(1)
        except BrokenPipeError:
            answer = b""
        finally:
            watch.cancel()
        if answer == DONE:
            return None
        self.end()
        if time.monotonic() - started >= timeout_s:
            return late(timeout_s)
        return Reject.WORKER_DIED, f"the process that decodes this picture died ({_ending(process.returncode)})"

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            paths = os.pathsep.join(path or os.curdir for path in sys.path)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "clipsan.stages.probe"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths},
            )
            assert self._process.stdout is not None
            self._process.stdout.read(1)  # it has imported what it needs; that is not the picture's time
        return self._process

    def end(self) -> None:
        """End the process; the next picture starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@dataclass(slots=True)
class _Process:
    """How this process decodes; decoders are called in many places, and all of them are meant."""

    clock: _Clock | None = None
    probe: Probe | None = None


_OWN = _Process()


def expendable() -> None:
    """Say that this process may end in the middle of a picture: whoever started it does its work again, carefully."""
    _OWN.clock = _OWN.clock or _Clock()


@contextmanager
def carefully(wanted: bool = True) -> Iterator[None]:
    """Let every picture go through a process beside this one first, for the length of a block."""
    if not wanted or _OWN.probe is not None:
        yield
        return
    probe = _OWN.probe = Probe()
    try:
        yield
    finally:
        _OWN.probe = None
        probe.end()


def refused(data: bytes, max_pixels: int, timeout_s: float) -> tuple[Reject, str] | None:
    """Return why a picture must not be decoded in this process; None where it may be."""
    return None if _OWN.probe is None else _OWN.probe(data, max_pixels, timeout_s)


@contextmanager
def timed(timeout_s: float) -> Iterator[None]:
    """Decode a picture: a worker ends when it takes too long, any other process is told so when it is through.

    Raises:
        TimeoutError: it took too long.
    """
    is_tried = _OWN.probe is not None
    clock = None if is_tried else _OWN.clock
    started = time.monotonic()
    if clock is not None:
        clock.begin(timeout_s)
    try:
        yield
    finally:
        if clock is not None:
            clock.end(timeout_s)
    if not is_tried and time.monotonic() - started > timeout_s:
        raise TimeoutError


def late(timeout_s: float) -> tuple[Reject, str]:
    """Return the reject of a picture that took too long."""
    return Reject.DECODE_TIMEOUT, f"decoding takes more than {timeout_s:g} s; allow more with embed.decode_timeout_s"


def _ending(code: Any) -> str:
    return f"signal {-code}" if isinstance(code, int) and code < 0 else f"exit status {code}"
