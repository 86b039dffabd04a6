"""The driver's side of a training: pairs checked once, Ray Train run to its end, progress shown."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from clipsan.stages.files import locate
from clipsan.stages.samples import Unit

from ..core.cluster import ClusterConfig, start_ray
from ..core.parts import Parts
from ..core.pass_ import Pass
from ..core.place import AnyPath
from ..core.progress import Progress
from ..core.run_folder import RunFolder
from .data import CheckWork, Reading, epoch_units, rows_dataset
from .loop import Pace
from .stop import StopRule
from .task import Task
from .worker import PROGRESS_FILE, STATE_FILE, Job, train_worker

RUN = "train"
"""Name of a run of Ray Train: its folder."""


@dataclass(frozen=True, slots=True)
class PairSet:
    """Pairs that have been checked."""

    units: list[Unit]
    reading: Reading
    pairs: int
    """Those that are chosen and can be used."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What the check of a data set found."""

    used: int
    rejected: int
    reasons: dict[str, int]

    @property
    def counts(self) -> dict[str, int]:
        """As they stand in summary.json."""
        return {"pairs_in": self.used + self.rejected, "used": self.used, "rejected": self.rejected}


def check(checking: Pass, units: list[Unit], reading: Reading) -> Checked:
    """Decode every chosen pair once, so that training knows its steps and every bad pair is named.

    Args:
        checking: the pass, with a folder for the pairs that can be used and one for those that cannot.
        units: what is read.
        reading: how.
    """
    assert checking.run is not None
    assert checking.rejected is not None
    sized = replace(checking, pairs=reading.source.about_pairs(units))
    sized.do({unit.index: unit for unit in units}, CheckWork(reading))
    rejected = Parts.of(checking.run.root / checking.rejected)
    return Checked(Parts.of(checking.home).total, rejected.total, rejected.counts("reason"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A training as the driver orders it; see TrainConfig for what the settings mean."""

    name: str
    """Of the verb, for progress."""
    task: Task
    pairs: PairSet
    image_size: int
    epochs: int | None
    steps: int | None
    batch_size: int
    seed: int
    checkpoint_every_epochs: int
    retries: int
    memory_mb: int
    cluster: ClusterConfig
    accumulate: int = 1
    beside: tuple[PairSet, ...] = ()
    """Small sets that together fill `beside_rows` rows of each batch."""
    beside_rows: int = 0
    validation: PairSet | None = None
    stop: StopRule | None = None

    @property
    def cached(self) -> bool:
        """Whether the decoded pairs fit into each worker's memory."""
        return 3 * self.image_size**2 * self.pairs.pairs <= self.memory_mb * 2**20

    @property
    def pace(self) -> Pace:
        """How it goes over its pairs."""
        rows = (self.batch_size - self.beside_rows) * self.accumulate
        return Pace(
            total_steps=self.steps or (self.epochs or 0) * (self.pairs.pairs // rows),
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            pairs=self.pairs.pairs,
            beside_rows=self.beside_rows,
            seed=self.seed,
        )

    def job(self, folder: RunFolder) -> Job:
        """Return what the workers are told."""
        return Job(
            task=self.task,
            pace=self.pace,
            threads=self.cluster.threads_per_worker,
            checkpoint_every_epochs=self.checkpoint_every_epochs,
            beside_pairs=sum(some.pairs for some in self.beside),
            cached=self.cached,
            progress=folder.work / PROGRESS_FILE,
            stop=self.stop,
            validation_images=0 if self.validation is None else self.validation.pairs,
        )


def fit(order: Order, folder: RunFolder) -> dict[str, Any]:
    """Train, or go on training, and return the state in the last checkpoint: weights, optimizer, epoch, history.

    Joins the Ray that runs in this process. The run folder must lie where all nodes see it: a shared file system, an object store.
    """
    start_ray()
    from ray.data import DataContext

    job = order.job(folder)
    DataContext.get_current().execution_options.preserve_order = not order.cached
    try:
        with _Watch(order.name, job):
            result = run_workers(
                train_worker,
                {"job": job},
                order.cluster,
                order.cluster.worker_count(),
                folder.work,
                retries=order.retries,
                datasets=_datasets(order, job),
                # what is cached goes whole to every worker, a stream is shared out
                split=() if order.cached else ("pairs",),
            )
    finally:
        DataContext.get_current().execution_options.preserve_order = False
    with result.checkpoint.as_directory() as path:
        state: dict[str, Any] = torch.load(Path(path) / STATE_FILE, map_location="cpu", weights_only=True)
    return state


def run_workers(
    entry: Callable[[dict[str, Any]], None],
    told: Mapping[str, Any],
    cluster: ClusterConfig,
    workers: int,
    home: AnyPath,
    *,
    retries: int = 0,
    datasets: Mapping[str, Any] | None = None,
    split: Sequence[str] = (),
) -> Any:
    """Run Ray Train to its end and return its result; it goes on where an earlier run under `home` left off.

    Args:
        entry: what every worker does with `told`.
        told: what the workers know.
        cluster: what a worker takes.
        workers: how many there are.
        home: folder of the run, which lies in `train` below it.
        retries: times the workers are started again when one is lost.
        datasets: Ray Datasets by name.
        split: those of them that are shared out; the others go whole to every worker.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = cluster.gpus_per_worker > 0
    resources = {"CPU": float(cluster.threads_per_worker)} | ({"GPU": cluster.gpus_per_worker} if gpu else {})
    trainer = TorchTrainer(
        entry,
        train_loop_config=dict(told),
        datasets=dict(datasets or {}),
        dataset_config=ray.train.DataConfig(datasets_to_split=list(split)),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=resources),
        run_config=ray.train.RunConfig(
            name=RUN,
            **_storage(home),
            failure_config=ray.train.FailureConfig(max_failures=retries),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    return trainer.fit()


def _storage(home: AnyPath) -> dict[str, Any]:
    """Return where Ray Train keeps checkpoints and state, in its own words."""
    if isinstance(home, Path):
        return {"storage_path": str(home)}
    filesystem, inner = locate(home.address)
    return {"storage_path": inner, "storage_filesystem": filesystem}


def _datasets(order: Order, job: Job) -> dict[str, Any]:
    """Return the Ray Datasets of a training: the pairs, and what is held in memory beside them."""
    pairs = order.pairs
    validation = () if order.validation is None else (order.validation,)
    kept = {"beside": order.beside, "validation": validation}
    found = {name: _in_memory(*sets) for name, sets in kept.items() if sets}
    if order.cached:
        return {"pairs": _in_memory(pairs), **found}
    units, reading, seed, progress, epochs = pairs.units, pairs.reading, order.seed, job.progress, job.pace.epochs

    def stream() -> Any:
        # Ray Train calls this at every start of the workers, so a restart streams only the epochs that are left (one
        # more where a kill fell between a checkpoint and its note; the surplus is not read).
        return rows_dataset(epoch_units(units, range(_told(progress)["checkpointed"], epochs), seed), reading)

    return {"pairs": stream, **found}


def _in_memory(first: PairSet, *more: PairSet) -> Any:
    dataset = rows_dataset(first.units, first.reading)
    others = [rows_dataset(some.units, some.reading) for some in more]
    return (dataset.union(*others) if others else dataset).materialize()


def _told(progress: AnyPath) -> dict[str, Any]:
    """Return what the file of the first worker says: step, epochs in the last checkpoint, loss."""
    return json.loads(progress.read_text(encoding="utf-8")) if progress.is_file() else {"step": 0, "checkpointed": 0}


class _Watch:
    """Shows the progress that the first worker writes, while Ray Train holds the main thread."""

    def __init__(self, name: str, job: Job) -> None:
        self._name = name
        self._job = job
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        before = self._written()
        while self._written() == before:  # the workers take seconds to start, which are no part of the rate
            if self._stop.wait(0.5):
                return
        done = int(_told(self._job.progress)["step"])
        pace = self._job.pace
        pairs = pace.batch_size * pace.accumulate
        with Progress(self._name, total=pace.total_steps, done=done, unit="steps") as progress:
            while True:
                stopping = self._stop.wait(0.5)
                told = _told(self._job.progress)
                loss = told.get("loss")
                for _ in range(done, int(told["step"])):
                    progress.advance(pairs=pairs, note="" if loss is None else f"loss {loss:.4f}")
                done = max(done, int(told["step"]))
                if stopping:
                    return

    def _written(self) -> int:
        return self._job.progress.stat().st_mtime_ns if self._job.progress.is_file() else 0
