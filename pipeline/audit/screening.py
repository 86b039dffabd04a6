"""The screening of an audit: how far every label can be pulled, by every kind of trigger."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from clipsan.stages.audit.outliers import tail

from ..core.commit import read_part
from ..core.pass_ import Pass
from ..core.run_folder import RunFolder
from .plan import Plan
from .work import SearchWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Screening:
    """What every label showed; arrays are `[K, C]`, kinds and labels."""

    rows: list[dict[str, Any]]
    excess: np.ndarray
    """Beyond genuine images; with a reference, beyond what the clean model shows too."""
    p: np.ndarray
    """Of each kind and label against the other labels."""


def screened(plan: Plan, folder: RunFolder) -> Screening:
    """Seek a trigger of each kind towards every label, or what is left of that."""
    settings = plan.config
    models = ["suspect", *([] if settings.reference is None else ["reference"])]
    pieces = {i: (model, *task) for i, (model, task) in enumerate((m, t) for m in models for t in plan.tasks)}
    screening = pass_of(plan, folder, "screening")
    screening.do(pieces, SearchWork(settings, plan.names, plan.pictures))
    rows = pa.concat_tables([read_part(screening.home, i) for i in pieces]).to_pylist()
    excess = np.zeros((len(models), len(settings.kinds), len(plan.names)))
    for row in rows:
        place = (models.index(row["model"]), settings.kinds.index(row["kind"]), row["label"])
        excess[place] = row["cosine"] - row["genuine"]
    beyond = excess[0] if len(models) == 1 else excess[0] - excess[1]
    return Screening(rows=rows, excess=beyond, p=np.stack([tail(values) for values in beyond]))


def pass_of(plan: Plan, folder: RunFolder, name: str) -> Pass:
    """Return a pass of an audit, whose parts lie in the folder of its name."""
    screening, tried = plan.config.screening, len(plan.names) * len(plan.config.kinds)
    return Pass(
        name=name,
        cluster=plan.config.cluster,
        run=folder,
        folder=name,
        fingerprint=plan.fingerprint,
        loads_model=True,
        pairs=tried * screening.steps * screening.images_per_label,
    )
