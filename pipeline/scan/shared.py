"""Pairs that share a uid: never is one of them kept out of the clean copy and another allowed.

The uid is the one of the lists (`uid_hex`): a data set's own, which a stranger may have given to two pairs of different shards, or that
of shard and key. Who takes pairs by such a list takes both, so the stricter verdict holds for both.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from clipsan.stages.samples import UID_DTYPE, uid_array, uid_rows
from clipsan.stages.verdicts import Reason, Verdict

from ..core.commit import write_part
from ..core.parts import Parts, has_any
from ..core.pass_ import Done, Pass, Work


def settle_shared(gather: Pass, settle: Pass, verdicts: Parts, kept_out: frozenset[str], fingerprint: str) -> None:
    """Give the pairs that share their uid with one that is kept out the reason SHARED_UID.

    Only the uids of those that are kept out are gathered, 16 bytes each: a few in a hundred pairs. The parts are the same however
    often this is done.

    Args:
        gather: the pass that gathers them.
        settle: the pass that looks for them in all parts, and writes those anew in which it finds one.
        verdicts: the verdicts as they were committed.
        kept_out: reasons that keep a pair out of the clean copy.
        fingerprint: of the verdicts.
    """
    blocks = [done.record for done in gather.each(verdicts.numbers, KeptOutWork(verdicts, kept_out))]
    uids = uid_array(blocks)
    if len(uids):
        settle.do(verdicts.numbers, SharedWork(verdicts, kept_out, uids, fingerprint))


@dataclass(frozen=True)
class KeptOutWork(Work):
    """The record is the uids of the pairs of a part that are kept out."""

    verdicts: Parts
    kept_out: frozenset[str]

    def do(self, piece: int, tools: None) -> Done:
        table = self.verdicts.read(piece, ["uid_hex", "reasons"])
        out = has_any(table.column("reasons"), self.kept_out)
        return Done(pairs=table.num_rows, record=uid_rows(table.column("uid_hex").filter(pa.array(out)).to_pylist()))


@dataclass(frozen=True)
class SharedWork(Work):
    """Writes a part anew where a pair of it shares its uid with one that is kept out, and is not kept out itself."""

    verdicts: Parts
    kept_out: frozenset[str]
    uids: np.ndarray
    """`[n] (u8, u8)`, sorted."""
    fingerprint: str

    def do(self, piece: int, tools: None) -> Done:
        table = self.verdicts.read(piece, ["uid_hex", "reasons"])
        rows = uid_rows(table.column("uid_hex").to_pylist())
        shared = among(rows, self.uids) & ~has_any(table.column("reasons"), self.kept_out)
        if shared.any():
            write_part(self.verdicts.folder, piece, stricter(self.verdicts.read(piece), shared), self.fingerprint)
        return Done(pairs=table.num_rows, errors=int(shared.sum()))


def stricter(table: pa.Table, shared: np.ndarray) -> pa.Table:
    """Return verdicts in which the pairs `shared` (`[N] bool`) have the reason SHARED_UID, and are suspect at the least."""
    changed: Mapping[str, list[object]] = {
        "reasons": [
            [*reasons, Reason.SHARED_UID.value] if own else reasons
            for reasons, own in zip(table.column("reasons").to_pylist(), shared, strict=True)
        ],
        "verdict": [
            Verdict.SUSPECT.value if own and verdict == Verdict.CLEAN.value else verdict
            for verdict, own in zip(table.column("verdict").to_pylist(), shared, strict=True)
        ],
    }
    for name, values in changed.items():
        at = table.schema.get_field_index(name)
        kind = pa.list_(pa.string()) if name == "reasons" else pa.string()
        table = table.set_column(at, name, pa.array(values, kind))
    return table


def among(rows: np.ndarray, uids: np.ndarray) -> np.ndarray:
    """Return `[N] bool`: which of some uids are among others, which are sorted; both `(u8, u8)`."""
    found = np.zeros(len(rows), bool)
    if not len(uids):
        return found
    at = np.minimum(np.searchsorted(uids["f0"], rows["f0"]), len(uids) - 1)
    likely = np.flatnonzero(uids["f0"][at] == rows["f0"])  # of random uids hardly any but those that are there
    wanted = set(uids[np.isin(uids["f0"], rows["f0"][likely])].tolist()) if len(likely) else set()
    found[likely] = [uid in wanted for uid in rows[likely].tolist()]
    assert rows.dtype == UID_DTYPE
    return found
