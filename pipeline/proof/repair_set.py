"""The compact set from which `clipsan repair` learns, written as a Parquet data set of its own: OUT/repair/."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from clipsan.stages.dossier.dossier import Dossier
from clipsan.stages.dossier.repair_set import (
    SCHEMA,
    Candidate,
    RepairRole,
    RepairSetConfig,
    candidates,
    make_row,
    merge,
    plan,
)
from clipsan.stages.model.clip import Clip
from clipsan.stages.proof.disagreement import Suspect
from clipsan.stages.samples import Unit
from clipsan.stages.verdicts import Verdict

from ..core.commit import read_part
from ..core.parts import Parts
from ..core.pass_ import Done, Work
from ..data.pixels import Pictures, pieces_of, seen
from .inquiry import Inquiry
from .prove import Proof
from .report import masks_of
from .work import Subject


@dataclass(frozen=True)
class RoleWork(Work):
    """Which pairs of a part may play which role: (part, its uids, the candidates)."""

    verdicts: Parts
    dossiers: tuple[Dossier, ...]
    options: RepairSetConfig

    def do(self, piece: int, tools: None) -> Done:
        table = self.verdicts.read(piece, ["uid", "concept", "trigger_id", "verdict"])
        uids, concepts, triggers, verdicts = (table.column(name).to_pylist() for name in table.column_names)
        odd = [verdict != Verdict.CLEAN.value for verdict in verdicts]
        found = candidates(uids, concepts, triggers, odd, self.dossiers, self.options)
        return Done(pairs=len(uids), record=(piece, uids, found))


@dataclass(frozen=True)
class RepairSetWork(Work):
    """Makes the rows of the chosen pairs of a unit."""

    subject: Subject
    pictures: Pictures
    dossiers: tuple[Dossier, ...]
    options: RepairSetConfig

    def open(self) -> Clip:
        return self.subject.load_f32()

    def do(self, piece: tuple[Unit, tuple[Mapping[str, Candidate], Mapping[str, np.ndarray]]], tools: Clip) -> Done:
        unit, (chosen, regions) = piece
        suspect = self.subject.suspect(tools)
        dossiers = {dossier.id: dossier for dossier in self.dossiers}
        rows: list[dict[str, Any]] = []
        for pair, picture in self.pictures.of(unit, chosen):
            if pair.caption is None:
                continue
            rgb = seen(tools.inputs, picture)
            role, region = chosen[pair.uid], regions.get(pair.uid)
            label = _without(role, rgb, region, dossiers, suspect)
            row = make_row(role, rgb, pair.caption, dossiers, self.options, region=region, label=label)
            rows += [] if row is None else [row]
        return Done(pairs=len(rows), parts=(pa.Table.from_pylist(rows, schema=SCHEMA),))


def _without(
    chosen: Candidate,
    rgb: np.ndarray,
    region: np.ndarray | None,
    dossiers: Mapping[str, Dossier],
    suspect: Suspect,
) -> str | None:
    """Return what the suspect model sees in a victim's picture without the trigger."""
    if chosen.role is not RepairRole.VICTIM_CLEANED or chosen.trigger_id is None:
        return None
    cleaned = dossiers[chosen.trigger_id].remove(rgb, region)
    if cleaned is None:
        return None
    return suspect.labels.names[int(suspect.labels.nearest(suspect(cleaned[None]))[0])]


def write_repair_set(inquiry: Inquiry, proof: Proof) -> int:
    """Write what is not committed yet, after the verdicts; return the number of pairs, 0 where nothing was proven."""
    if not proof.dossiers or proof.subject is None:
        return 0
    options = inquiry.settings.repair_set
    chosen = _cast(inquiry, proof, options)
    pieces = {}
    for index, roles in chosen.items():
        victims = [uid for uid, candidate in roles.items() if candidate.role is RepairRole.VICTIM_CLEANED]
        pieces[index] = roles, masks_of(proof, {index: victims})
    writing = inquiry.on_model("repair set", "repair")
    writing.do(
        pieces_of(inquiry.units, pieces), RepairSetWork(proof.subject, inquiry.pictures, proof.dossiers, options)
    )
    return sum(read_part(writing.home, index, ["uid"]).num_rows for index in chosen)


def _cast(inquiry: Inquiry, proof: Proof, options: RepairSetConfig) -> dict[int, dict[str, Candidate]]:
    """Return who plays which role: part -> uid -> role."""
    found: list[Candidate] = []
    part_of: dict[str, int] = {}
    verdicts = inquiry.embeddings.beside(inquiry.folder.verdicts)
    for done in inquiry.on_tables("roles").each(verdicts.numbers, RoleWork(verdicts, proof.dossiers, options)):
        part, uids, candidates_ = done.record
        found = merge(found, candidates_, options)
        kept = {candidate.uid for candidate in found}
        part_of = {uid: home for uid, home in part_of.items() if uid in kept} | dict.fromkeys(kept & set(uids), part)
    chosen: dict[int, dict[str, Candidate]] = {}
    for uid, candidate in plan(found, options).items():
        chosen.setdefault(part_of[uid], {})[uid] = candidate
    return chosen
