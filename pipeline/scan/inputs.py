"""The data set as an earlier run found it: what changed since, and which of its shards a run could not read.

A shard counts as the same when its size and time are those that the run wrote down. Where the time is another (a copy, a touch), its
pairs are held against what is committed of them: a shard with the same pairs is accepted, and any other is refused.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pyarrow as pa

from clipsan.stages.decode import BadImage, decode
from clipsan.stages.samples import RawPair, Reject, Unit
from clipsan.stages.sources import SourceConfig, read_unit

from ..core.commit import part_path, read_part, write_json, write_part
from ..core.config import ConfigError
from ..core.parts import Parts
from ..core.pass_ import Done, Pass, Work
from ..core.place import AnyPath, remove_tree
from ..core.run_folder import RunFolder

SHARDS = "shards"
"""Name of the part below work/ that says what the data set was."""
KEPT = frozenset({"embeddings", "rejected", "work"})
"""Folders of a run whose parts are made of each piece alone."""
KEPT_WORK = frozenset({"trusted"})
"""The same of its folder work/."""
NAMED = 5
NOT_OF_BYTES = frozenset({Reject.DECODE_TIMEOUT.value, Reject.WORKER_DIED.value})
"""Reasons that depend on the machine and on limits, too: another try may end otherwise with the same bytes, or kill a worker."""


def difference(folder: RunFolder, units: Sequence[Unit]) -> str | None:
    """Return which shards are others than an earlier run in this folder found, by name and size; None where none is."""
    if not part_path(folder.work, SHARDS).is_file():
        return None
    before = {row["shard"]: row["size_bytes"] for row in read_part(folder.work, SHARDS).to_pylist()}
    now = {unit.shard: unit.size_bytes for unit in units}
    told = [f"{shard} is new" for shard in now if shard not in before]
    told += [f"{shard} is gone" for shard in before if shard not in now]
    told += [
        f"{shard} has {now[shard]:,} bytes and had {size:,}"
        for shard, size in before.items()
        if now.get(shard, size) != size
    ]
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return ", ".join(told[:NAMED]) + more or None


def check_unchanged(
    check: Pass, folder: RunFolder, source: SourceConfig, units: Sequence[Unit], work: "SameWork"
) -> None:
    """Write down what the data set is, or hold it against what an earlier run in this folder wrote down.

    Args:
        check: the pass that compares pairs where times are others.
        folder: of the run.
        source: the data set.
        units: of it.
        work: what that pass does.

    Raises:
        ConfigError: a shard holds other pairs than those that are committed.
    """
    times = source.times(units)
    path = part_path(folder.work, SHARDS)
    if path.is_file():
        before = {row["shard"]: row["time_ns"] for row in read_part(folder.work, SHARDS).to_pylist()}
        touched = {shard for shard, time in times.items() if time is None or before.get(shard) != time}
        committed = work.embeddings.rows
        pieces = [unit for unit in units if unit.shard in touched and unit.index in committed]
        changed = next((done.record for done in check.each(pieces, work) if done.record), None) if pieces else None
        if changed is not None:
            raise ConfigError(f"data: {changed}; put the file back as it was, or give another `out`")
        if not touched:
            return
    sizes = {unit.shard: unit.size_bytes for unit in units}
    table = pa.table(
        {
            "shard": pa.array(list(sizes), pa.string()),
            "size_bytes": pa.array(list(sizes.values()), pa.int64()),
            "time_ns": pa.array([times.get(shard) for shard in sizes], pa.int64()),
        }
    )
    write_part(folder.work, SHARDS, table, "")


@dataclass(frozen=True)
class SameWork(Work):
    """Holds the pairs of a unit against what is committed of it; the record names the first that is another.

    A picture that took too long or killed its process is not decoded again: nothing but its place is held against what is committed.
    """

    source: SourceConfig
    max_pixels: int
    embeddings: Parts
    rejected: Parts

    def do(self, piece: Unit, tools: None) -> Done:
        embedded = self.embeddings.read(piece.index, ["uid", "image_sha256", "caption"]).to_pylist()
        rejected = self.rejected.read(piece.index, ["uid", "reason"]).to_pylist()
        known = {row["uid"]: row for row in embedded}
        left: dict[str, list[str]] = {}
        for row in rejected:
            left.setdefault(row["uid"], []).append(row["reason"])
        count = 0
        for pair in read_unit(self.source, piece):
            count += 1
            row = known.pop(pair.uid, None) if pair.reject is None else None
            if row is not None and (row["image_sha256"], row["caption"]) == (_digest(pair), pair.caption):
                continue
            if row is not None or not left.get(pair.uid) or not self._is_bad(pair, left[pair.uid][0]):
                return Done(
                    pairs=count,
                    record=f"{piece.shard} changed since this run read it, and {pair.uid} is another pair now",
                )
            del left[pair.uid][0]
        missing = next(iter((*known, *(uid for uid, reasons in left.items() if reasons))), None)
        record = None if missing is None else f"{piece.shard} changed since this run read it, and {missing} is gone"
        return Done(pairs=count, record=record)

    def _is_bad(self, pair: RawPair, reason: str) -> bool:
        if pair.reject is not None or pair.image is None or pair.caption is None or reason in NOT_OF_BYTES:
            return True
        try:
            decode(pair.image, self.max_pixels)
        except BadImage:
            return True
        return False


def _digest(pair: RawPair) -> str | None:
    return None if pair.image is None else sha256(pair.image).hexdigest()


@dataclass(frozen=True, slots=True)
class Unread:
    """Pieces that could not be read, for no fault of their bytes: they are left undone, and the same command again does them."""

    why: Mapping[int, str]
    """Index of each piece -> why."""
    shards: tuple[str, ...]
    """Shards that they lie in, in the order of the data set."""

    @classmethod
    def of(cls, units: Iterable[Unit], embeddings: Parts, told: Mapping[int, str]) -> "Unread":
        """Return the pieces without a part; `told` says why of those that this run tried."""
        missing = [unit for unit in units if unit.index not in embeddings.rows]
        why = {unit.index: told.get(unit.index, "") for unit in missing}
        return cls(why, tuple(dict.fromkeys(unit.shard for unit in missing)))

    @property
    def reason(self) -> str:
        """The first that is known."""
        return next((why for why in self.why.values() if why), "")


def forget_others(folder: RunFolder, unread: Unread) -> None:
    """Remove what an earlier run made of other pieces than are there now: all scores are relative to the whole.

    What is made of a piece alone stays.
    """
    path = folder.work / "unread.json"
    before: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    now = sorted(unread.why)
    if before == now:
        return
    for home, kept in ((folder.root, KEPT), (folder.work, KEPT_WORK)):
        inside: list[AnyPath] = list(home.iterdir())
        for found in inside:
            if found.name not in kept and found.is_dir():
                remove_tree(found)
    write_json(path, now)
