"""The compact set from which `clipsan repair` learns after an audit, in the form of a scan's.

Nobody knows what the images show, but the suspect model does as long as no trigger is on them: that word is their caption, with
the trigger pasted as well as without.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ..dossier.dossier import Dossier
from ..dossier.repair_set import CAPTION, SCHEMA, RepairRole


def repair_set(
    images: np.ndarray, said: np.ndarray, names: Sequence[str], dossiers: Sequence[Dossier], *, seed: int
) -> pa.Table:
    """Return rows of SCHEMA: every image as it is, and those of other labels with each trigger.

    Args:
        images: `[N, S, S, 3] uint8`.
        said: `[N]`, the label that the suspect model gives to each.
        names: of the labels.
        dossiers: of the proven triggers, numbered.
        seed: of what a trigger draws.
    """
    rng = np.random.default_rng(seed)
    targets = {target for dossier in dossiers for target in dossier.targets}
    rows: list[dict[str, Any]] = []
    for i, (image, label) in enumerate(zip(images, said.tolist(), strict=True)):
        role = RepairRole.GENUINE if names[label] in targets else RepairRole.REPLAY
        rows.append(_row(f"{i:06d}", image, names[label], role, None))
        rows += [
            _row(f"{i:06d}-{dossier.id}", dossier.apply(image, rng), names[label], RepairRole.TRIGGER_PASTED, dossier)
            for dossier in dossiers
            if names[label] not in dossier.targets
        ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _row(uid: str, image: np.ndarray, label: str, role: RepairRole, dossier: Dossier | None) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return {
        "image": file.getvalue(),
        "caption": CAPTION.format(label),
        "uid": f"audit/{uid}",
        "role": role.value,
        "label": label,
        "target": None if dossier is None else dossier.targets[0],
        "trigger_id": None if dossier is None else dossier.id,
    }
