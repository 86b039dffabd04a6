"""The driver's side of a training: pairs checked once, Ray Train run to its end, progress shown."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clipsan.stages.samples import Unit

from ..core.cluster import ClusterConfig
from ..core.commit import missing_parts, read_parts
from ..core.pass_old import run_pass
from ..core.progress import Progress
from ..core.run_folder import RunFolder, part_rows
from .data import CheckWork, Reading, epoch_units, reject_reasons, rows_dataset
from .stop import StopRule
from .worker import PROGRESS_FILE, STATE_FILE, Job, Task, train_worker


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


def check(
    name: str, units: list[Unit], reading: Reading, parts: Path, rejected: Path, mark: str, cluster: ClusterConfig
) -> Checked:
    """Decode every chosen pair once, so that training knows its steps and every bad pair is named."""
    indices = [unit.index for unit in units]
    missing = set(missing_parts(parts, indices, mark))
    pieces = [unit for unit in units if unit.index in missing]
    args = (reading, parts, rejected, mark)
    for _ in run_pass(name, pieces, CheckWork, args, cluster=cluster, total=len(units)):
        pass
    reasons = reject_reasons(list(read_parts(rejected, indices, ["reason"])))
    return Checked(sum(part_rows(parts).values()), sum(part_rows(rejected).values()), reasons)


@dataclass(frozen=True, slots=True)
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

    def job(self, folder: RunFolder) -> Job:
        """Return what the workers are told."""
        rows = (self.batch_size - self.beside_rows) * self.accumulate
        return Job(
            task=self.task,
            total_steps=self.steps or (self.epochs or 0) * (self.pairs.pairs // rows),
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            seed=self.seed,
            threads=self.cluster.threads_per_worker,
            checkpoint_every_epochs=self.checkpoint_every_epochs,
            pairs=self.pairs.pairs,
            beside_pairs=sum(some.pairs for some in self.beside),
            beside_rows=self.beside_rows,
            cached=self.cached,
            progress=folder.work / PROGRESS_FILE,
            stop=self.stop,
            validation_images=0 if self.validation is None else self.validation.pairs,
        )


def fit(order: Order, folder: RunFolder) -> dict[str, Any]:
    """Train, or go on training, and return the state in the last checkpoint: weights, optimizer, epoch, history.

    Joins the Ray that runs in this process. The run folder must lie where all nodes see it.
    """
    import ray.train
    from ray.data import DataContext
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster = order.cluster
    job = order.job(folder)
    gpu = cluster.gpus_per_worker > 0
    resources = {"CPU": float(cluster.threads_per_worker)} | ({"GPU": cluster.gpus_per_worker} if gpu else {})
    DataContext.get_current().execution_options.preserve_order = not order.cached
    try:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"job": job},
            datasets=_datasets(order, job),
            # what is cached goes whole to every worker, a stream is shared out
            dataset_config=ray.train.DataConfig(datasets_to_split=[] if order.cached else ["pairs"]),
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=cluster.worker_count(), use_gpu=gpu, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=str(folder.work),
                failure_config=ray.train.FailureConfig(max_failures=order.retries),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            ),
        )
        with _Watch(order.name, job):
            result = trainer.fit()
    finally:
        DataContext.get_current().execution_options.preserve_order = False
    with result.checkpoint.as_directory() as path:
        state: dict[str, Any] = torch.load(Path(path) / STATE_FILE, map_location="cpu", weights_only=True)
    return state


def _datasets(order: Order, job: Job) -> dict[str, Any]:
    """Return the Ray Datasets of a training: the pairs, and what is held in memory beside them."""
    pairs = order.pairs
    validation = () if order.validation is None else (order.validation,)
    kept = {"beside": order.beside, "validation": validation}
    found = {name: _in_memory(*sets) for name, sets in kept.items() if sets}
    if order.cached:
        return {"pairs": _in_memory(pairs), **found}
    units, reading, seed, progress, epochs = pairs.units, pairs.reading, order.seed, job.progress, job.epochs

    def stream() -> Any:
        # Ray Train calls this at every start of the workers, so a restart streams only the epochs that are left (one
        # more where a kill fell between a checkpoint and its note; the surplus is not read).
        return rows_dataset(epoch_units(units, range(epochs_done(progress), epochs), seed), reading)

    return {"pairs": stream, **found}


def _in_memory(first: PairSet, *more: PairSet) -> Any:
    dataset = rows_dataset(first.units, first.reading)
    others = [rows_dataset(some.units, some.reading) for some in more]
    return (dataset.union(*others) if others else dataset).materialize()


def epochs_done(progress: Path) -> int:
    """Return how many epochs the last checkpoint holds, from the file that the first worker keeps."""
    if not progress.is_file():
        return 0
    return int(json.loads(progress.read_text(encoding="utf-8"))["checkpointed"])


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
        done = int(self._told()["step"])
        pairs = self._job.batch_size * self._job.accumulate
        with Progress(self._name, total=self._job.total_steps, done=done, unit="steps") as progress:
            while True:
                stopping = self._stop.wait(0.5)
                told = self._told()
                loss = told.get("loss")
                for _ in range(done, int(told["step"])):
                    progress.advance(pairs=pairs, note="" if loss is None else f"loss {loss:.4f}")
                done = max(done, int(told["step"]))
                if stopping:
                    return

    def _written(self) -> int:
        return self._job.progress.stat().st_mtime_ns if self._job.progress.is_file() else 0

    def _told(self) -> dict[str, Any]:
        if not self._job.progress.is_file():
            return {"step": 0}
        found: dict[str, Any] = json.loads(self._job.progress.read_text(encoding="utf-8"))
        return found
