"""The screening of an audit: how far every label can be pulled, by every kind of trigger."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from clipsan.stages.audit.outliers import combined, lead, tail
from clipsan.stages.audit.pull import evenness

from ..core.commit import read_part
from ..core.pass_ import Pass
from ..core.run_folder import RunFolder
from .plan import Plan
from .work import SearchWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Screening:
    """What every label showed; arrays are `[C]`, means over the kinds of trigger."""

    rows: list[dict[str, Any]]
    value: np.ndarray
    """How evenly images are taken to the label; with a reference, how much further than the clean model takes them."""
    lead: np.ndarray
    """The value beyond the median label's."""
    p: np.ndarray
    """Of the value against those of the other labels (Bonferroni)."""
    flips_pct: np.ndarray
    """Of held-out images, by the kind of trigger that does most."""

    @property
    def order(self) -> list[int]:
        """The labels, the one that stands out most first."""
        return [int(label) for label in np.argsort(-self.value, kind="stable")]


def screened(plan: Plan, folder: RunFolder) -> Screening:
    """Seek a trigger of each kind towards every label, or what is left of that."""
    settings = plan.config
    pieces = dict(enumerate(plan.tasks))
    screening = pass_of(plan, folder, "screening")
    screening.do(pieces, SearchWork(settings, plan.names, plan.pictures))
    rows = pa.concat_tables([read_part(screening.home, i) for i in pieces]).to_pylist()
    against = plan.reference_fingerprint is not None
    value, flips = (np.zeros((len(settings.screening_kinds), len(plan.names))) for _ in range(2))
    for row in rows:
        place = settings.screening_kinds.index(row["kind"]), row["label"]
        value[place] = row["cosine"] - row["genuine"] if against else evenness(row["spread"])
        flips[place] = row["flips_pct"]
    means = value.mean(axis=0)
    return Screening(rows=rows, value=means, lead=lead(means), p=combined(tail(means)), flips_pct=flips.max(axis=0))


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
