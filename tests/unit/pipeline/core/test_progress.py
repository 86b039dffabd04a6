"""Progress in a log: plain lines, counts, and a time that is left."""

import io

from clipsan.pipeline.core import progress as module
from clipsan.pipeline.core.progress import Progress


def test_a_log_gets_plain_lines_with_counts_and_time_left(monkeypatch):
    now = iter([100.0, 112.0, 112.0, 112.0, 112.0, 124.0, 124.0, 124.0, 124.0, 124.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    log = io.StringIO()
    with Progress("embed", total=6, done=2, stream=log) as bar:
        bar.advance(pairs=120, errors=3)
        bar.advance(pairs=120)
    lines = log.getvalue().splitlines()
    assert lines[0] == "embed: 3/6 units, 120 pairs, 10 pairs/s, 3 rejected, 12 s, 36 s left"
    assert lines[-1].startswith("embed: 4/6 units, 240 pairs, 10 pairs/s, 3 rejected, 24 s, 24 s left")
    assert "\r" not in log.getvalue()


def test_nothing_done_says_nothing():
    log = io.StringIO()
    with Progress("embed", total=6, done=6, stream=log):
        pass
    assert log.getvalue() == ""
