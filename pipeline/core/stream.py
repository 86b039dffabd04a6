"""A pass in two halves, as a stream of Ray Data: processes with CPUs read and decode, others hold the model and encode.

A cluster then gives each what it needs, and neither waits for the other: Ray Data bounds what lies between them by its share of the
object store, starts lost workers anew and does again what they had in hand. Pieces are committed as in any pass. What comes of a
piece of several blocks is committed block by block below `work/` first, because its blocks go to whoever is free, and put
together when all are there.
"""

import pickle
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa

from clipsan.stages.files import Unreachable
from clipsan.stages.guarded import carefully, expendable

from .cluster import ClusterConfig, PoolConfig, start_ray
from .commit import read_part, write_part, write_text
from .place import AnyPath, remove_tree
from .pool import MAX_LOST, WorkerLostError, check_gpus

PAUSES_S = (0.5, 2.0, 8.0)
"""Seconds before a piece whose input cannot be reached is tried again."""

LARGE_BYTES = 2**20
"""A buffer of this size travels beside the pickled rest of a block, and is not copied on its way."""


class Halves(Protocol):
    """What a stream does to a piece: a frozen dataclass of what it needs to know."""

    def open_reader(self) -> Any:
        """Load what reading needs, once a process."""
        ...

    def read(self, piece: Any, tools: Any) -> Iterator[Any]:
        """Yield the blocks of a piece, at least one; always the same ones."""
        ...

    def open_encoder(self) -> Any:
        """Load the model, once a process."""
        ...

    def encode(self, block: Any, tools: Any) -> tuple[pa.Table, pa.Table]:
        """Return the part that comes of a block, and the pairs that could not be used."""
        ...


@dataclass(frozen=True, slots=True)
class Commit:
    """Where parts go, and under which fingerprint."""

    folder: AnyPath
    rejected: AnyPath
    blocks: AnyPath
    """Where blocks of pieces that have several lie until all are there."""
    fingerprint: str

    def piece(self, key: int, part: pa.Table, rejected: pa.Table) -> None:
        """Commit a piece; its rejected pairs first, so that nothing counts as done without them."""
        write_part(self.rejected, key, rejected, self.fingerprint)
        write_part(self.folder, key, part, self.fingerprint)

    def block(self, key: int, number: int, part: pa.Table, rejected: pa.Table) -> None:
        """Commit one block of a piece."""
        write_part(self.blocks, f"{key}/part-{number}", part, self.fingerprint)
        write_part(self.blocks, f"{key}/rejected-{number}", rejected, self.fingerprint)

    def joined(self, key: int, count: int) -> None:
        """Commit a piece whose blocks are there, and remove them."""
        part, rejected = (
            pa.concat_tables(_unread(read_part(self.blocks, f"{key}/{name}-{number}")) for number in range(count))
            for name in ("part", "rejected")
        )
        self.piece(key, part, rejected)
        remove_tree(self.blocks / str(key))


def _unread(table: pa.Table) -> pa.Table:
    """Return a table as it was before it was written and read: Parquet names what is in a list, and a file says what made it."""
    fields = [
        field.with_type(pa.list_(field.type.value_type, field.type.list_size))
        if pa.types.is_fixed_size_list(field.type)
        else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


@dataclass(frozen=True, slots=True)
class Streamed:
    """What came of one piece."""

    pairs: int
    errors: int
    undone: str = ""
    """Why the piece is left undone; nothing of it is committed then."""
    key: int | None = None
    """Of a piece that is left undone."""


@dataclass(frozen=True, slots=True)
class _Block:
    """What is known of a block beside its content."""

    key: int
    number: int
    is_last: bool
    pairs: int = 0
    errors: int = 0
    undone: str = ""
    """Why there is neither this block nor one after it."""


def stream(
    rows: Sequence[tuple[int, Any]], work: Halves, commit: Commit, cluster: ClusterConfig, encoders: PoolConfig
) -> Iterator[Streamed]:
    """Do the pieces, commit each, and yield what came of it, as it comes.

    Args:
        rows: key of the part and piece.
        work: both halves.
        commit: where what they make goes.
        cluster: whose CPUs read and decode.
        encoders: the processes that hold the model.

    Raises:
        WorkerLostError: workers die on a piece again and again.
    """
    start_ray()
    import ray
    from ray.data import DataContext
    from ray.util.annotations import RayDeprecationWarning

    context = DataContext.get_current()
    before = context.target_max_block_size
    # Every block goes on its way as soon as it is there.
    context.target_max_block_size = 1
    sent = [ray.put((work, commit))]
    try:
        with warnings.catch_warnings():
            # The number of tries has no argument of its own yet: the release that we pin takes it among the others, and says so.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            encoded = _operators(ray.data, rows, sent, cluster, encoders)
        joining: list[Any] = []
        join = ray.remote(num_cpus=0)(_join)
        for key, blocks in _whole_pieces(encoded.iter_rows()):
            if undone := next((block.undone for block in blocks if block.undone), ""):
                yield Streamed(0, 0, undone, key)
                continue
            if len(blocks) > 1:
                joining.append(join.remote(sent, key, len(blocks)))
            yield Streamed(sum(block.pairs for block in blocks), sum(block.errors for block in blocks))
        ray.get(joining)
        remove_tree(commit.blocks)
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.WorkerCrashedError) as error:
        raise WorkerLostError(f"{1 + MAX_LOST} workers died on the same piece: {error}") from error
    finally:
        context.target_max_block_size = before


