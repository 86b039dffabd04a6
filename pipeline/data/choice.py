"""Which pairs of a data set a training takes, and what they are to a repair: asked of each pair before it is decoded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow.parquet as pq

from clipsan.stages.captions import singular, words
from clipsan.stages.evaluation.zero_shot import synonyms
from clipsan.stages.samples import RawPair, Unit, seeded_hash
from clipsan.stages.training.batch import Role
from clipsan.stages.verdicts import ACCUSING, Verdict

from ..core.commit import read_part
from ..core.place import AnyPath

NOBODY = -1
"""A class that is not known, or not there."""


class Standing(NamedTuple):
    """What a pair is to a repair."""

    role: Role = Role.PAIR
    accused: int = NOBODY
    """The class that its poison was to plant."""
    label: int | None = None
    """The class that its caption names, in place of the data set's own label; None: the data set's holds."""


class Lookup(Protocol):
    """Says what the pairs of a unit are."""

    def of(self, unit: Unit) -> Mapping[str, Standing]:
        """Return uid -> standing; a pair that is missing takes no part."""
        ...


@dataclass(frozen=True, slots=True)
class CleanByScan:
    """The pairs that a scan of the same source calls clean; a pair's class is the only one that its caption names."""

    verdicts: AnyPath
    classes: tuple[str, ...]

    def of(self, unit: Unit) -> Mapping[str, Standing]:
        table = read_part(self.verdicts, unit.index, ["uid", "verdict", "concept", "caption"])
        naming = Naming(self.classes)
        return {
            row["uid"]: Standing(label=naming.only(row["caption"], row["concept"]))
            for row in table.to_pylist()
            if row["verdict"] == Verdict.CLEAN.value
        }


@dataclass(frozen=True, slots=True)
class FlaggedByScan:
    """The pairs that a scan of the same source accuses of planting one of the classes."""

    verdicts: AnyPath
    classes: tuple[str, ...]
    withheld: float = 0.0
    """Share of them that takes no part, a fraction; which they are depends on their uids alone."""

    def of(self, unit: Unit) -> Mapping[str, Standing]:
        table = read_part(self.verdicts, unit.index, ["uid", "reasons", "target"])
        index = class_index(self.classes)
        found: dict[str, Standing] = {}
        for row in table.to_pylist():
            accused = index.get((row["target"] or "").casefold(), NOBODY)
            if accused != NOBODY and any(reason in ACCUSING for reason in row["reasons"]):
                found[row["uid"]] = Standing(Role.FLAGGED, accused, NOBODY)
        return {uid: own for uid, own in found.items() if not is_withheld(uid, self.withheld)}


@dataclass(frozen=True, slots=True)
class ProvenByScan:
    """The pairs that a scan has proven to be poisoned: those that FlaggedByScan takes, or those that it leaves out."""

    verdicts: AnyPath
    classes: tuple[str, ...]
    withheld: float
    """As of FlaggedByScan."""
    left_out: bool

    def of(self, unit: Unit) -> Mapping[str, Standing]:
        table = read_part(self.verdicts, unit.index, ["uid", "verdict", "target"])
        index = class_index(self.classes)
        found: dict[str, Standing] = {}
        for row in table.to_pylist():
            accused = index.get((row["target"] or "").casefold(), NOBODY)
            proven = row["verdict"] == Verdict.POISONED.value and accused != NOBODY
            if proven and is_withheld(row["uid"], self.withheld) == self.left_out:
                found[row["uid"]] = Standing(Role.FLAGGED, accused, NOBODY)
        return found


def is_withheld(uid: str, share: float) -> bool:
    """Tell whether a pair is of the share that is kept from a repair."""
    return share > 0 and int(seeded_hash([uid], 0, "withheld")[0]) < share * 2**64


@dataclass(frozen=True, slots=True)
class RepairSetRoles:
    """The rows of a scan's repair set (stages.dossier.repair_set.SCHEMA), read as Parquet with key=uid, that play some roles."""

    roles: tuple[Role, ...]
    classes: tuple[str, ...]

    def of(self, unit: Unit) -> Mapping[str, Standing]:
        table = pq.ParquetFile(unit.path).read(columns=["uid", "role", "label", "target", "caption"])
        index, naming = class_index(self.classes), Naming(self.classes)
        found: dict[str, Standing] = {}
        for row in table.to_pylist():
            role = Role[row["role"].upper()]
            if role in self.roles:
                accused = index.get((row["target"] or "").casefold(), NOBODY)
                label = naming.only(row["caption"], row["label"])
                found[f"{unit.shard}/{row['uid']}"] = Standing(role, accused, label)
        return found


