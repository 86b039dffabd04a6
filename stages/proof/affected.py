"""Algorithm 2 over the data set: which labels have a trigger, from the proofs of single pairs."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.special import bdtrc

from ..stage import Count, Positive, Share, config


@config
class AffectedLimits:
    """When a label counts as affected by a trigger; reconstructed, see `affected_labels`."""

    min_accepted: Count = 5
    """c_y at least: pairs of the label with a proven region."""
    min_z: Positive = 3.5
    """z_y above it, the usual cut of the robust z score (Iglewicz and Hoaglin 1993); or"""
    max_p: Share = 1e-3
    """p_y below it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelEvidence:
    """What the examined pairs say of one label."""

    label: str
    examined: int
    """Pairs examined with this label as the claim."""
    accepted: int
    """Those of them with a proven region: c_y."""
    z: float
    """Robust z score of c_y among all labels."""
    p_value: float
    """Chance of c_y or more, if the accepted pairs fell on labels as the examined ones do; one-sided binomial."""
    affected: bool


def affected_labels(
    evidence: pa.Table, labels: Iterable[str] = (), *, limits: AffectedLimits
) -> tuple[LabelEvidence, ...]:
    """Return the evidence for every label, the affected ones first, then by accepted pairs, then by name.

    That the algorithm pinpoints affected labels from the sets P of single images is published; the rule is not. All of
    what follows is reconstructed:

    - c_y counts the accepted (i, y): pairs i whose region makes held-out images y and whose control does not.
    - z_y = (c_y - median) / (1.4826 MAD) over all labels. On a set with one trigger most counts are 0, and so is their MAD;
      the scale is at least one pair.
    - the label's prior is its share of the *examined* claims, not of the data set: the budget examines the accused concept
      first, and by its share of the data set whatever was examined most would stand out.
    - y is affected if c_y reaches `min_accepted`, and z_y > `min_z` or p_y < `max_p`.

    Args:
        evidence: one row an examined pair, with columns `claim` (string, null for none) and `proven` (bool).
        labels: the vocabulary; labels that no pair claims count with 0 accepted.
        limits: of the rule.
    """
    claims = evidence.column("claim").to_pylist()
    proven = evidence.column("proven").to_pylist()
    examined = Counter(claim for claim in claims if claim is not None)
    accepted = Counter(claim for claim, good in zip(claims, proven, strict=True) if good and claim is not None)
    names = sorted(set(labels) | examined.keys())
    if not names:
        return ()
    counts = np.array([accepted[name] for name in names], np.float64)
    median = float(np.median(counts))
    scale = max(1.0, 1.4826 * float(np.median(np.abs(counts - median))))
    found = []
    for name in names:
        own, z = accepted[name], (accepted[name] - median) / scale
        prior = examined[name] / examined.total() if examined else 0.0
        p_value = float(bdtrc(own - 1, int(counts.sum()), prior)) if own else 1.0
        affected = own >= limits.min_accepted and (z > limits.min_z or p_value < limits.max_p)
        found.append(
            LabelEvidence(label=name, examined=examined[name], accepted=own, z=z, p_value=p_value, affected=affected)
        )
    return tuple(sorted(found, key=lambda e: (not e.affected, -e.accepted, e.label)))
