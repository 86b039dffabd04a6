"""One trial of a sweep: a repair with settings of its own, measured at the rungs and kept for a restart.

The loop is that of pipeline.train, so a trial's model is the one that `clipsan repair` makes of the same settings with as many
workers; pipeline.sweep.train runs it.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clipsan.stages.evaluation.exam import Challenge, Exam, answers, objective_pct, success_pct
from clipsan.stages.evaluation.zero_shot import class_embeddings
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip
from clipsan.stages.search.pareto import badness
from clipsan.stages.training.batch import Batch

from ..core.commit import whole, write_json
from ..train.feed import Share
from ..train.loop import Point, train
from ..train.task import Course, Task
from ..train.worker import Job
from .canary import Canary
from .data import Held

STATE_FILE = "state.pt"
HISTORY_FILE = "history.json"
ERRORS_FILE = "errors.json"
STOPPED_FILE = "stopped.json"

Record = dict[str, Any]
"""One measurement: step, share (of the trial's steps), seconds (so far), loss (mean since the last), the figures of
stages.evaluation.exam, objective_pct and badness."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What one trial does; picklable."""

    number: int
    job: Job
    rungs: tuple[int, ...]
    """Steps after which it is measured, the last at its end."""
    folder: Path
    fingerprint: str
    """Of the sweep, the number, the point and the rungs."""
    data: str
    """Which of the shared sets of pairs it learns from."""
    workers: int
    """Processes that share each batch."""

    def history(self) -> list[Record]:
        """Return what has been measured.

        Raises:
            RuntimeError: the folder holds the trial of another sweep.
        """
        path = self.folder / HISTORY_FILE
        if not path.is_file():
            return []
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["fingerprint"] != self.fingerprint:
            raise RuntimeError(f"{path} is of a trial with other settings; give another `out`")
        return list(stored["records"])

    @property
    def finished(self) -> bool:
        return len(self.history()) == len(self.rungs)

    @property
    def stopped(self) -> bool:
        """Whether early stopping ended it."""
        return (self.folder / STOPPED_FILE).is_file()

    def errors(self) -> list[str]:
        """Return the last line of each failure so far."""
        path = self.folder / ERRORS_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


@dataclass(frozen=True, slots=True)
class Questions:
    """How trials are measured and compared."""

    exam: Exam
    truth: tuple[Challenge, ...]
    canary: Canary | None
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    objective: str
    before_pct: float
    """Clean accuracy of the suspect model, or its retrieval R@1."""
    max_loss_points: float
    device: str


class Courses:
    """A model in repair, and beside it, where there is a canary, the copy that carries it; on one worker."""

    def __init__(self, trial: Trial, questions: Questions, share: Share, device: torch.device) -> None:
        self._questions = questions
        tasks = _tasks(trial, None if questions.canary is None else questions.canary.model)
        self.courses: list[Course] = [task.begin(device, share) for task in tasks]

    def step(self, batches: Sequence[Batch], step: int, steps: int) -> tuple[torch.Tensor, float]:
        """Make one optimiser step of each model; return loss and rate of the first."""
        made = [course.step(batches, step, steps) for course in self.courses]
        return made[0]

    def shorten(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens without what the models, which are of one kind, do not read."""
        return self.courses[0].shorten(tokens)

    def figures(self) -> dict[str, float]:
        """Return what the exam says now."""
        asked = self._questions
        canary = None if asked.canary is None else (self.courses[1].clip, asked.canary.challenge)
        return _answers(self.courses[0].clip, asked.exam, canary, asked)

    def state(self) -> list[dict[str, Any]]:
        return [course.state() for course in self.courses]

    def restore(self, state: list[dict[str, Any]]) -> None:
        for course, own in zip(self.courses, state, strict=True):
            course.restore(own)


def _tasks(trial: Trial, copy: ModelConfig | None) -> list[Task]:
    """Return the trial's training, and the same of the copy with the canary."""
    task = trial.job.task
    return [task] if copy is None else [task, task.on(copy)]


def _answers(clip: Clip, exam: Exam, canary: tuple[Clip, Challenge] | None, asked: Questions) -> dict[str, float]:
    figures = answers(clip, exam, asked.classes, asked.templates)
    if canary is not None:
        copy, challenge = canary
        figures[f"{challenge.name}_asr_pct"] = pooled_pct(copy, (challenge,), asked)
    return figures


Copy = tuple[ModelConfig, Challenge] | None
"""The model with the canary, and the canary on the pictures that are asked of."""


def suspect_figures(model: ModelConfig, exam: Exam, copy: Copy, asked: Questions) -> dict[str, float]:
    """Return the figures of a model that is not repaired."""
    canary = None if copy is None else (load_clip(copy[0], asked.device), copy[1])
    clip = load_clip(model, asked.device)
    return _answers(clip, exam, canary, asked) | _truth(clip, asked)


def last_word(
    trial: Trial, exam: Exam, copy: Copy, asked: Questions, target: Path
) -> tuple[dict[str, float], tuple[str, ...], tuple[int, int]]:
    """Write a finished trial's model; return its figures on another exam, its notes, and the parameters trained and in all."""
    state = torch.load(trial.folder / STATE_FILE, map_location="cpu", weights_only=True)
    objectives = [task.objective(asked.device) for task in _tasks(trial, None if copy is None else copy[0])]
    for objective, own in zip(objectives, state["courses"], strict=True):
        objective.load_state_dict(own["weights"])
    objectives[0].export(target)
    clip = objectives[0].clip
    canary = None if copy is None else (objectives[1].clip, copy[1])
    return (
        _answers(clip, exam, canary, asked) | _truth(clip, asked),
        objectives[0].notes,
        objectives[0].parameter_counts,
    )


def _truth(clip: Clip, asked: Questions) -> dict[str, float]:
    return {"true_asr_pct": pooled_pct(clip, asked.truth, asked)} if asked.truth else {}


def run_trial(trial: Trial, held: Held, questions: Questions, share: Share, device: torch.device) -> Iterator[Record]:
    """Yield the records of a trial, those of an earlier run first; each is on disk before it is yielded.

    All workers of the trial call this at the same time; the first of them measures and writes, the records of the others
    tell the step alone.

    Raises:
        RuntimeError: the loss is no number.
    """
    history = trial.history()
    state = _state(trial) if len(history) < len(trial.rungs) else None
    if state is not None and len(state["history"]) > len(history):
        # a kill fell between the state and its record
        history = list(state["history"])
        if share.rank == 0:
            _note(trial, history)
    yield from history
    if len(history) == len(trial.rungs):
        return
    courses, pace = Courses(trial, questions, share, device), trial.job.pace
    done = 0
    if state is not None:
        done = int(state["step"])
        courses.restore(state["courses"])
    feed = held.feed(pace, share)
    spent, started = history[-1]["seconds"] if history else 0.0, time.monotonic()
    for point in train(courses, feed, pace, share, device, points=trial.rungs, done=done):
        if share.rank == 0:
            seconds = round(spent + time.monotonic() - started, 2)
            history.append(_record(trial, questions, courses, point, seconds))
            _keep(trial, courses, history)
        else:
            history.append({"step": point.step})
        yield history[-1]


def _record(trial: Trial, questions: Questions, courses: Courses, point: Point, seconds: float) -> Record:
    figures = courses.figures()
    objective = objective_pct(figures, questions.objective)
    record: Record = {
        "step": point.step,
        "share": point.step / trial.job.pace.total_steps,
        "seconds": seconds,
        "loss": point.loss,
        **figures,
        "objective_pct": objective,
        "badness": badness(objective, figures["accuracy_pct"], questions.before_pct, questions.max_loss_points),
    }
    if point.step == trial.rungs[-1]:
        # at the end alone, and after everything that decides
        record |= _truth(courses.courses[0].clip, questions)
    return record


def pooled_pct(clip: Clip, challenges: tuple[Challenge, ...], questions: Questions) -> float:
    """Return the share of all images of some challenges that are taken for their target, in percent."""
    modes = [(module, module.training) for module in clip.model.modules()]
    clip.model.eval()
    vectors = class_embeddings(clip, questions.classes, questions.templates)
    counts = [len(challenge.pixels) for challenge in challenges]
    hits = sum(success_pct(clip, found, vectors) * count for found, count in zip(challenges, counts, strict=True))
    for module, mode in modes:
        module.training = mode
    return hits / sum(counts)


def _state(trial: Trial) -> dict[str, Any] | None:
    """Return what the last measurement left; None before the first, or where another trial's lies."""
    path = trial.folder / STATE_FILE
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state if state["fingerprint"] == trial.fingerprint else None


def _keep(trial: Trial, courses: Courses, history: list[Record]) -> None:
    """Write the state, then the records that make it count; each whole or not at all."""
    state = {
        "fingerprint": trial.fingerprint,
        "courses": courses.state(),
        "step": history[-1]["step"],
        "history": history,
    }
    with whole(trial.folder / STATE_FILE) as temporary:
        torch.save(state, temporary)
    _note(trial, history)


def _note(trial: Trial, history: list[Record]) -> None:
    write_json(trial.folder / HISTORY_FILE, {"fingerprint": trial.fingerprint, "records": history})


def note_error(trial: Trial, words: str) -> None:
    """Keep what stopped a trial, for the table."""
    write_json(trial.folder / ERRORS_FILE, [*trial.errors(), words])
