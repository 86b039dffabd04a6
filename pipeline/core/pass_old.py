"""One pass over the data on Ray Data: a row is a piece of work by name, a worker does it and commits the result itself.

Only names and small records travel between processes; bytes are read, and results written, where the work is done.
"""

import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from .cluster import ClusterConfig, PoolConfig, start_ray
from .progress import Progress

Row = dict[str, Any]


class Work(Protocol):
    """What a pass does to one piece: the constructor loads what is heavy, once a worker process."""

    def run(self, piece: Any) -> Row:
        """Do one piece; return a small record with at least `pairs`, and `errors` where pairs can fail."""
        ...


_HERE: ContextVar[bool] = ContextVar("_HERE", default=False)


@contextmanager
def in_this_process() -> Iterator[None]:
    """Do the pieces of every pass here, one after the other.

    For what runs in a worker of Ray: passes inside a worker would ask for CPUs beside the one that it holds, and with all of
    them held by such workers wait for ever.
    """
    before = _HERE.set(True)
    try:
        yield
    finally:
        _HERE.reset(before)


def run_pass(
    name: str,
    pieces: Sequence[Any],
    work: Callable[..., Work],
    args: tuple[Any, ...],
    *,
    cluster: ClusterConfig,
    total: int | None = None,
    heavy: bool = False,
    ordered: bool = False,
    pool: PoolConfig | None = None,
) -> Iterator[Row]:
    """Do all pieces on the workers and yield their records as they come, each with the `node` that it was done on.

    Args:
        name: of the pass, for progress.
        pieces: picklable descriptions of the work, one a task.
        work: class with `__init__(*args)` and `run(piece) -> Row`.
        args: constructor arguments; put into the object store once.
        total: units of the pass when some are done already.
        heavy: the constructor loads a model. Where workers have a share of a GPU, a pool of actors keeps it and gives the GPU
            back when the pass ends. Otherwise the pieces are tasks, whose processes Ray keeps warm from pass to pass: to
            start them and to import torch costs a small pass more than its work.
        pool: where the workers of a heavy pass run, when not where those of the others do.
        ordered: yield in the order of `pieces` (for sums whose rounding must not depend on timing).
    """
    if not pieces:
        return
    if _HERE.get():
        worker = work(*args)
        yield from (worker.run(piece) for piece in pieces)
        return
    start_ray()
    import ray
    from ray.data import DataContext

    context = DataContext.get_current()
    before = context.execution_options.preserve_order
    context.execution_options.preserve_order = ordered
    rows = [{"piece": pickle.dumps(piece)} for piece in pieces]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    pool = pool or PoolConfig()
    gpus = (cluster.gpus_per_worker if pool.gpus_per_worker is None else pool.gpus_per_worker) if heavy else 0
    size = min(pool.workers or cluster.worker_count(), len(pieces))
    packed = (work, ray.put(args), cluster.threads_per_worker)
    if gpus:
        # A pool that may shrink outlives the loss of a node whose workers fit nowhere else.
        compute = ray.data.ActorPoolStrategy(
            min_size=1, max_size=size, initial_size=size, max_tasks_in_flight_per_actor=2
        )
        place = {"num_gpus": gpus, "fn_constructor_args": packed}
    else:
        compute = ray.data.TaskPoolStrategy(size)
        place = {"fn_args": packed}
    mapped = dataset.map(
        _Actor if gpus else _task,
        compute=compute,
        num_cpus=cluster.threads_per_worker,
        resources=pool.resources or None,
        **place,
    )
    done = (total or len(pieces)) - len(pieces)
    try:
        with Progress(name, total=total or len(pieces), done=done) as progress:
            for row in mapped.iter_rows():
                record = pickle.loads(row["record"])
                progress.advance(pairs=record["pairs"], errors=record.get("errors", 0))
                yield record
    finally:
        context.execution_options.preserve_order = before


KEEP_S = 30.0
"""How long an idle process holds what the constructor loaded."""
_KEPT: dict[str, "_Actor"] = {}
_RELEASE: list[threading.Timer] = []


def _task(row: Row, work: Callable[..., Work], args: Any, threads: int) -> Row:
    """Do a piece with the worker that this process built for the piece before, if that was of the same pass."""
    while _RELEASE:
        _RELEASE.pop().cancel()
    key = args.hex()
    worker = _KEPT.get(key)
    if worker is None:
        _KEPT.clear()  # two passes' models need not fit into memory together
        worker = _KEPT[key] = _Actor(work, args, threads)
    try:
        return worker(row)
    finally:
        timer = threading.Timer(KEEP_S, _KEPT.clear)
        timer.daemon = True
        timer.start()
        _RELEASE.append(timer)


class _Actor:
    """Unpacks a piece, runs the work with pinned threads, packs the record."""

    def __init__(self, work: Callable[..., Work], args: Any, threads: int) -> None:
        import ray
        import torch

        torch.set_num_threads(threads)
        self._work = work(*ray.get(args))
        self._node = ray.get_runtime_context().get_node_id()

    def __call__(self, row: Row) -> Row:
        return {"record": pickle.dumps({**self._work.run(pickle.loads(row["piece"])), "node": self._node})}
