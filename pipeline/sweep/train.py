"""Trials inside Ray Tune: one of a single worker in its own process, one of several as runs of Ray Train.

For one worker Ray Train would add nothing but its controller and worker group, about twenty seconds a trial. For several there
is one run of it from each measurement to the next: the trial's own process holds no CPU and waits. pipeline.sweep.run starts no
more trials at a time than have room for all of their workers, so none waits for CPUs that another holds while it waits. Early
stopping takes the trial's process away, and a run of Ray Train that loses its driver keeps its CPUs wherever Ray has no dashboard
(Train asks the dashboard whether the driver lives). So no run is under way when a trial is measured and may be stopped; the next
one goes on from the trial's own state.
"""

import pickle
import shutil
import traceback
from typing import Any

import torch

from ..core.masking import what_stopped
from ..train.feed import Share
from ..train.fit import RUN, run_workers
from ..train.worker import this_worker
from .trial import Record, Trial, note_error, run_trial


def trainable(settings: dict[str, Any], shared: dict[str, Any]) -> None:
    """Run a trial inside Ray Tune; the entry point of its workers.

    Args:
        settings: `trial`, a pickled Trial, and `resources`, what each of its rungs counts as for early stopping.
        shared: `questions` and `held` (by Trial.data), references to Ray's object store, and `cluster`.
    """
    import ray
    from ray import tune

    trial: Trial = pickle.loads(settings["trial"])
    before = len(trial.errors())
    try:
        if trial.workers > 1:
            _run_measured(trial, settings["resources"], shared)
            return
        torch.set_num_threads(trial.job.threads)
        held, questions = ray.get([shared["held"][trial.data], shared["questions"]])
        share, device = Share(0, 1, trial.job.pace.batch_size), torch.device(questions.device)
        for number, record in enumerate(run_trial(trial, held, questions, share, device)):
            tune.report(_report(record, settings["resources"][number]))
    except Exception as error:
        if len(trial.errors()) == before:  # a worker of Ray Train has said more than what reaches this process
            note_error(trial, what_stopped(error))
        traceback.print_exc()
        raise


def _report(record: Record, resource: int) -> dict[str, Any]:
    """Return what Ray Tune is told of a measurement; `resource` is what its rung counts as."""
    return {"resource": resource, "badness": record["badness"], "record": record}


def _run_measured(trial: Trial, resources: list[int], shared: dict[str, Any]) -> None:
    """Run a trial from measurement to measurement, and report each to Ray Tune.

    Args:
        trial: of more than one worker.
        resources: what each of its rungs counts as for early stopping.
        shared: see trainable.

    Raises:
        ray.train.TrainingFailedError: a worker failed or was lost; Ray Tune tries the trial again.
    """
    from ray import tune

    for number, resource in enumerate(resources):
        if len(trial.history()) == number:
            _train(trial, shared, measurements=number + 1)
        tune.report(_report(trial.history()[number], resource))


def _train(trial: Trial, shared: dict[str, Any], measurements: int) -> None:
    """Let the workers train until the trial has been measured so many times."""
    told = {
        "trial": trial,
        "measurements": measurements,
        "held": shared["held"][trial.data],
        "questions": shared["questions"],
    }
    home = trial.folder / RUN
    # under its old name Ray Train would go on with an earlier run, whose state is not the trial's
    shutil.rmtree(home, ignore_errors=True)
    try:
        run_workers(_worker, told, shared["cluster"], trial.workers, trial.folder)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _worker(settings: dict[str, Any]) -> None:
    """Take this worker's part in a trial; the entry point of Ray Train."""
    import ray

    trial: Trial = settings["trial"]
    share, device = this_worker(trial.job.pace.batch_size, trial.job.threads)
    held, questions = ray.get([settings["held"], settings["questions"]])
    records = run_trial(trial, held, questions, share, device)
    try:
        for _ in range(settings["measurements"]):
            next(records)
    except Exception as error:
        if share.rank == 0:
            note_error(trial, what_stopped(error))
        raise
