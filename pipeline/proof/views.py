"""What the proof says of single pairs, as columns of their verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from ..core.commit import part_path, read_part
from ..core.place import AnyPath
from .prove import Proof


@dataclass(frozen=True, slots=True)
class Views:
    """What the proof says of the pairs of each part, for their verdicts."""

    evidence: AnyPath | None
    carriers: AnyPath | None
    reads: ClassVar[frozenset[str]] = frozenset({"uid"})
    adds: ClassVar[frozenset[str]] = frozenset({"claim", "oracle_view", "trigger_id"})

    members: Mapping[str, str]
    """Uid -> trigger, of the pairs that a patch's dossier rests on; those whose own region is proven carry it."""

    @classmethod
    def of(cls, proof: Proof) -> "Views":
        members = {uid: d.id for d in reversed(proof.dossiers) if d.pasted for uid in d.uids}
        return cls(proof.evidence, proof.carriers, members)

    def columns(self, index: int, uids: Sequence[str]) -> dict[str, pa.Array]:
        """Return `claim`, `oracle_view` and `trigger_id` of a part's pairs, null where nothing is known.

        `claim`: the concept whose trigger the oracle looked for.

        `oracle_view`: proven (its region flips other pictures), unsupported (one region carries the claim), supported (the
        claim survives without any single region), unclaimed (the model does not claim it).
        """
        claim: dict[str, str] = {}
        view: dict[str, str] = {}
        trigger: dict[str, str] = {}
        if self.evidence is not None and part_path(self.evidence, index).exists():
            names = ["uid", "claim", "proven", "labels", "supported", "unsupported"]
            for row in read_part(self.evidence, index, names).to_pylist():
                claim[row["uid"]], view[row["uid"]] = row["claim"], _view(row)
                if row["proven"] and row["uid"] in self.members:
                    trigger[row["uid"]] = self.members[row["uid"]]
        if self.carriers is not None and part_path(self.carriers, index).exists():
            table = read_part(self.carriers, index, ["uid", "trigger_id", "confirmed"])
            trigger |= {r["uid"]: r["trigger_id"] for r in table.filter(table.column("confirmed")).to_pylist()}
        found = {"claim": claim, "oracle_view": view, "trigger_id": trigger}
        return {name: pa.array([values.get(uid) for uid in uids], pa.string()) for name, values in found.items()}


def _view(row: Mapping[str, Any]) -> str:
    if row["proven"]:
        return "proven"
    for name in ("unsupported", "supported"):
        if row["claim"] in row[name]:
            return name
    return "unclaimed"