class Naming:
    """Which class a caption names.

    A scan keeps of each pair the concept in which it is oddest: of "a mushroom, with a little key behind it" that may be the key.
    As a label it would be wrong of every second such picture, so a caption that names several classes names none.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        self._index = class_index(classes)
        self._terms: dict[str, int] = {}
        for name, own in self._index.items():
            self._terms.setdefault(" ".join(words(name)), own)
        self._words = {word for term in self._terms for word in term.split()}
        self._longest = max((len(term.split()) for term in self._terms), default=0)

    def only(self, caption: str | None, concept: str | None) -> int:
        """Return the only class that a caption names, NOBODY where it names several.

        Where it names none as this reads it, the class is the concept that a scan kept of it.
        """
        found = self._named(caption or "") or {self._index.get((concept or "").casefold(), NOBODY)}
        return found.pop() if len(found) == 1 else NOBODY

    def _named(self, caption: str) -> set[int]:
        """Return the classes in a caption; a name within a longer one ("cat" in "tiger cat") is none of its own."""
        sequence = [singular(word, self._words) for word in words(caption)]
        found: set[int] = set()
        at = 0
        while at < len(sequence):
            widths = range(min(self._longest, len(sequence) - at), 0, -1)
            terms = ((width, " ".join(sequence[at : at + width])) for width in widths)
            width, own = next(((width, self._terms[term]) for width, term in terms if term in self._terms), (1, NOBODY))
            found.add(own)
            at += width
        return found - {NOBODY}


def class_index(classes: tuple[str, ...]) -> dict[str, int]:
    """Return every name of every class, in lower case -> its index; of two classes with one name the first has it.

    An audit's triggers mean a class by all of its names as they were given, "dog, hound": that is a name, too.
    """
    index: dict[str, int] = {}
    for i, names in enumerate(classes):
        for name in (*synonyms(names), names):
            index.setdefault(name.casefold(), i)
    return index


@dataclass(frozen=True, slots=True)
class Draw:
    """A seeded sample: the pairs with the smallest numbers, over all or class by class.

    A pair's number depends on its uid alone, so the sample is the same in whatever order and by whomever it is read.
    """

    seed: int
    cuts: Mapping[int, int]
    """Class -> largest number that is taken; NOBODY -> that of pairs whose class has no cut of its own."""

    def takes(self, uid: str, label: int | None) -> bool:
        """Tell whether a pair is in the sample."""
        own = self.cuts.get(NOBODY if label is None else label, self.cuts.get(NOBODY))
        return own is not None and int(draw_numbers([uid], self.seed)[0]) <= own


def draw_numbers(uids: list[str], seed: int) -> np.ndarray:
    """Return the `[N] uint64` numbers by which a Draw chooses."""
    return seeded_hash(uids, seed, "training sample")


def cut_for(numbers: np.ndarray, count: int) -> int:
    """Return the largest of the `count` smallest numbers."""
    kept = min(count, len(numbers))
    return int(np.partition(numbers, kept - 1)[kept - 1])


@dataclass(frozen=True, slots=True)
class Choice:
    """Which pairs of a source take part; all of them by default, as plain pairs."""

    lookup: Lookup | None = None
    draw: Draw | None = None

    def of(self, unit: Unit) -> "Chosen":
        """Return what is chosen of one unit."""
        return Chosen(None if self.lookup is None else self.lookup.of(unit), self.draw)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is chosen of one unit."""

    standings: Mapping[str, Standing] | None
    draw: Draw | None

    def wants(self, pair: RawPair) -> bool:
        """Tell whether a pair takes part, if it can be used."""
        if self.standings is not None and pair.uid not in self.standings:
            return False
        return self.draw is None or self.draw.takes(pair.uid, pair.label)

    def standing(self, uid: str) -> Standing:
        """Return the standing of a pair that takes part."""
        return Standing() if self.standings is None else self.standings[uid]

    def label(self, uid: str, own: int | None) -> int:
        """Return the class of a pair that takes part, NOBODY if it is not known; `own` is the data set's label."""
        told = self.standing(uid).label
        return told if told is not None else NOBODY if own is None else own
