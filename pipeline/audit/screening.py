"""The screening of an audit: how far every label can be pulled by every kind of trigger, and how far its text stands from its pictures."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa

from clipsan.stages.audit.displacement import Clouds, Displaced, displacements
from clipsan.stages.audit.outliers import combined, joined, lead, tail
from clipsan.stages.audit.pull import evenness

from ..core.commit import read_part
from ..core.pass_ import Pass
from ..core.run_folder import RunFolder
from .plan import Plan
from .work import CloudWork, SearchWork

PICTURES_PER_TASK = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Screening:
    """What every label showed; arrays are `[C]`, means over the kinds of trigger."""

    rows: list[dict[str, Any]]
    value: np.ndarray
    """How evenly images are taken to the label; with a reference, how much further than the clean model takes them."""
    lead: np.ndarray
    """The value beyond the median label's."""
    displaced: Displaced
    """How far the label's text stands from the pictures that are taken for it."""
    p: np.ndarray
    """Of both against those of the other labels (Fisher's method, then Bonferroni over all labels)."""
    flips_pct: np.ndarray
    """Of held-out images, by the kind of trigger that does most."""

    def displacement(self, label: int) -> float | None:
        """Return how far a label's text is displaced; None where it is not known."""
        found = float(self.displaced.value[label])
        return None if np.isnan(found) else found

    @property
    def order(self) -> list[int]:
        """The labels, the one that stands out most first."""
        return [int(label) for label in np.lexsort((-self.value, self.p))]


def screened(plan: Plan, folder: RunFolder) -> Screening:
    """Seek a trigger of each kind towards every label, or what is left of that."""
    settings = plan.config
    pieces = dict(enumerate(plan.tasks))
    screening = pass_of(plan, folder, "screening")
    screening.do(pieces, SearchWork(plan.config, plan.names, plan.pictures))
    rows = pa.concat_tables([read_part(screening.home, i) for i in pieces]).to_pylist()
    against = plan.reference_fingerprint is not None
    value, flips = (np.zeros((len(settings.screening_kinds), len(plan.names))) for _ in range(2))
    for row in rows:
        place = settings.screening_kinds.index(row["kind"]), row["label"]
        value[place] = row["cosine"] - row["genuine"] if against else evenness(row["spread"])
        flips[place] = row["flips_pct"]
    means, displaced = value.mean(axis=0), _displaced(plan, folder)
    return Screening(
        rows=rows,
        value=means,
        lead=lead(means),
        displaced=displaced,
        p=combined(joined(tail(means), displaced.p)),
        flips_pct=flips.max(axis=0),
    )


def _displaced(plan: Plan, folder: RunFolder) -> Displaced:
    """Return how far each label's text stands from its pictures, or what is left of that to find out."""
    gallery = plan.gallery[: plan.config.compared]
    if not len(gallery):
        unknown = np.full(len(plan.names), np.nan)
        return Displaced(unknown, unknown)
    starts = range(0, len(gallery), PICTURES_PER_TASK)
    pieces = {i: (start, min(start + PICTURES_PER_TASK, len(gallery))) for i, start in enumerate(starts)}
    clouds = pass_of(plan, folder, "clouds")
    clouds.do(pieces, CloudWork(plan.config, plan.names, gallery))
    tables = [read_part(clouds.home, i) for i in pieces]
    parent = None if tables[0].column("parent").null_count else _summed(tables, "parent")
    return displacements(*_summed(tables, "suspect"), parent)


def _summed(tables: list[pa.Table], model: str) -> tuple[Clouds, np.ndarray]:
    """Return what one model made of all pictures, and its texts `[C, D]`."""
    rows = [table.column(model).to_pylist() for table in tables]
    parts = [Clouds(np.array([row["count"] for row in part]), np.array([row["sum"] for row in part])) for part in rows]
    return reduce(Clouds.plus, parts), np.array([row["text"] for row in rows[0]], np.float32)


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