def _operators(
    data: Any, rows: Sequence[tuple[int, Any]], sent: list[Any], cluster: ClusterConfig, encoders: PoolConfig
) -> Any:
    """Return the lazy data set of what is known of the encoded blocks."""
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    gpus = cluster.gpus_per_worker if encoders.gpus_per_worker is None else encoders.gpus_per_worker
    check_gpus(cluster, gpus)
    # An encoder waits for its GPU, not for a CPU.
    cpus = 0 if gpus else cluster.threads_per_worker
    total = ray.cluster_resources()
    size = encoders.workers or (max(1, int(total.get("GPU", 1) / gpus)) if gpus else 1)
    readers = max(1, int(total.get("CPU", 1)) - size * cpus)
    items = data.from_items([{"row": pickle.dumps(row)} for row in rows], override_num_blocks=len(rows))
    blocks = items.map_batches(
        _read,
        fn_args=(sent,),
        batch_size=1,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(min(readers, len(rows))),
        num_cpus=1,
        # Ray Data would try for ever. Being an argument that encoders lack, it also keeps both halves out of one process.
        max_retries=MAX_LOST,
    )
    return blocks.map_batches(
        _Encode,
        fn_constructor_args=(sent, cluster.threads_per_worker),
        # A block is one row. With GPUs Ray Data wants to be told a number.
        batch_size=1,
        batch_format="pyarrow",
        # A pool that may shrink outlives the loss of a node; the next blocks are fetched while one is encoded.
        compute=ActorPoolStrategy(min_size=1, max_size=size, initial_size=size, max_tasks_in_flight_per_actor=4),
        num_cpus=cpus,
        num_gpus=gpus,
        max_task_retries=MAX_LOST,
        resources=dict(encoders.resources) or None,
    )


def _whole_pieces(records: Iterator[dict[str, Any]]) -> Iterator[tuple[int, list[_Block]]]:
    """Yield the pieces whose blocks are all there; a block that was encoded twice counts once."""
    waiting: dict[int, dict[int, _Block]] = {}
    whole: set[int] = set()
    for record in records:
        block: _Block = pickle.loads(record["record"])
        if block.key in whole:
            continue
        found = waiting.setdefault(block.key, {})
        found[block.number] = block
        last = next((number for number, one in found.items() if one.is_last), None)
        if last is not None and len(found) == last + 1:
            whole.add(block.key)
            yield block.key, list(waiting.pop(block.key).values())


_READER: dict[str, Any] = {}
"""What this process has opened to read with, by the task that it was opened for."""


def _read(table: pa.Table, sent: list[Any]) -> Iterator[pa.Table]:
    import ray
    import torch

    expendable()
    work, commit = ray.get(sent[0])
    name = sent[0].hex()
    if name not in _READER:
        torch.set_num_threads(1)
        _READER.clear()
        _READER[name] = work.open_reader()
    for packed in table.column("row").to_pylist():
        key, piece = pickle.loads(packed)
        # Ray does a task again whose process died, and says nothing of it
        mark = commit.blocks / f"begun-{name}" / str(key)
        with carefully(mark.is_file()):
            write_text(mark, "")
            for known, block in _blocks(work, key, piece, _READER[name]):
                yield _packed(known, block)


def _blocks(work: Halves, key: int, piece: Any, tools: Any) -> Iterator[tuple[_Block, Any]]:
    """Yield the blocks of a piece; where its input cannot be reached, it is read again from its start after each pause."""
    number = 0
    for pause_s in (*PAUSES_S, None):
        try:
            blocks = islice(work.read(piece, tools), number, None)
            block = next(blocks)
            for after in blocks:
                yield _Block(key, number, is_last=False), block
                number, block = number + 1, after
            yield _Block(key, number, is_last=True), block
            return
        except Unreachable as error:
            if pause_s is None:
                yield _Block(key, number, is_last=True, undone=str(error)), None
                return
            time.sleep(pause_s)


def _packed(known: _Block, block: Any) -> pa.Table:
    """Return a table of one row: what is small is pickled, what is large lies beside it."""
    large: list[pickle.PickleBuffer] = []

    def stays_in(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < LARGE_BYTES:
            return True
        large.append(buffer)
        return False

    head = pickle.dumps((known, block), protocol=5, buffer_callback=stays_in)
    columns: dict[str, pa.Array] = {"head": pa.array([head], pa.large_binary())}
    for number, buffer in enumerate(large):
        content = pa.py_buffer(buffer.raw())
        ends = pa.py_buffer((0).to_bytes(8, "little") + content.size.to_bytes(8, "little"))
        columns[f"large-{number}"] = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, content])
    return pa.table(columns)


def _unpacked(table: pa.Table) -> Iterator[tuple[_Block, Any]]:
    """Yield the blocks of a table; what is large is not copied."""
    beside = [name for name in table.column_names if name.startswith("large-")]
    for row in range(table.num_rows):
        cells = (table.column(name)[row] for name in beside)
        large = [cell.as_buffer() for cell in cells if cell.is_valid]
        yield pickle.loads(table.column("head")[row].as_py(), buffers=large)


class _Encode:
    """The second half, in a process that holds the model."""

    def __init__(self, sent: list[Any], threads: int) -> None:
        import ray
        import torch

        torch.set_num_threads(threads)
        work, self._commit = ray.get(sent[0])
        self._work: Halves = work
        self._tools = work.open_encoder()

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.table({"record": [pickle.dumps(self._encoded(*found)) for found in _unpacked(table)]})

    def _encoded(self, known: _Block, block: Any) -> _Block:
        if known.undone:
            return known
        part, rejected = self._work.encode(block, self._tools)
        if known.is_last and known.number == 0:
            self._commit.piece(known.key, part, rejected)
        else:
            self._commit.block(known.key, known.number, part, rejected)
        return replace(known, pairs=part.num_rows + rejected.num_rows, errors=rejected.num_rows)


def _join(sent: list[Any], key: int, count: int) -> None:
    import ray

    _, commit = ray.get(sent[0])
    commit.joined(key, count)
