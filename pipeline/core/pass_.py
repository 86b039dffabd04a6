"""A pass over the data: pieces of work by name, done by Ray's workers, each committed as parts of its own.

Only names and small records travel between processes; bytes are read, and results written, where the work is done.
"""

import os
import pickle
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from clipsan.stages.files import Unreachable
from clipsan.stages.guarded import carefully

from .cluster import ClusterConfig, PoolConfig
from .commit import Key, missing_parts, write_json, write_part, write_text
from .place import AnyPath
from .pool import workers
from .progress import Progress
from .run_folder import RunFolder
from .stream import PAUSES_S, Commit, stream

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What came of one piece."""

    pairs: int
    """Pairs that were looked at."""
    errors: int = 0
    """Those of them that could not be used."""
    parts: tuple[pa.Table, ...] = ()
    """To be committed under the keys of the piece, in their order; none of a pass without a folder."""
    rejected: pa.Table | None = None
    """The pairs that could not be used, committed before the part: nothing counts as done without its rejected pairs."""
    record: Any = None
    """What the driver is told: small and picklable."""
    node: str = ""
    """The machine that it was done on; filled in by the pass."""
    undone: str = ""
    """Why the piece is left undone (see `Pass.leaves_undone`): then nothing of it is committed."""
    key: Any = None
    """Of a piece that is left undone: the key of its part."""


class Work(ABC):
    """What a pass does to a piece: a frozen dataclass of what it needs to know, sent to every worker process once."""

    def open(self) -> Any:
        """Load what is heavy, once a process; what it returns is handed to every `do`."""
        return None

    @abstractmethod
    def do(self, piece: Any, tools: Any) -> Done:
        """Do one piece with what `open` returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass: where its parts lie, what made them, and which workers do it.

    With a folder, pieces whose parts are committed already are not done again, and `clipsan status` lists the pass; without one
    every piece is done, and only records come back.
    """

    name: str
    """For progress and status."""
    cluster: ClusterConfig
    run: RunFolder | None = None
    """The run that it belongs to."""
    folder: str | None = None
    """Where its parts are committed, below the run's root."""
    rejected: str | None = None
    """Where the pairs that it could not use are named, below the run's root."""
    fingerprint: str = ""
    """Of everything that decides its parts."""
    loads_model: bool = False
    """Whether its workers hold a model, and so need the GPU where workers have a share of one."""
    encoders: PoolConfig | None = None
    """Workers of a stream's second half; None: workers do the whole of a piece. Otherwise the work has two halves, see
    `core.stream`, and its pass a folder for the pairs that it could not use."""
    ordered: bool = False
    """Whether records come in the order of the pieces (for sums whose rounding must not depend on timing)."""
    pairs: int | None = None
    """Pairs of the data set that it goes over, about; None: not known. Of few it is done by this process itself."""
    pool: PoolConfig | None = None
    """Where workers that hold a model run, when not where those of other passes do."""
    leaves_undone: bool = False
    """Whether a piece whose input cannot be reached, or that keeps killing its workers, is left undone and told of in its `Done`;
    otherwise it ends the pass. The same pass again does it."""

    @property
    def home(self) -> AnyPath:
        """The folder of the parts."""
        assert self.run is not None
        assert self.folder is not None
        return self.run.root / self.folder

    def do(self, pieces: Mapping[Any, Any] | Sequence[Any], work: Work) -> list[Done]:
        """Do what is missing and return what came of it; see `each`."""
        return list(self.each(pieces, work))

    def each(self, pieces: Mapping[Any, Any] | Sequence[Any], work: Work) -> Iterator[Done]:
        """Do what is missing and yield what comes of it, as it comes.

        Args:
            pieces: what `work` is given, by the key of its part (a tuple of keys for a piece with several parts); a plain
                sequence for a pass without a folder.
            work: what is done to each.

        Raises:
            FingerprintError: the folder holds parts that other settings made.
            Unreachable: the input of a piece cannot be reached, and the pass leaves none undone.
        """
        named: Mapping[Any, Any] = pieces if isinstance(pieces, Mapping) else dict(enumerate(pieces))
        todo = self._missing(named)
        if self.folder is not None:
            self._register(sum(len(_keys(key)) for key in named))
        if not todo:
            return
        task = _Task(work, self._committer(), self.leaves_undone)
        rows = [(key, named[key]) for key in todo]
        if self.is_alone:
            yield from self._here(rows, task, total=len(named))
            return
        if self.encoders is not None:
            yield from self._streamed(rows, work, self.encoders, total=len(named))
            return
        yield from self._on_ray(rows, task, total=len(named))

    @property
    def is_alone(self) -> bool:
        """Whether this process does it: it is told to, or to start workers would take longer than the work."""
        return _HERE.get() or self._is_small()

    def _is_small(self) -> bool:
        cluster, pool = self.cluster, self.pool or self.encoders or PoolConfig()
        placed = cluster.address is not None or cluster.gpus_per_worker or pool.gpus_per_worker or pool.resources
        return not placed and self.pairs is not None and self.pairs < cluster.alone_below_pairs

    def _here(self, rows: Sequence[tuple[Any, Any]], task: "_Task", *, total: int) -> Iterator[Done]:
        """Do the pieces in this process, with as many threads each as a worker has, so that the results are those of workers."""
        import torch
        from threadpoolctl import threadpool_limits

        side_by_side = 1 if _HERE.get() else min(self.cluster.worker_count(), len(rows))
        threads = torch.get_num_threads()
        try:
            with (
                threadpool_limits(self.cluster.threads_per_worker),
                self._carefully_again(),
                self._progress(total, len(rows)) as progress,
            ):
                torch.set_num_threads(self.cluster.threads_per_worker)
                found = task.all(rows) if side_by_side == 1 else self._side_by_side(rows, task, side_by_side)
                for done in found:
                    progress.advance(pairs=done.pairs, errors=done.errors)
                    yield done
        finally:
            torch.set_num_threads(threads)

    @contextmanager
    def _carefully_again(self) -> Iterator[None]:
        """Leave word that this process is at the pass; where an earlier one was and died, be careful."""
        if self.run is None or self.folder is None or not isinstance(self.run.work, Path):
            yield
            return
        mark = self.run.work / f".{self.name.replace(' ', '-')}.here"
        with carefully(mark.exists()):
            write_text(mark, f"{os.getpid()}\n")
            yield
            # not where something was raised: whatever it was, the next process is careful
            mark.unlink(missing_ok=True)

    def _side_by_side(self, rows: Sequence[tuple[Any, Any]], task: "_Task", count: int) -> Iterator[Done]:
        """Do the pieces in threads: the model and the decoder leave Python's lock to the others while they compute."""
        import torch

        own = threading.local()

        def do(row: tuple[Any, Any]) -> Done:
            if not hasattr(own, "tools"):
                torch.set_num_threads(self.cluster.threads_per_worker)
                own.tools = task.work.open()
            return task.do(*row, own.tools)

        pool = ThreadPoolExecutor(count)
        try:
            yield from pool.map(do, rows)
        finally:
            pool.shutdown(cancel_futures=True)

    def _progress(self, total: int, left: int) -> Progress:
        return Progress(self.name, total=total, done=total - left)

    def _missing(self, named: Mapping[Any, Any]) -> list[Any]:
        if self.folder is None:
            return list(named)
        missing = set(missing_parts(self.home, [key for keys in named for key in _keys(keys)], self.fingerprint))
        if self.rejected is not None and self.run is not None:
            first = [_keys(keys)[0] for keys in named if missing.isdisjoint(_keys(keys))]
            missing |= set(missing_parts(self.run.root / self.rejected, first, self.fingerprint))
        return [keys for keys in named if not missing.isdisjoint(_keys(keys))]

    def _register(self, total: int) -> None:
        """Leave word for `clipsan status`: name, folder and number of parts, in the order in which passes began."""
        assert self.run is not None
        known, entry = self.run.begun(), {"folder": self.folder, "parts": total}
        if known.get(self.name) != entry:
            write_json(self.run.passes, {**known, self.name: entry})

    def _committer(self) -> "_Committer | None":
        if self.folder is None:
            return None
        assert self.run is not None
        rejected = None if self.rejected is None else self.run.root / self.rejected
        return _Committer(self.home, rejected, self.fingerprint)

    def _on_ray(self, rows: Sequence[tuple[Any, Any]], task: "_Task", *, total: int) -> Iterator[Done]:
        pool = self.pool or PoolConfig()
        size = pool.workers or self.cluster.worker_count()
        packed = [pickle.dumps(row) for row in rows]
        with (
            workers(self.cluster, pool, with_model=self.loads_model) as found,
            self._progress(total, len(rows)) as progress,
        ):
            given_up = _left_undone if self.leaves_undone else None
            for record in found.each(task, packed, size=size, ordered=self.ordered, given_up=given_up):
                done: Done = pickle.loads(record)
                progress.advance(pairs=done.pairs, errors=done.errors)
                yield done

    def _streamed(
        self, rows: Sequence[tuple[Any, Any]], work: Any, encoders: PoolConfig, *, total: int
    ) -> Iterator[Done]:
        assert self.run is not None
        assert self.rejected is not None
        blocks = self.run.work / "blocks" / self.name.replace(" ", "-")
        commit = Commit(self.home, self.run.root / self.rejected, blocks, self.fingerprint)
        with self._progress(total, len(rows)) as progress:
            for done in stream(rows, work, commit, self.cluster, encoders):
                if done.undone and not self.leaves_undone:
                    raise Unreachable(done.undone)
                progress.advance(pairs=done.pairs, errors=done.errors)
                yield Done(pairs=done.pairs, errors=done.errors, undone=done.undone, key=done.key)


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


