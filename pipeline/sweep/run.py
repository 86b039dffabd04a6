"""The driver's side of a sweep: trials are made, Ray Tune runs them, and what they found is weighed."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from clipsan.stages.evaluation.exam import objective_pct
from clipsan.stages.search.pareto import Outcome, pareto_front, recommend
from clipsan.stages.search.space import Point

from ..core.commit import fingerprint, write_json
from ..core.config import ConfigError
from ..core.run_folder import RunFolder
from .canary import Canary, plant
from .data import Held, gather, make_exams, order_of
from .plan import Plan
from .points import propose, resources_of, rungs_of
from .search import Queue, Watch, quiet_tune, scheduler
from .settings import OptunaSearch
from .train import trainable
from .trial import STATE_FILE, Questions, Trial, last_word, note_error, suspect_figures


@dataclass(frozen=True, slots=True)
class Found:
    """What a sweep came to."""

    trials: tuple[Trial, ...]
    points: dict[int, Point]
    front: tuple[int, ...]
    recommended: int | None
    before: dict[str, float]
    """Figures of the suspect model on the pictures of the trials."""
    final_before: dict[str, float]
    final_after: dict[str, float] | None
    """Figures of the recommended model on pictures that no trial has seen; None where the rule recommends none."""
    checkpoint: Path | None
    notes: tuple[str, ...]
    """How the recommended repair differs from the method as published."""
    parameters: tuple[int, int]
    """How many the recommended repair trained, of how many."""
    pictures: tuple[int, int]
    """Of the trials, and final ones."""
    unreadable: int
    labelled: bool
    """Whether accuracy is zero-shot accuracy; else it is retrieval."""


def search(plan: Plan, folder: RunFolder) -> Found:
    """Run what is left of a sweep, within the Ray of this process, and weigh what was found."""
    sweep = _Sweep(plan, folder)
    sweep.run()
    return sweep.conclude()


def concurrent(plan: Plan) -> int:
    """Return how many trials fit into the cluster at a time, one CPU left free, and no more than the settings say."""
    cluster, workers = plan.config.cluster, plan.config.workers_per_trial
    total = ray.cluster_resources()
    cpus, gpus = workers * cluster.threads_per_worker, workers * cluster.gpus_per_worker
    fits = int((total.get("CPU", 1) - 1) // cpus)
    if gpus:
        fits = min(fits, int(total.get("GPU", 0) / gpus))
    if fits < 1:
        raise ConfigError(
            f"cluster: a trial takes {cpus} CPUs, one stays free, and {gpus:g} GPUs; the cluster has "
            f"{total.get('CPU', 0):g} and {total.get('GPU', 0):g}"
        )
    share = None if cluster.workers is None else cluster.workers // workers
    return min([fits, *(bound for bound in (plan.config.concurrent, share) if bound is not None)])


def outcome_of(trial: Trial) -> Outcome | None:
    """Return what the last measurement of a trial says; None before the first."""
    history = trial.history()
    return None if not history else Outcome(trial.number, history[-1]["objective_pct"], history[-1]["accuracy_pct"])


class _Sweep:
    def __init__(self, plan: Plan, folder: RunFolder) -> None:
        self._plan = plan
        self._folder = folder
        self._trials: dict[int, Trial] = {}
        self._points: dict[int, Point] = {}
        self._held: dict[str, Any] = {}
        self._exams = make_exams(plan)
        done = self._ended()  # makes the trials, so that none is refused after another has run
        self._left = [number for number in range(plan.trials) if number not in done]
        self._done = done
        self._canary = self._planted()
        model = plan.base.config.model
        self._before = self._ask(
            suspect_figures, model, self._exams.search, self._copy("challenge"), self._questions(0.0)
        )
        self._asked = self._questions(self._before["accuracy_pct"])

    def run(self) -> None:
        """Run what is left of the trials."""
        if not self._left:
            return
        settings = self._plan.config
        self._say(
            f"{len(self._left)} of {self._plan.trials} trials to run; before: {_figures(self._plan, self._before)}"
        )
        resources = resources_of(settings.halving, self._plan.rungs)
        ended = [self._trials[number] for number in sorted(self._done)]
        queue = Queue(self._left, self._trial, resources, self._plan.config.search.waits_for, self._done)
        shared = {"held": self._held, "questions": ray.put(self._asked), "cluster": settings.cluster}
        results = self._tuner(queue, scheduler(settings.halving, queue, ended, resources), shared).fit()
        for i in range(len(results)):
            self._note(queue, results[i])
        shutil.rmtree(self._folder.local / "work" / "tune", ignore_errors=True)

    def conclude(self) -> Found:
        """Weigh the trials, and measure the recommended one where no trial was."""
        plan = self._plan
        trials = tuple(self._trials[number] for number in sorted(self._trials))
        finished = [trial for trial in trials if trial.finished]
        outcomes = [found for found in map(outcome_of, finished) if found is not None]
        front = pareto_front(outcomes)
        best = recommend(outcomes, self._before["accuracy_pct"], plan.config.max_accuracy_loss_points)
        final, copy = self._exams.final, self._copy("final")
        before = self._ask(suspect_figures, plan.base.config.model, final, copy, self._asked)
        after, checkpoint, notes, parameters = None, None, (), (0, 0)
        if best is not None:
            checkpoint = self._folder.local / plan.repair_of(self._points[best]).target
            after, notes, parameters = self._ask(last_word, self._trials[best], final, copy, self._asked, checkpoint)
        for trial in trials:
            # of a trial that is done and beaten the table says enough
            if trial.number not in front and (trial.finished or trial.stopped):
                (trial.folder / STATE_FILE).unlink(missing_ok=True)
        searched = self._exams.search.pictures
        return Found(
            trials=trials,
            points=self._points,
            front=tuple(front),
            recommended=best,
            before=self._before,
            final_before=before,
            final_after=after,
            checkpoint=checkpoint,
            notes=notes,
            parameters=parameters,
            pictures=(len(searched), len(final.pictures)),
            unreadable=self._exams.unreadable,
            labelled=searched.labelled,
        )

    def _tuner(self, queue: Queue, schedule: Any, shared: dict[str, Any]) -> tune.Tuner:
        quiet_tune()
        cluster = self._plan.config.cluster
        resources = {"cpu": float(cluster.threads_per_worker)}
        resources |= {"gpu": cluster.gpus_per_worker} if cluster.gpus_per_worker else {}
        if self._plan.config.workers_per_trial > 1:
            # the trial waits for workers of Ray Train and must hold no CPU that they need; Tune wants it to hold something
            resources = {"memory": 2**20}
        shutil.rmtree(self._folder.local / "work" / "tune", ignore_errors=True)
        return tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable, shared=shared), resources),
            tune_config=tune.TuneConfig(
                search_alg=queue,
                scheduler=schedule,
                num_samples=len(self._left),
                max_concurrent_trials=concurrent(self._plan),
                # a worker takes seconds to import torch and Tune
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self._folder.work),
                failure_config=tune.FailureConfig(max_failures=self._plan.config.retries),
                callbacks=[Watch(queue, self._tell)],
                verbose=0,
            ),
        )

    def _trial(self, number: int) -> Trial:
        """Return a trial; it is made when it is first asked for."""
        if number not in self._trials:
            point = self._points[number] = self._point(number)
            self._trials[number] = self._made(number, point)
        return self._trials[number]

    def _made(self, number: int, point: Point) -> Trial:
        settings = self._plan.config
        key, order = order_of(self._plan.repair_of(point), self._folder)
        job = order.job(self._folder)
        try:
            rungs = rungs_of(job.pace.total_steps, settings.halving)
        except ValueError as error:
            raise ConfigError(f"halving: trial {number}: {error}") from None
        if key not in self._held:
            self._held[key] = ray.put(gather(order))
        folder = self._folder.local / "trials" / f"{number:04d}"
        own = fingerprint([self._plan.fingerprint, number, point, rungs])
        write_json(folder / "trial.json", {"number": number, "fingerprint": own, "point": point})
        return Trial(number, job, rungs, folder, own, key, settings.workers_per_trial)

    def _point(self, number: int) -> Point:
        plan = self._plan
        if plan.points is not None:
            return plan.points[number]
        search = plan.config.search
        assert isinstance(search, OptunaSearch)
        known = {i: (self._points[i], outcome_of(self._trials[i])) for i in range(search.waits_for(number))}
        return propose(search, plan.config.space, plan.config.seed, number, known)

    def _ended(self) -> set[int]:
        """Return the trials that an earlier run has ended; those that failed are tried again.

        Where points depend on results, a failure stands: what was proposed after it took it for one.
        """
        settings = self._plan.config
        done: set[int] = set()
        for number in range(self._plan.trials):
            if not done.issuperset(range(self._plan.config.search.waits_for(number))):
                break
            trial = self._trial(number)
            failed = self._plan.points is None and len(trial.errors()) > settings.retries
            if trial.finished or trial.stopped or failed:
                done.add(number)
        return done

    def _note(self, queue: Queue, result: Any) -> None:
        """Keep the error of a trial whose process was lost, which could write nothing itself."""
        trial = queue.made.get(Path(result.path).name) if result.error is not None and result.path else None
        if trial is not None and not trial.finished and not trial.errors():
            note_error(trial, " ".join(str(result.error).split())[-500:])

    def _planted(self) -> Canary | None:
        if self._plan.config.canary is None:
            return None
        held: Held = ray.get(next(iter(self._held.values())))
        canary: Canary = self._ask(plant, self._plan, held, self._exams, self._folder.local / "canary")
        return canary

    def _copy(self, which: str) -> Any:
        """Return the canary's model and one of its challenges, or None."""
        return None if self._canary is None else (self._canary.model, getattr(self._canary, which))

    def _questions(self, before_pct: float) -> Questions:
        settings = self._plan.config
        return Questions(
            exam=self._exams.search,
            truth=self._exams.truth,
            canary=self._canary,
            classes=self._plan.classes,
            templates=settings.templates,
            objective=self._plan.objective,
            before_pct=before_pct,
            max_loss_points=settings.max_accuracy_loss_points,
            device="cuda" if settings.cluster.gpus_per_worker else "cpu",
        )

    def _ask(self, function: Any, *args: Any) -> Any:
        """Run a function where a trial would run."""
        cluster = self._plan.config.cluster
        task = ray.remote(num_cpus=cluster.threads_per_worker, num_gpus=cluster.gpus_per_worker)(function)
        try:
            return ray.get(task.remote(*args))
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, ValueError) else error from None

    def _tell(self, trial: Trial, record: dict[str, Any] | None) -> None:
        if record is None:
            self._say(f"trial {trial.number} FAILED: {(trial.errors() or ['its process was lost'])[-1]}")
            return
        rung = trial.rungs.index(record["step"]) + 1
        point = ", ".join(f"{name}={short(value)}" for name, value in self._points[trial.number].items())
        self._say(
            f"trial {trial.number} ({point}) {rung}/{len(trial.rungs)}: {_figures(self._plan, record)}"
            + ("; stopped" if trial.stopped else "")
        )

    def _say(self, words: str) -> None:
        sys.stderr.write(f"sweep: {words}\n")
        sys.stderr.flush()


def _figures(plan: Plan, figures: dict[str, float]) -> str:
    return f"{plan.objective} {objective_pct(figures, plan.objective):.1f} %, accuracy {figures['accuracy_pct']:.1f} %"


def short(value: Any) -> str:
    """Return a setting in a few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
