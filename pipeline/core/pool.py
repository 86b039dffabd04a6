"""Worker processes that outlive a pass: what one has imported and loaded serves every pass of a verb.

Ray Data would start a pool of actors for each pass and end it with the pass, which costs every process the import of torch and the
loading of a model again. Pieces are handed out one by one to whoever is free; what a lost worker had in hand is done by another.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from clipsan.stages.guarded import carefully, expendable

from .cluster import ClusterConfig, PoolConfig, join_ray, session_pools
from .config import ConfigError

MAX_LOST = 3
"""Workers that a piece may lose before it is held to be what kills them."""


class WorkerLostError(RuntimeError):
    """Workers die on a piece again and again, or cannot start."""


class Opens(Protocol):
    """What a worker is sent once a pass."""

    def open(self) -> "Does":
        """Load what is heavy."""
        ...


class Does(Protocol):
    """A work that was opened: it is called with a pickled piece and returns a pickled record."""

    def __call__(self, piece: bytes, node: str) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Place:
    """What a worker takes of the machine that it runs on."""

    threads: int
    gpus: float = 0.0
    resources: tuple[tuple[str, float], ...] = ()

    @property
    def cpus(self) -> int:
        """CPUs of Ray's account. Who is bound to a GPU or to a machine takes none: passes come one after the other, and while
        one pool works the CPUs of the others are idle."""
        return 0 if self.gpus or self.resources else self.threads


@contextmanager
def workers(cluster: ClusterConfig, pool: PoolConfig, *, with_model: bool) -> Iterator["Pool"]:
    """Give the workers of a pass: those of the session around it, or some of its own that end with it.

    Raises:
        ConfigError: workers are to have GPUs, and a private Ray finds none.
    """
    join_ray()
    gpus = cluster.gpus_per_worker if pool.gpus_per_worker is None else pool.gpus_per_worker
    place = Place(cluster.threads_per_worker, gpus if with_model else 0.0, tuple(sorted(pool.resources.items())))
    check_gpus(cluster, place.gpus)
    pools = session_pools()
    if pools is not None:
        yield pools.setdefault(place, Pool(place))
        return
    own = Pool(place)
    try:
        yield own
    finally:
        own.end()


def check_gpus(cluster: ClusterConfig, share: float) -> None:
    """Refuse workers that would wait for a GPU for ever.

    Raises:
        ConfigError: each is to have a share of one, and a private Ray finds none.
    """
    import ray

    if share and cluster.address is None and ray.cluster_resources().get("GPU", 0) < share:
        raise ConfigError(
            f"gpus_per_worker={share:g}: this machine has no GPU that Ray finds; leave it at 0, or join a cluster "
            "(cluster.address)"
        )


@dataclass(slots=True)
class Pool:
    """Worker processes of one kind."""

    place: Place
    _starting: dict[Any, Any] = field(default_factory=dict)
    """Ray's reference of a start -> the worker."""
    _idle: list[Any] = field(default_factory=list)
    _failed: int = 0
    """Starts that failed since one came to its end."""

    def each(
        self,
        task: Opens,
        pieces: Sequence[bytes],
        *,
        size: int,
        ordered: bool,
        given_up: Callable[[bytes, str], bytes] | None = None,
    ) -> Iterator[bytes]:
        """Do the pieces in at most `size` processes and yield their records, as they come or in the order of the pieces.

        Args:
            task: what is done.
            pieces: to what.
            size: processes.
            ordered: whether records come in the order of the pieces.
            given_up: returns the record of a piece that keeps killing its workers, told why; None: that ends the pass.

        Raises:
            WorkerLostError: workers die again and again.
            Exception: what a work raised.
        """
        import ray

        lost = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.WorkerCrashedError)
        sent = ray.put(task)
        waiting = deque(enumerate(pieces))
        busy: dict[Any, tuple[Any, int]] = {}
        done: dict[int, bytes] = {}
        losses: Counter[int] = Counter()
        following = 0
        try:
            while waiting or busy:
                self._grow(min(size, len(waiting) + len(busy)) - len(busy))
                while self._idle and waiting and len(busy) < size:
                    worker, (number, piece) = self._idle.pop(), waiting.popleft()
                    busy[worker.do.remote([sent], piece, losses[number] > 0)] = (worker, number)
                (ref,), _ = ray.wait([*busy, *self._starting], num_returns=1)
                if ref in self._starting:
                    self._started(ref, size)
                    continue
                worker, number = busy.pop(ref)
                try:
                    done[number] = ray.get(ref)
                except lost as error:
                    ray.kill(worker)
                    losses[number] += 1
                    self._look_at_idle()
                    if losses[number] <= MAX_LOST:
                        waiting.appendleft((number, pieces[number]))
                        continue
                    why = f"{losses[number]} workers died on the same piece"
                    if given_up is None:
                        raise WorkerLostError(f"{why}: {error}") from error
                    done[number] = given_up(pieces[number], why)
                except ray.exceptions.RayTaskError as error:
                    self._idle.append(worker)
                    raise error.cause from error
                else:
                    self._idle.append(worker)
                while done and (not ordered or following in done):
                    yield done.pop(following if ordered else number)
                    following += 1
        finally:
            # Whoever still works on something when a pass is given up must not do so beside the next one.
            for worker, _ in busy.values():
                ray.kill(worker)

    def _grow(self, wanted: int) -> None:
        """Ask for workers until so many are idle or starting; Ray starts them where there is room, and when there is."""
        import ray

        make = ray.remote(Worker).options(
            num_cpus=self.place.cpus, num_gpus=self.place.gpus, resources=dict(self.place.resources) or None
        )
        while len(self._starting) + len(self._idle) < wanted:
            worker = make.remote(self.place.threads)
            self._starting[worker.ready.remote()] = worker

    def _look_at_idle(self) -> None:
        """Ask the idle workers whether they live: a node takes all of its own with it, and no piece shall pay for them."""
        for worker in self._idle:
            self._starting[worker.ready.remote()] = worker
        self._idle.clear()

    def _started(self, ref: Any, size: int) -> None:
        import ray

        worker = self._starting.pop(ref)
        try:
            ray.get(ref)
        except ray.exceptions.RayError as error:
            self._failed += 1
            if self._failed > size + MAX_LOST:
                raise WorkerLostError(f"no worker can start: {error}") from error
            return
        self._failed = 0
        self._idle.append(worker)

    def end(self) -> None:
        """End the processes; the next pass starts others."""
        import ray

        for worker in (*self._idle, *self._starting.values()) if ray.is_initialized() else ():
            ray.kill(worker)
        self._idle.clear()
        self._starting.clear()


class Worker:
    """One worker process; it holds what the pass under way has opened, and whatever modules keep for themselves."""

    def __init__(self, threads: int) -> None:
        import ray
        import torch

        expendable()
        torch.set_num_threads(threads)
        self._node = ray.get_runtime_context().get_node_id()
        self._task = ""
        self._opened: Does | None = None

    def ready(self) -> None:
        """Return when the process stands."""

    def do(self, sent: list[Any], piece: bytes, careful: bool) -> bytes:
        """Do one piece of the pass whose task was sent; carefully, where a worker died on it."""
        import ray

        (ref,) = sent
        if self._opened is None or ref.hex() != self._task:
            self._opened = None  # what two passes load need not fit into memory together
            task: Opens = ray.get(ref)
            self._opened, self._task = task.open(), ref.hex()
        with carefully(careful):
            return self._opened(piece, self._node)
