"""The learning-rate schedules of the repair methods, and the limits of their numbers."""

import math
from typing import Annotated, Literal

import pydantic

from ..stage import config
from ..training.contrastive import CosineWarmup, OneCycle


@config
class TwoPhase:
    """PAR's schedule: linear from a high rate to a middle one, then a cosine to almost zero.

    Source: nmndeep/PerturbAndRecover, utils.cosine_scheduler. Rates are given as shares of the method's `lr`, the middle
    rate, so that a sweep over `lr` keeps the shape.
    """

    kind: Literal["two_phase"] = "two_phase"
    share: float = 0.5
    """Share of the steps in the first phase."""
    start: float = 10.0
    """First rate / lr (3e-5 / 3e-6 in the paper)."""
    end: float = 1e-9 / 3e-6
    """Rate that the cosine tends to / lr."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError("share must be at least 0 and below 1")
        if self.start < 0 or self.end < 0:
            raise ValueError("start and end must not be negative")

    def rate(self, step: int, steps: int, peak: float) -> float:
        """Return the learning rate of step `step` (from 0) of `steps`; `peak` is the rate between the phases."""
        first = int(self.share * steps)
        if step < first:
            # both ends included, as numpy.linspace
            return peak * (self.start + (1 - self.start) * (step / (first - 1) if first > 1 else 0.0))
        passed = (step - first) / (steps - first)
        return peak * (self.end + (1 - self.end) * (1 + math.cos(math.pi * passed)) / 2)


RepairSchedule = Annotated[OneCycle | CosineWarmup | TwoPhase, pydantic.Discriminator("kind")]


def check_numbers(*, epochs: int, batch_size: int, lr: float) -> None:
    """Raise a ValueError that states the rule that one of the numbers of every method breaks."""
    if epochs < 1:
        raise ValueError("epochs must be at least 1")
    if batch_size < 2:
        raise ValueError("batch_size must be at least 2")
    if not lr > 0:
        raise ValueError("lr must be above 0")
