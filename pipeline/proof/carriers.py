"""Pass 5: the whole cache searched for the pairs that carry a proven trigger, each then tried on its picture."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from clipsan.stages.captions import Vocabulary
from clipsan.stages.dossier.carriers import Likely, likely_carriers
from clipsan.stages.dossier.dossier import Dossier
from clipsan.stages.model.clip import Clip
from clipsan.stages.proof.disagreement import Suspect
from clipsan.stages.proof.examine import ExamineConfig, transplant_proves
from clipsan.stages.samples import Unit

from ..core.commit import read_part
from ..core.parts import Parts
from ..core.pass_ import Done, Work
from ..core.place import AnyPath
from ..data.pixels import Pictures, pieces_of, seen
from .inquiry import Inquiry
from .work import Learned, Subject

CARRIERS_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("trigger_id", pa.string()),
        ("score", pa.float32()),
        ("probability", pa.float32()),
        ("probability_without", pa.float32()),
        ("confirmed", pa.bool_()),
    ]
)
"""One row a pair that was looked at: how far it lies beyond the trigger's threshold, p(target | picture), and
p(target | picture without the trigger); of a pair that rests on none of its triggers the row of the likeliest."""


def find_carriers(
    inquiry: Inquiry, subject: Subject, triggers: Sequence[Learned], own: set[str]
) -> tuple[AnyPath | None, tuple[Dossier, ...]]:
    """Return the folder of what was found, and the dossiers with the number of their pairs.

    Args:
        inquiry: whose pairs are searched.
        subject: what confirms them.
        triggers: what is searched for.
        own: uids of the pairs whose own region is proven.
    """
    if not triggers:
        return None, ()
    search = CacheWork(triggers, inquiry.findings.vocabulary, inquiry.embeddings)
    found = {}
    for done in inquiry.on_tables("find carriers").each(inquiry.embeddings.numbers, search):
        part, likely = done.record
        if likely:
            found[part] = likely
    dossiers = [trigger.dossier for trigger in triggers]
    confirm = inquiry.on_model("confirm", "evidence/swept")
    confirm.do(
        pieces_of(inquiry.units, found),
        ConfirmWork(subject, inquiry.pictures, dossiers, inquiry.settings.examine),
    )
    carriers: dict[str, set[str]] = {d.id: {uid for uid in d.uids if uid in own} for d in dossiers}
    for index in found:
        table = read_part(confirm.home, index, ["uid", "trigger_id", "confirmed"])
        for row in table.filter(table.column("confirmed")).to_pylist():
            carriers[row["trigger_id"]].add(row["uid"])
    return confirm.home, tuple(dataclasses.replace(d, carriers=len(carriers[d.id])) for d in dossiers)


@dataclass(frozen=True)
class CacheWork(Work):
    """Which pairs of a part that claim a trigger's target look as if they carry it: (part, uid -> Likely)."""

    triggers: Sequence[Learned]
    vocabulary: Vocabulary
    embeddings: Parts

    def do(self, piece: int, tools: None) -> Done:
        table = self.embeddings.read(piece)
        triggers = [(trigger.dossier, trigger.direction) for trigger in self.triggers]
        found = likely_carriers(triggers, self.vocabulary, table)
        return Done(pairs=table.num_rows, record=(piece, found))


@dataclass(frozen=True)
class ConfirmWork(Work):
    """Whether a pair that looks as if it carries a trigger rests on it.

    All triggers that it looks like are tried, the likeliest first: of a word that is the trigger each dossier may hold a letter,
    and without one letter the others still work.

    Of a trigger that may be anywhere the place without which least is left of the claim is no evidence: of genuine pairs
    most have such a place, that of the thing itself. What stands there is proven as a region is, by pasting it onto held-out
    pictures, which had no part in choosing it, beside an equal area of another place of the same picture.
    """

    subject: Subject
    pictures: Pictures
    dossiers: Sequence[Dossier]
    examine: ExamineConfig
    """The claim rests on a trigger without which less than `support` of its probability is left."""

    def open(self) -> Clip:
        return self.subject.load()

    def do(self, piece: tuple[Unit, Mapping[str, Likely]], tools: Clip) -> Done:
        unit, likely = piece
        suspect = self.subject.suspect(tools)
        rows = [
            {"uid": pair.uid}
            | first_confirmed(likely[pair.uid], partial(self._check, suspect, seen(tools.inputs, rgb)))
            for pair, rgb in self.pictures.of(unit, likely)
        ]
        return Done(pairs=len(rows), parts=(pa.Table.from_pylist(rows, schema=CARRIERS_SCHEMA),))

    def _check(self, suspect: Suspect, image: np.ndarray, trigger: str) -> dict[str, Any]:
        dossier = next(dossier for dossier in self.dossiers if dossier.id == trigger)
        labels = suspect.labels
        label = labels.index(dossier.targets[0])
        claimed = labels.claimed(suspect(np.concatenate([image[None], dossier.without(image)])), label)
        before, after = float(claimed[0]), claimed[1:]
        least = int(after.argmin())
        rests = float(after[least]) < self.examine.support * before
        places = dossier.places(image) if rests and len(after) > 1 else None
        if places is not None:
            onto = self.subject.deciding(self.examine)
            rests = transplant_proves(suspect, image, places[least], label, onto, self.examine, trigger)
        return {"probability": before, "probability_without": float(after[least]), "confirmed": rests}


def first_confirmed(likely: Likely, check: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Return what `check` finds of the first trigger that a pair rests on, else of the likeliest; at least one is given."""
    rows = ({"trigger_id": trigger, "score": score} | check(trigger) for trigger, score in likely)
    likeliest = next(rows)
    return likeliest if likeliest["confirmed"] else next((row for row in rows if row["confirmed"]), likeliest)
