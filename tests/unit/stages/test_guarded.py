"""A picture that kills or holds its decoder is rejected, and the next one is decoded; workers end by the clock."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipsan.stages import guarded
from clipsan.stages.decode import BadImage, decode
from clipsan.stages.guarded import carefully, timed
from clipsan.stages.samples import Reject
from tests.conftest import picture
from tests.deadly import HOLDS, KILLS, square, write_decoder


def reason(data: bytes, timeout_s: float = 20.0) -> tuple[Reject, str] | None:
    try:
        decode(data, 10_000, timeout_s)
    except BadImage as error:
        return error.reason, error.detail
    return None


def test_carefully_a_picture_that_kills_or_holds_its_decoder_is_rejected_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(write_decoder(tmp_path)))
    with carefully():
        assert reason(picture(1)) is None
        assert reason(square(KILLS)) == (
            Reject.WORKER_DIED,
            f"the process that decodes this picture died (signal {int(signal.SIGSEGV)})",
        )
        assert reason(picture(2)) is None
        held = reason(square(HOLDS), timeout_s=1.0)
        assert held is not None
        assert held[0] is Reject.DECODE_TIMEOUT
        assert "more than 1 s; allow more with embed.decode_timeout_s" in held[1]
        assert reason(b"no image") == reason(b"no image")
        assert (reason(b"no image") or (None,))[0] is Reject.IMAGE_UNREADABLE
        with carefully():
            assert reason(picture(3)) is None
        assert reason(square(KILLS)) is not None
    assert reason(square(KILLS)) is None  # this process has no such decoder


def test_pixels_are_the_same_when_they_are_taken_carefully() -> None:
    plain = decode(picture(4), 10_000).rgb
    with carefully():
        assert (decode(picture(4), 10_000).rgb == plain).all()


def test_a_process_that_nobody_replaces_is_told_when_the_picture_is_through() -> None:
    with pytest.raises(TimeoutError), timed(0.01):
        time.sleep(0.02)
    with timed(5.0):
        pass


@pytest.mark.parametrize("side", [HOLDS, 21])
def test_a_worker_ends_by_the_clock_and_by_nothing_else(side: int, tmp_path: Path) -> None:
    code = (
        "import sys; from clipsan.stages.guarded import expendable; from clipsan.stages.decode import decode; expendable();"
        "decode(sys.stdin.buffer.read(), 10000, 1.0); import time; time.sleep(1.5)"
    )
    paths = os.pathsep.join([str(write_decoder(tmp_path)), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=square(side),
        env={**os.environ, "PYTHONPATH": paths},
        timeout=60,
        check=False,
    )
    assert done.returncode == (-signal.SIGALRM if side == HOLDS else 0)


def test_the_clock_of_several_threads_starts_anew_with_each_picture() -> None:
    clock = guarded._Clock()
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        clock.begin(100.0)
        clock.begin(50.0)
        clock.end(50.0)
        assert 40 < signal.getitimer(signal.ITIMER_REAL)[0] <= 50
        clock.end(100.0)
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    finally:
        signal.signal(signal.SIGALRM, before)
