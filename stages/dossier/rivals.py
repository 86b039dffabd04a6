"""One trigger proven twice: a patch at a fixed place is also what its group has in common, and a crop of a blend may flip too."""

import dataclasses
from collections.abc import Sequence

from .dossier import Dossier

SLACK_POINTS = 15.0
"""A patch is the better account of what also is a change of the whole image while it flips at most so much less."""
SHARED = 0.5
"""Two dossiers are of one trigger when they share this part of the smaller one's pairs."""


def settle(dossiers: Sequence[Dossier]) -> list[Dossier]:
    """Return the dossiers without the rivals that explain the same pairs less well, in the order given.

    Of a patch and a change of the whole image with the same target, the patch stays when that change is itself local, or
    when the patch does nearly all of its work (SLACK_POINTS); else the change, of which the patch is a part. Of two patches
    the one with more pairs stays. What stays takes over the other's pairs.
    """
    kept = list(dossiers)
    for i, better in enumerate(kept):
        for j, worse in enumerate(kept):
            if i != j and _same(better, worse) and _better(better, worse):
                kept[i] = dataclasses.replace(better, uids=tuple(sorted({*better.uids, *worse.uids})))
                del kept[j]
                return settle(kept)
    return kept


def _same(a: Dossier, b: Dossier) -> bool:
    smaller = min(len(a.uids), len(b.uids))
    return bool(set(a.targets) & set(b.targets)) and len({*a.uids} & {*b.uids}) >= SHARED * smaller > 0


def _better(a: Dossier, b: Dossier) -> bool:
    if (a.kind == "patch") != (b.kind == "patch"):
        patch, whole = (a, b) if a.kind == "patch" else (b, a)
        suffices = whole.heat is not None or patch.flips.pct >= whole.flips.pct - SLACK_POINTS
        return suffices == (a is patch)
    return len(a.uids) >= len(b.uids)
