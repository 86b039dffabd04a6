"""The data set written again in its own format: what stays, and what is set apart. Members are copied, never re-encoded."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from clipsan.stages.samples import Unit
from clipsan.stages.sources import SourceConfig, open_writer, read_unit

from ..core.cluster import ClusterConfig
from ..core.commit import missing_parts, read_part, write_part
from ..core.pass_old import Row, run_pass

KINDS = ("clean", "quarantine")


class RewriteWork:
    """Copies the pairs of a unit that belong to one kind, then commits their number."""

    def __init__(
        self,
        source: SourceConfig,
        kind: str,
        quarantine: frozenset[str],
        verdicts: Path,
        out: Path,
        done: Path,
        mark: str,
    ) -> None:
        self._source = source
        self._kind = kind
        self._quarantine = quarantine
        self._verdicts = verdicts
        self._out = out
        self._done = done
        self._mark = mark

    def run(self, piece: Unit) -> Row:
        wanted = self._wanted(piece)
        copied = 0
        with open_writer(self._source, piece, self._out) as writer:
            for pair in read_unit(self._source, piece):
                # A rejected pair has no verdict, and a duplicate of a key must not follow the pair that owns it.
                if pair.reject is None and pair.uid in wanted:
                    writer.copy(pair)
                    copied += 1
        write_part(self._done, piece.index, pa.table({"copied": [copied]}), self._mark)
        return {"pairs": copied}

    def _wanted(self, unit: Unit) -> set[str]:
        table = read_part(self._verdicts, unit.index, ["uid", "reasons"])
        rows = zip(table.column("uid").to_pylist(), table.column("reasons").to_pylist(), strict=True)
        return {uid for uid, reasons in rows if self._quarantine.isdisjoint(reasons) == (self._kind == "clean")}


def rewrite(
    source: SourceConfig,
    units: list[Unit],
    kind: str,
    *,
    quarantine: frozenset[str],
    verdicts: Path,
    out: Path,
    done: Path,
    mark: str,
    cluster: ClusterConfig,
) -> int:
    """Write one copy of the data set and return how many pairs it holds.

    Args:
        kind: "clean" (every scanned pair without a reason of `quarantine`) or "quarantine" (those with one).
        verdicts: folder of the verdict parts.
        out: folder of the copy.
        done: folder of the commit records, one a unit.
        mark: fingerprint of verdicts and quarantine rule.
    """
    todo = set(missing_parts(done, [u.index for u in units], mark))
    args: tuple[Any, ...] = (source, kind, quarantine, verdicts, out, done, mark)
    for _ in run_pass(
        f"write {kind}", [u for u in units if u.index in todo], RewriteWork, args, cluster=cluster, total=len(units)
    ):
        pass
    return sum(read_part(done, u.index).column("copied")[0].as_py() for u in units)
