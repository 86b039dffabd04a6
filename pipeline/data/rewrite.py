"""The data set written again in its own format: what stays, and what is set apart. Members are copied, never re-encoded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from clipsan.stages.samples import Unit
from clipsan.stages.sources import SourceConfig, open_writer, read_unit

from ..core.parts import Parts
from ..core.pass_ import Done, Work


@dataclass(frozen=True, kw_only=True)
class RewriteWork(Work):
    """Copies the pairs of a unit that belong to one kind; the part is their number."""

    source: SourceConfig
    kind: Literal["clean", "quarantine"]
    """clean: every scanned pair without a reason of `quarantine`; quarantine: those with one."""
    quarantine: frozenset[str]
    verdicts: Parts
    out: Path
    """Folder of the copy."""

    def do(self, piece: Unit, tools: None) -> Done:
        wanted = self._wanted(piece)
        copied = 0
        with open_writer(self.source, piece, self.out) as writer:
            for pair in read_unit(self.source, piece):
                # A rejected pair has no verdict, and a duplicate of a key must not follow the pair that owns it.
                if pair.reject is None and pair.uid in wanted:
                    writer.copy(pair)
                    copied += 1
        return Done(pairs=copied, parts=(pa.table({"copied": [copied]}),))

    def _wanted(self, unit: Unit) -> set[str]:
        table = self.verdicts.read(unit.index, ["uid", "reasons"])
        rows = zip(table.column("uid").to_pylist(), table.column("reasons").to_pylist(), strict=True)
        return {uid for uid, reasons in rows if self.quarantine.isdisjoint(reasons) == (self.kind == "clean")}
