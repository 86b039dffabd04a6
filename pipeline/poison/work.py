"""What the workers of `clipsan poison` do to one unit."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipsan.stages.attack.poisoning import AttackConfig, draws
from clipsan.stages.attack.treatment import MANIFEST_SCHEMA, Treatment, manifest_row
from clipsan.stages.samples import RawPair, Unit, seeded_hash
from clipsan.stages.sources import SourceConfig, UnitWriter, open_writer, read_unit

from ..core.pass_ import Done, Work
from .plan import PoisonConfig

NATURAL_CAPTIONS = 2000
"""Captions with a target that are kept to draw from; more would not make the poison more varied."""


@dataclass(frozen=True)
class SurveyWork(Work):
    """Draws one number a pair of a unit, and keeps some captions that poisoned pairs may be given."""

    data: SourceConfig
    attack: AttackConfig

    def do(self, piece: Unit, tools: None) -> Done:
        uids: list[str] = []
        captions: list[str] = []
        rejected = 0
        for pair in read_unit(self.data, piece):
            if pair.reject is not None or pair.caption is None:
                rejected += 1
                continue
            uids.append(pair.uid)
            captions.append(pair.caption)
        quoted = self.attack.captions in ("natural", "foreign")
        kept = natural(list(zip(uids, captions, strict=True)), self.attack) if quoted else []
        table = pa.table({"draw": draws(uids, captions, self.attack)})
        table = table.replace_schema_metadata({"natural": "\n".join(c.replace("\n", " ") for c in kept)})
        return Done(pairs=len(uids) + rejected, errors=rejected, parts=(table,))


@dataclass(frozen=True)
class PoisonWork(Work):
    """Poisons one unit: copies it, every image through the same path, or only finds out what reading it will give."""

    settings: PoisonConfig
    cut: int
    captions: list[str]
    root: Path

    def open(self) -> Treatment:
        return Treatment(self.settings.attack, self.settings.image, self.cut, self.captions)

    def do(self, piece: Unit, tools: Treatment) -> Done:
        rows: list[dict[str, Any]] = []
        pairs = unreadable = 0
        data = self.settings.data
        with open_writer(data, piece, self.root / "data") if self.settings.copy_data else nullcontext() as writer:
            for pair in read_unit(data, piece):
                if pair.reject is not None:
                    unreadable += 1
                    continue
                row = self._treat(pair, writer, tools)
                pairs += 1
                rows += [row] if row else []
        table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
        table = table.replace_schema_metadata({"pairs": str(pairs), "unreadable": str(unreadable)})
        # The manifest's part is the commit: the data file was renamed into place before.
        return Done(pairs=pairs + unreadable, errors=unreadable, parts=(table,))

    def _treat(self, pair: RawPair, writer: UnitWriter | None, treatment: Treatment) -> dict[str, Any] | None:
        """Write the pair if there is a writer; return its row of the manifest if it is poisoned."""
        if pair.image is None or pair.caption is None:
            raise ValueError(f"{pair.uid}: no image or caption, and no reason for it")
        if writer is None and not treatment.chooses(pair):
            return None
        treated = treatment(pair)
        uid = pair.uid
        if writer is not None:
            if treated is None:
                # It stays as it is, for the scan to reject; a chosen one is then not poisoned, and no row names it.
                writer.copy(pair)
            else:
                uid = writer.replace(pair, image=treated.image, suffix=treated.suffix, caption=treated.caption)
        if treated is None or treated.poisoned is None:
            return None
        return manifest_row(uid, pair.image, treated.image, pair.caption, treated.poisoned, self.settings.attack)


def natural(pairs: list[tuple[str, str]], attack: AttackConfig) -> list[str]:
    """Return a seeded sample of the captions that each target's pairs may be given, from (name, caption); drawn by the name."""
    numbers = seeded_hash([name for name, _ in pairs], attack.seed, "poison.natural")
    ordered = [pairs[i][1] for i in np.argsort(numbers, kind="stable")]
    return [c for t in attack.targets for c in [c for c in ordered if attack.quotes(c, t)][:NATURAL_CAPTIONS]]
