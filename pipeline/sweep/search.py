"""How Ray Tune comes to its trials: points in a fixed order, and early stopping that remembers an earlier run."""

import logging
import os
import pickle
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ..core.commit import write_text
from .settings import HalvingConfig
from .trial import STOPPED_FILE, Trial


def quiet_tune() -> None:
    """Keep Tune from writing tables of everything, catching the user's interrupt and changing into a folder of the trial."""
    os.environ.update(
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_DISABLE_SIGINT_HANDLER="1", RAY_CHDIR_TO_TRIAL_DIR="0"
    )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


class Queue(Searcher):
    """Hands Ray Tune the trials that are left, by rising number.

    Tune's own searchers draw as trials end, so a restart or another number of trials at a time would draw other points.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        make: Callable[[int], Trial],
        resources: Sequence[int],
        waits_for: Callable[[int], int],
        done: set[int],
    ) -> None:
        """Take what is left.

        Args:
            numbers: of the trials that are left.
            make: returns a trial by its number.
            resources: what each rung counts as; see resources_of.
            waits_for: number -> how many of the first trials must have ended before it can be made.
            done: numbers of the trials that have ended; added to.
        """
        super().__init__(metric="badness", mode="min")
        self._left = list(numbers)
        self._make = make
        self._resources = list(resources)
        self._waits_for = waits_for
        self._done = done
        self.made: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self._left:
            return str(Searcher.FINISHED)
        number = self._left[0]
        if not self._done.issuperset(range(self._waits_for(number))):
            return None
        trial = self._make(self._left.pop(0))
        self.made[trial_id] = trial
        return {"trial": pickle.dumps(trial), "resources": self._resources}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._done.add(self.made[trial_id].number)

    def __getstate__(self) -> dict[str, Any]:
        # Tune stores what it was given, for a restart by its own means, which is not used
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: a restart reads the folders of the trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was kept."""


class Halving(ASHAScheduler):
    """Tune's ASHA, which writes down whom it stops and is told of the trials of an earlier run."""

    def __init__(self, settings: HalvingConfig, trials: Callable[[str], Trial]) -> None:
        super().__init__(
            time_attr="resource",
            metric="badness",
            mode="min",
            max_t=settings.reduction ** (settings.rungs - 1),
            grace_period=1,
            reduction_factor=settings.reduction,
        )
        self._trials = trials

    def remember(self, trial: Trial, resources: Sequence[int]) -> None:
        """Count the measurements of a trial that has ended."""
        stub: Any = SimpleNamespace(trial_id=f"earlier-{trial.number}")
        self.on_trial_add(None, stub)
        for record, resource in zip(trial.history(), resources, strict=False):
            super().on_trial_result(None, stub, {"resource": resource, "badness": record["badness"]})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action: str = super().on_trial_result(tune_controller, trial, result)
        if action == TrialScheduler.STOP and result["resource"] < self._max_t:
            write_text(self._trials(trial.trial_id).folder / STOPPED_FILE, "{}\n")
        return action


def scheduler(settings: HalvingConfig | None, queue: Queue, ended: Sequence[Trial], resources: Sequence[int]) -> Any:
    """Return the scheduler; one without early stopping runs every trial to its end."""
    if settings is None:
        return FIFOScheduler()
    made = Halving(settings, lambda trial_id: queue.made[trial_id])
    for trial in ended:
        made.remember(trial, resources)
    return made


class Watch(tune.Callback):
    """Tells what trials report, as they do."""

    def __init__(self, queue: Queue, say: Callable[[Trial, dict[str, Any] | None], None]) -> None:
        """`say` gets the trial and its last record, or None where it failed for good."""
        self._queue = queue
        self._say = say

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "record" in result:
            self._say(self._queue.made[trial.trial_id], result["record"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._say(self._queue.made[trial.trial_id], None)
