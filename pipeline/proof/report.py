"""What report.html shows of the proofs: a panel a trigger, and where on each picture the trigger was found."""

from collections.abc import Iterable, Mapping

import numpy as np

from clipsan.stages.oracle.regions import from_runs
from clipsan.stages.report.content import DossierPanel
from clipsan.stages.report.dossiers import panel

from ..core.commit import part_path, read_part
from .prove import Proof


def dossier_panels(proof: Proof) -> tuple[DossierPanel, ...]:
    """Return a panel for every proven trigger."""
    return tuple(panel(dossier, proof.examples.get(dossier.id, ())) for dossier in proof.dossiers)


def masks_of(proof: Proof, wanted: Mapping[int, Iterable[str]]) -> dict[str, np.ndarray]:
    """Return uid -> `[S, S] bool`, the region that carries the claim, for those of the wanted pairs that have one.

    Args:
        proof: of the scan.
        wanted: uids by part.
    """
    found: dict[str, np.ndarray] = {}
    fixed = {d.id: mask for d in proof.dossiers if (mask := d.where()) is not None}
    for index, uids in wanted.items():
        chosen = set(uids)
        if proof.carriers is not None and part_path(proof.carriers, index).exists():
            for row in read_part(proof.carriers, index, ["uid", "trigger_id", "confirmed"]).to_pylist():
                if row["uid"] in chosen and row["confirmed"] and row["trigger_id"] in fixed:
                    found[row["uid"]] = fixed[row["trigger_id"]]
        if proof.evidence is not None and part_path(proof.evidence, index).exists():
            for row in read_part(proof.evidence, index, ["uid", "mask_runs", "mask_height", "mask_width"]).to_pylist():
                if row["uid"] in chosen and row["mask_runs"] is not None:
                    found[row["uid"]] = from_runs(row["mask_runs"], row["mask_height"], row["mask_width"])
    return found
