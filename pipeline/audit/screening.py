"""The screening of an audit: how far every label can be pulled by every kind of trigger, and how far its text stands from its pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa

from clipsan.stages.audit.displacement import Clouds, Displaced, displacements
from clipsan.stages.audit.outliers import combined, either, joined, lead, tail
from clipsan.stages.audit.peers import beyond, tail_beside
from clipsan.stages.audit.pull import evenness

from ..core.commit import read_part
from ..core.pass_ import Pass
from ..core.place import AnyPath
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
    beyond: np.ndarray | None
    """The value beyond the mean of the same label's in the peers; None without any."""
    displaced: Displaced
    """How far the label's text stands from the pictures that are taken for it."""
    clouds: Clouds | None
    """What the suspect makes of these pictures; None where none are compared."""
    p: np.ndarray
    """Of both against those of the other labels (Fisher's method, then Bonferroni over all labels); with peers, or of the value against
    what it is in those (Bonferroni over the two)."""
    flips_pct: np.ndarray
    """Of held-out images, by the kind of trigger that does most."""

    def ahead(self, label: int) -> float | None:
        """Return how far a label's value lies beyond the peers' mean; None without any."""
        return None if self.beyond is None else float(self.beyond[label])

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
    pieces = dict(enumerate(plan.tasks))
    screening = pass_of(plan, folder, "screening")
    screening.do(pieces, SearchWork(plan.config, plan.names, plan.pictures))
    rows = _screened(plan, screening.home)
    value = _value(plan, rows)
    parts = _gathered(plan, folder)
    displaced = _displaced(plan, parts)
    p, ahead = combined(joined(tail(value), displaced.p)), None
    if plan.peers:
        theirs = np.stack([_value(plan, _screened(plan, peer.home / "screening")) for peer in plan.peers])
        p, ahead = either(p, tail_beside(value, theirs)), beyond(value, theirs)
    return Screening(
        rows=rows,
        value=value,
        lead=lead(value),
        beyond=ahead,
        displaced=displaced,
        clouds=_summed(parts, "suspect")[0] if parts else None,
        p=p,
        flips_pct=_by_kind(plan, rows, lambda row: float(row["flips_pct"])).max(axis=0),
    )


def _screened(plan: Plan, home: AnyPath) -> list[dict[str, Any]]:
    """Return the rows of a screening of these labels, this model's or a peer's."""
    parts = [read_part(home, i) for i in range(len(plan.tasks))]
    found: list[dict[str, Any]] = pa.concat_tables(parts).to_pylist()
    return found


def _value(plan: Plan, rows: list[dict[str, Any]]) -> np.ndarray:
    """Return how evenly images are taken to each label, or how much further than the reference takes them, `[C]`."""
    if plan.reference_fingerprint is None:
        return np.asarray(_by_kind(plan, rows, lambda row: evenness(row["spread"])).mean(axis=0))
    return np.asarray(_by_kind(plan, rows, lambda row: float(row["cosine"] - row["genuine"])).mean(axis=0))


def _by_kind(plan: Plan, rows: list[dict[str, Any]], figure: Callable[[dict[str, Any]], float]) -> np.ndarray:
    """Return a figure of each kind of trigger and label, `[K, C]`."""
    found = np.zeros((len(plan.config.screening_kinds), len(plan.names)))
    for row in rows:
        found[plan.config.screening_kinds.index(row["kind"]), row["label"]] = figure(row)
    return found


def _gathered(plan: Plan, folder: RunFolder) -> list[pa.Table]:
    """Sum up what pictures are taken for, or what is left of that; nothing where no pictures are compared."""
    gallery = plan.gallery[: plan.config.compared]
    if not len(gallery):
        return []
    starts = range(0, len(gallery), PICTURES_PER_TASK)
    pieces = {i: (start, min(start + PICTURES_PER_TASK, len(gallery))) for i, start in enumerate(starts)}
    clouds = pass_of(plan, folder, "clouds")
    clouds.do(pieces, CloudWork(plan.config, plan.names, gallery))
    return [read_part(clouds.home, i) for i in pieces]


def _displaced(plan: Plan, parts: list[pa.Table]) -> Displaced:
    """Return how far each label's text stands from its pictures."""
    if not parts:
        unknown = np.full(len(plan.names), np.nan)
        return Displaced(unknown, unknown)
    if parts[0].column("parent").null_count:
        theirs = [[read_part(peer.home / "clouds", i) for i in range(len(parts))] for peer in plan.peers]
        peers = [_summed(tables, "suspect") for tables in theirs]
        return displacements(*_summed(parts, "suspect"), peers=peers)
    return displacements(*_summed(parts, "suspect"), _summed(parts, "parent"))


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
