"""A run that is told to stop: SIGTERM, as batch queues and container runtimes send it, ends a run as Ctrl-C does."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED, TERMINATED = 130, 143
"""Exit status after Ctrl-C and after SIGTERM: 128 and the number of the signal, as shells have it."""


_TOLD = threading.Event()
"""Whether SIGTERM came: Ray's C++ side makes a plain KeyboardInterrupt of what a handler raises."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Terminated in the main thread when SIGTERM comes, once: what ends the workers must not be stopped itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _TOLD.set()
        raise Terminated

    _TOLD.clear()
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_status(stop: KeyboardInterrupt) -> int:
    """Return the exit status of a run that was stopped."""
    return TERMINATED if _TOLD.is_set() or isinstance(stop, Terminated) else INTERRUPTED
