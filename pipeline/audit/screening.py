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
    """Beyond genuine images; with a reference, beyond what the clean model makes of the same images."""
    p: np.ndarray
    """Of each kind and label against the other labels."""


def screened(plan: Plan, folder: RunFolder) -> Screening:
    """Seek a trigger of each kind towards every label, or what is left of that."""
    settings = plan.config
    pieces = dict(enumerate(plan.tasks))
    screening = pass_of(plan, folder, "screening")
    screening.do(pieces, SearchWork(settings, plan.names, plan.pictures))
    rows = pa.concat_tables([read_part(screening.home, i) for i in pieces]).to_pylist()
    excess = np.zeros((len(settings.screening_kinds), len(plan.names)))
    for row in rows:
        excess[settings.screening_kinds.index(row["kind"]), row["label"]] = row["cosine"] - row["genuine"]
    return Screening(rows=rows, excess=excess, p=np.stack([tail(values) for values in excess]))


def pass_of(plan: Plan, folder: RunFolder, name: str) -> Pass:
    """Return a pass of an audit, whose parts lie in the folder of its name."""
    screening, tried = plan.config.screening, len(plan.names) * len(plan.config.screening_kinds)
    return Pass(
        name=name,
        cluster=plan.config.cluster,
        run=folder,
        folder=name,
        fingerprint=plan.fingerprint,
        loads_model=True,
        pairs=tried * screening.steps * screening.images_per_label,
    )
