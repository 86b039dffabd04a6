"""Algorithm 2 over the data set: which labels have a trigger, from the proofs of single pairs."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..stage import Count, Share, config


@config
class AffectedLimits:
    """When a label counts as affected by a trigger; reconstructed, see `affected_labels`."""

    min_accepted: Count = 5
    """c_y at least: pairs of the label with a proven region."""
    max_p: Share = 1e-3
    """p_y below it, over all labels together: it is shared out among those that can be tested (Bonferroni)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelEvidence:
    """What the examined pairs say of one label."""

    label: str
    examined: int
    """Pairs examined with this label as the claim."""
    accepted: int
    """Those of them with a proven region: c_y."""
    ahead: float
    """Chance that a pair with a proven region is the more suspicious of two, one with and one without; .5 where one sort is
    missing."""
    p_value: float
    """Chance of an order so far from even if proven regions fell on the label's pairs at random; two-sided, 1 where one
    sort is missing."""
    affected: bool


def affected_labels(
    evidence: pa.Table, suspicion: np.ndarray, proven: Collection[str] = (), *, limits: AffectedLimits
) -> tuple[LabelEvidence, ...]:
    """Return the evidence for every examined label, the affected ones first, then by accepted pairs, then by name.

    That the algorithm pinpoints affected labels from the sets P of single images is published; the rule is not. All of
    what follows is reconstructed:

    - c_y counts the accepted (i, y): pairs i whose region makes held-out images y and whose control does not.
    - c_y alone has no scale. A small thing that always looks alike makes other images its class too: of 138 examined drawn cars
      99 are accepted, of sailboats 2 in 14, of most things none. Counts of other labels say nothing of that.
    - a label's own pairs do. Where a trigger is at work, the accepted pairs are those that stand apart from the label's others;
      where the thing itself flips, they are any. So the two sorts are compared by the score that accused them (Mann and Whitney
      1947), in either direction: where poison is most of its label, the score accuses what is genuine. On the set with the
      cars they are ahead of the others in 53 % of the comparisons, the poisoned stars in all.
    - y is affected if c_y reaches `min_accepted` and p_y is below its part of `max_p`, or where a trigger of y is proven: of a
      label all of whose pairs are accepted there is nothing to compare.

    Args:
        evidence: one row an examined pair, with columns `claim` (string, null for none) and `proven` (bool).
        suspicion: `[n]`, of the same pairs, comparable within a label.
        proven: labels that a proven trigger means; also those of which no pair was examined.
        limits: of the rule.
    """
    claims = np.array(evidence.column("claim").to_pylist(), object)
    accepted = np.array(evidence.column("proven").to_pylist(), bool)
    names = sorted({claim for claim in claims if claim is not None} | set(proven))
    counts = {name: (int((claims == name).sum()), int(accepted[claims == name].sum())) for name in names}
    tested = [name for name, (examined, own) in counts.items() if limits.min_accepted <= own < examined]
    found = []
    for name in names:
        examined, own = counts[name]
        ahead, p_value = _order(suspicion[claims == name], accepted[claims == name])
        apart = name in tested and p_value < limits.max_p / len(tested)
        found.append(
            LabelEvidence(
                label=name,
                examined=examined,
                accepted=own,
                ahead=ahead,
                p_value=p_value,
                affected=apart or name in proven,
            )
        )
    return tuple(sorted(found, key=lambda e: (not e.affected, -e.accepted, e.label)))


def _order(values: np.ndarray, chosen: np.ndarray) -> tuple[float, float]:
    """Return how often a chosen value `[n]` is above another, and the chance of that."""
    if chosen.all() or not chosen.any():
        return 0.5, 1.0
    # a second to import, which every worker process would pay before it decodes its first picture
    from scipy.stats import mannwhitneyu

    test = mannwhitneyu(values[chosen], values[~chosen], alternative="two-sided")
    return float(test.statistic) / float(chosen.sum() * (~chosen).sum()), float(test.pvalue)
