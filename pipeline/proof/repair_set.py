"""The compact set from which `clipsan repair` learns, written as a Parquet data set of its own: OUT/repair/."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipsan.stages.decode import decode
from clipsan.stages.dossier.dossier import Dossier, remove_trigger
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
from clipsan.stages.model.clip import load_clip
from clipsan.stages.proof.disagreement import Suspect
from clipsan.stages.samples import Unit
from clipsan.stages.sources import SourceConfig, read_unit
from clipsan.stages.verdicts import Verdict

from ..core.commit import missing_parts, read_part, write_part
from ..core.pass_old import Row, run_pass
from .prove import Proof, Task
from .report import masks_of
from .work import Bench


class CandidateWork:
    """Which pairs of a part may play which role."""

    def __init__(self, verdicts: Path, dossiers: tuple[Dossier, ...], options: RepairSetConfig) -> None:
        self._verdicts = verdicts
        self._dossiers = dossiers
        self._options = options

    def run(self, piece: int) -> Row:
        table = read_part(self._verdicts, piece, ["uid", "concept", "trigger_id", "verdict"])
        uids, concepts, triggers, verdicts = (table.column(name).to_pylist() for name in table.column_names)
        odd = [verdict != Verdict.CLEAN.value for verdict in verdicts]
        found = candidates(uids, concepts, triggers, odd, self._dossiers, self._options)
        return {"pairs": len(uids), "part": piece, "uids": uids, "candidates": found}


class RepairSetWork:
    """Makes the rows of the chosen pairs of a unit."""

    def __init__(
        self,
        bench: Bench,
        dossiers: tuple[Dossier, ...],
        options: RepairSetConfig,
        source: SourceConfig,
        max_pixels: int,
        folder: Path,
        mark: str,
    ) -> None:
        self._clip = load_clip(bench.model, bench.device)
        self._suspect = Suspect(self._clip, bench.labels)
        self._dossiers = {dossier.id: dossier for dossier in dossiers}
        self._options = options
        self._source = source
        self._max_pixels = max_pixels
        self._folder = folder
        self._mark = mark

    def run(self, piece: tuple[Unit, Mapping[str, Candidate], Mapping[str, np.ndarray]]) -> Row:
        unit, chosen, regions = piece
        rows: list[dict[str, Any]] = []
        for pair in read_unit(self._source, unit):
            if pair.reject is None and pair.image is not None and pair.caption is not None and pair.uid in chosen:
                pixels = self._clip.preprocess(decode(pair.image, self._max_pixels).rgb)
                rgb = np.ascontiguousarray(pixels.numpy().transpose(1, 2, 0))
                role, region = chosen[pair.uid], regions.get(pair.uid)
                label = self._without(role, rgb, region)
                row = make_row(role, rgb, pair.caption, self._dossiers, self._options, region=region, label=label)
                rows += [] if row is None else [row]
        write_part(self._folder, unit.index, pa.Table.from_pylist(rows, schema=SCHEMA), self._mark)
        return {"pairs": len(rows)}

    def _without(self, chosen: Candidate, rgb: np.ndarray, region: np.ndarray | None) -> str | None:
        """Return what the suspect model sees in a victim's picture without the trigger."""
        if chosen.role is not RepairRole.VICTIM_CLEANED or chosen.trigger_id is None:
            return None
        cleaned = remove_trigger(self._dossiers[chosen.trigger_id], rgb, region)
        if cleaned is None:
            return None
        labels = self._suspect.labels
        return labels.names[int(self._suspect(cleaned[None]).argmax())]


def write_repair_set(task: Task, proof: Proof, options: RepairSetConfig) -> int:
    """Write what is not committed yet, after the verdicts; return the number of pairs, 0 where nothing was proven."""
    if not proof.dossiers or proof.bench is None:
        return 0
    found: list[Candidate] = []
    part_of: dict[str, int] = {}
    args = (task.folder.verdicts, proof.dossiers, options)
    for record in run_pass("roles", task.parts, CandidateWork, args, cluster=task.cluster, ordered=True):
        found = merge(found, record["candidates"], options)
        kept = {candidate.uid for candidate in found}
        part_of = {uid: part for uid, part in part_of.items() if uid in kept}
        for uid in kept.intersection(record["uids"]):
            part_of[uid] = record["part"]
    chosen: dict[int, dict[str, Candidate]] = {}
    for uid, candidate in plan(found, options).items():
        chosen.setdefault(part_of[uid], {})[uid] = candidate
    folder = task.folder.root / "repair"
    todo = set(missing_parts(folder, chosen, task.mark))
    pieces = []
    for unit in task.units:
        if unit.index in todo:
            own = chosen[unit.index]
            victims = [uid for uid, c in own.items() if c.role is RepairRole.VICTIM_CLEANED]
            pieces.append((unit, own, masks_of(proof, {unit.index: victims})))
    work = (proof.bench, proof.dossiers, options, task.data, task.max_pixels, folder, task.mark)
    for _ in task.run("repair set", pieces, RepairSetWork, work, total=len(chosen)):
        pass
    return sum(read_part(folder, index, ["uid"]).num_rows for index in chosen)
