"""The data set written again in its own format: what stays, and what is set apart. Members are copied, never re-encoded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import pyarrow as pa

from clipsan.stages.samples import Unit
from clipsan.stages.sources import SourceConfig, open_writer, read_unit

from ..core.parts import Parts
from ..core.pass_ import Done, Work
from ..core.place import AnyPath, written


@dataclass(frozen=True, kw_only=True)
class RewriteWork(Work):
    """Copies the pairs of a unit that belong to one kind; the part is their number, and that of pairs that changed.

    A piece is a unit and the parts of the verdicts that speak of it.

    A pair whose image or caption is another now than when it was scanned is left out: its verdict says nothing of it.
    """

    source: SourceConfig
    copy: Literal["clean", "quarantine"]
    """clean: every scanned pair without a reason of `quarantine`; quarantine: those with one."""
    quarantine: frozenset[str]
    verdicts: Parts
    out: AnyPath
    """Folder of the copy."""

    def do(self, piece: tuple[Unit, Sequence[int]], tools: None) -> Done:
        unit, parts = piece
        wanted = {uid: scanned for part in parts for uid, scanned in self._wanted(part)}
        copied = changed = 0
        with written(self.out) as folder, open_writer(self.source, unit, folder) as writer:
            for pair in read_unit(self.source, unit):
                # A rejected pair has no verdict, and a duplicate of a key must not follow the pair that owns it.
                if pair.reject is not None or pair.image is None or pair.uid not in wanted:
                    continue
                if wanted[pair.uid] == (sha256(pair.image).hexdigest(), pair.caption):
                    writer.copy(pair)
                    copied += 1
                else:
                    changed += 1
        return Done(
            pairs=copied + changed, errors=changed, parts=(pa.table({"copied": [copied], "changed": [changed]}),)
        )

    def _wanted(self, part: int) -> Iterator[tuple[str, tuple[str, str]]]:
        """Yield uid, and SHA-256 of the image and caption as they were scanned, of the pairs of this copy."""
        for row in self.verdicts.read(part, ["uid", "reasons", "image_sha256", "caption"]).to_pylist():
            if self.quarantine.isdisjoint(row["reasons"]) == (self.copy == "clean"):
                yield row["uid"], (row["image_sha256"], row["caption"])
