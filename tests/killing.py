"""A job that is killed in the middle, with all of its processes."""

import signal
import subprocess
import time
from collections.abc import Callable

import psutil


def kill_once(job: subprocess.Popen, begun: Callable[[], bool], wait_s: float) -> bool:
    """Kill a job as soon as `begun` says so; tell whether that was before its end and within `wait_s` seconds."""
    stop = time.monotonic() + wait_s
    while time.monotonic() < stop and job.poll() is None:
        if begun():
            for process in [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]:
                try:
                    process.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
            job.wait()
            return True
        time.sleep(0.02)
    return False
