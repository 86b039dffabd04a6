"""One trigger proven twice: a patch at a fixed place is also what its group has in common, and a crop of a blend may flip too."""

import dataclasses
from collections.abc import Sequence

from stages.oracle.dossier import Dossier

SHARED = 0.5
"""Two dossiers are of one trigger when they share this part of the smaller one's pairs."""


def settle(dossiers: Sequence[Dossier]) -> list[Dossier]:
    """Return the dossiers without the rivals that explain the same pairs less well, in the order given.

    Of a patch and a change of the whole image with the same target, the patch stays when that change is itself local, else
    the change: a part of it cannot be all of it. Of two patches the one with more pairs stays. What stays takes over the
    other's pairs.
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
        whole = b if a.kind == "patch" else a
        return (a.kind == "patch") == (whole.heat is not None)
    return len(a.uids) >= len(b.uids)