def patiently(do: Callable[[], T]) -> T:
    """Do something, and again after each of PAUSES_S where its input cannot be reached.

    Raises:
        Unreachable: it could not be reached to the last.
    """
    for pause_s in PAUSES_S:
        try:
            return do()
        except Unreachable:
            time.sleep(pause_s)
    return do()


def _left_undone(piece: bytes, why: str) -> bytes:
    """Return the record of a piece that kept killing its workers."""
    key, _ = pickle.loads(piece)
    return pickle.dumps(Done(pairs=0, undone=why, key=key))


def _keys(key: Any) -> tuple[Key, ...]:
    return key if isinstance(key, tuple) else (key,)


@dataclass(frozen=True, slots=True)
class _Committer:
    """Where a worker commits what it made, and under which fingerprint."""

    folder: AnyPath
    rejected: AnyPath | None
    fingerprint: str

    def __call__(self, keys: tuple[Key, ...], done: Done) -> None:
        if self.rejected is not None and done.rejected is not None:
            write_part(self.rejected, keys[0], done.rejected, self.fingerprint)
        for key, table in zip(keys, done.parts, strict=True):
            write_part(self.folder, key, table, self.fingerprint)


@dataclass(frozen=True, slots=True)
class _Task:
    """What travels to the workers once a pass."""

    work: Work
    commit: _Committer | None
    leaves_undone: bool

    def do(self, key: Any, piece: Any, tools: Any) -> Done:
        try:
            done = patiently(lambda: self.work.do(piece, tools))
        except Unreachable as error:
            if not self.leaves_undone:
                raise
            return Done(pairs=0, undone=str(error), key=key)
        if self.commit is not None:
            self.commit(_keys(key), done)
        return replace(done, parts=(), rejected=None)

    def all(self, rows: Sequence[tuple[Any, Any]]) -> Iterator[Done]:
        tools = self.work.open()
        return (self.do(key, piece, tools) for key, piece in rows)

    def open(self) -> "_Opened":
        return _Opened(self, self.work.open())


@dataclass(frozen=True, slots=True)
class _Opened:
    """A work opened in one process."""

    task: _Task
    tools: Any

    def __call__(self, piece: bytes, node: str) -> bytes:
        key, own = pickle.loads(piece)
        return pickle.dumps(replace(self.task.do(key, own, self.tools), node=node))
