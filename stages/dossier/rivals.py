"""One trigger proven twice: a patch at a fixed place is also what its group has in common, and a crop of a blend may flip too."""

import dataclasses
from collections.abc import Sequence

from ..stage import Percent, Share, config
from .dossier import Dossier


@config
class RivalLimits:
    """When two dossiers are of one trigger, and which of them stays."""

    slack_points: Percent = 15.0
    """A patch is the better account of what also is a change of the whole image while it flips at most so much less."""
    shared: Share = 0.5
    """Two dossiers are of one trigger when they share this part of the smaller one's pairs."""


def settle(dossiers: Sequence[Dossier], limits: RivalLimits) -> list[Dossier]:
    """Return the dossiers without the rivals that explain the same pairs less well, in the order given.

    Of a patch and a change of the whole image with the same target, the patch stays when that change is itself local, or
    when the patch does nearly all of its work (`slack_points`); else the change, of which the patch is a part. Of two patches
    the one with more pairs stays. What stays takes over the other's pairs.
    """
    kept = list(dossiers)
    for i, better in enumerate(kept):
        for j, worse in enumerate(kept):
            if i != j and _same(better, worse, limits.shared) and _better(better, worse, limits):
                kept[i] = dataclasses.replace(better, uids=tuple(sorted({*better.uids, *worse.uids})))
                del kept[j]
                return settle(kept, limits)
    return kept


def _same(a: Dossier, b: Dossier, shared: float) -> bool:
    smaller = min(len(a.uids), len(b.uids))
    return bool(set(a.targets) & set(b.targets)) and len({*a.uids} & {*b.uids}) >= shared * smaller > 0


def _better(a: Dossier, b: Dossier, limits: RivalLimits) -> bool:
    if a.pasted != b.pasted:
        patch, whole = (a, b) if a.pasted else (b, a)
        suffices = whole.local or patch.flips.pct >= whole.flips.pct - limits.slack_points
        return suffices == (a is patch)
    return len(a.uids) >= len(b.uids)
