"""Progress of a pass: a live bar in a terminal, one plain line every few seconds in a log."""

import sys
import time
from typing import TextIO

from tqdm import tqdm

LOG_EVERY_S = 10.0
QUIET_UNDER_S = 2.0
"""A pass that is over so soon needs no line in a log."""


class Progress:
    """Counts the units and pairs of one pass and says how fast it goes and how long it will take.

    Use as a context manager; `done` is the number of units that an earlier run had committed already.
    """

    def __init__(
        self, name: str, *, total: int, done: int = 0, stream: TextIO | None = None, unit: str = "units"
    ) -> None:
        self._name = name
        self._total = total
        self._done = done
        self._pairs = 0
        self._errors = 0
        self._unit = unit
        self._note = ""
        self._stream = stream or sys.stderr
        self._started = self._spoke = time.monotonic()
        self._bar: tqdm | None = None
        self._fresh = 0
        self._said = 0

    def __enter__(self) -> "Progress":
        if self._stream.isatty():
            self._bar = tqdm(
                total=self._total,
                initial=self._done,
                desc=f"{self._name:<10}",
                unit=self._unit.removesuffix("s"),
                file=self._stream,
                dynamic_ncols=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._fresh > self._said and time.monotonic() - self._started >= QUIET_UNDER_S:
            self._say()

    def advance(self, *, pairs: int, errors: int = 0, note: str = "") -> None:
        """Count one finished unit with its pairs and its rejected pairs; a note stands beside the counts."""
        self._note = note
        self._done += 1
        self._fresh += 1
        self._pairs += pairs
        self._errors += errors
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._pairs:,} pairs, {self.pairs_per_s:,.0f}/s, {self._last}", refresh=False)
            self._bar.update()
        elif time.monotonic() - self._spoke >= LOG_EVERY_S:
            self._say()

    @property
    def pairs_per_s(self) -> float:
        """Pairs a second since this pass began in this process."""
        return self._pairs / max(time.monotonic() - self._started, 1e-9)

    @property
    def _last(self) -> str:
        return self._note or f"{self._errors:,} rejected"

    def _say(self) -> None:
        self._said = self._fresh
        self._spoke = time.monotonic()
        elapsed = self._spoke - self._started
        left = (self._total - self._done) * elapsed / max(self._fresh, 1)
        self._stream.write(
            f"{self._name}: {self._done}/{self._total} {self._unit}, {self._pairs:,} pairs, {self.pairs_per_s:,.0f} pairs/s, "
            f"{self._last}, {elapsed:.0f} s, {left:.0f} s left\n"
        )
        self._stream.flush()
