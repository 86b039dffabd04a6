"""The data set written again in its own format: what stays, and what is set apart. Members are copied, never re-encoded."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import pyarrow as pa

from clipsan.stages.samples import Unit
from clipsan.stages.sources import SourceConfig, open_writer, read_unit

from ..core.commit import DamagedPartError, part_path, read_part
from ..core.parts import Parts
from ..core.pass_ import Done, Work
from ..core.place import AnyPath, remove, written
from ..core.run_folder import part_rows


@dataclass(frozen=True, kw_only=True)
class RewriteWork(Work):
    """Copies the pairs of a unit that belong to one kind; the part is their number, that of pairs that changed, and the file.

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
        with written(self.out) as folder:
            with open_writer(self.source, unit, folder) as writer:
                for pair in read_unit(self.source, unit):
                    # A rejected pair has no verdict, and a duplicate of a key must not follow the pair that owns it.
                    if pair.reject is not None or pair.image is None or pair.uid not in wanted:
                        continue
                    if wanted[pair.uid] == (sha256(pair.image).hexdigest(), pair.caption):
                        writer.copy(pair)
                        copied += 1
                    else:
                        changed += 1
            size = writer.path.stat().st_size if writer.path.is_file() else None
        made = {
            "copied": [copied],
            "changed": [changed],
            "file": [writer.shard],
            "size_bytes": pa.array([size], pa.int64()),
        }
        return Done(pairs=copied + changed, errors=changed, parts=(pa.table(made),))

    def _wanted(self, part: int) -> Iterator[tuple[str, tuple[str, str]]]:
        """Yield uid, and SHA-256 of the image and caption as they were scanned, of the pairs of this copy."""
        for row in self.verdicts.read(part, ["uid", "reasons", "image_sha256", "caption"]).to_pylist():
            if self.quarantine.isdisjoint(row["reasons"]) == (self.copy == "clean"):
                yield row["uid"], (row["image_sha256"], row["caption"])


def forget_broken(parts: AnyPath, out: AnyPath) -> None:
    """Forget the parts whose copies are gone or cut off, each named on stderr, so that they are written again.

    Args:
        parts: what RewriteWork committed.
        out: folder of the copy.
    """
    for number in part_rows(parts):
        try:
            (row,) = read_part(parts, number).to_pylist()
        except DamagedPartError:
            continue  # the pass makes it again itself
        size = row.get("size_bytes")
        if size is None:
            continue
        file = out / row["file"]
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            told = "is gone" if found is None else f"is damaged ({found:,} bytes, not {size:,})"
            sys.stderr.write(f"{file} {told} and is made again\n")
            remove(part_path(parts, number))
