"""What a finished scan shows: the figures of summary.json, the uid lists, the flagged pairs with their pictures."""

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipsan.stages.evaluation.detection import detection_figures
from clipsan.stages.report.page import PICTURE_LIMIT
from clipsan.stages.samples import uid_array
from clipsan.stages.verdicts import ACCUSING, Reason, Verdict

from ..core.config import ConfigError
from ..core.parts import Parts
from ..data.pixels import Pictures, pieces_of
from ..proof.prove import Proof
from ..proof.report import masks_of
from .passes import Scan
from .work import PictureWork


@dataclass(frozen=True, slots=True)
class Counts:
    """Where the pairs went; `pairs_in` is the sum of verdicts and rejected."""

    clean: int
    suspect: int
    poisoned: int
    flagged: int
    accused: int
    """Flagged, or with a proven trigger."""
    reasons: dict[str, int]
    rejected: dict[str, int]

    @property
    def verdicts(self) -> int:
        return self.clean + self.suspect + self.poisoned

    @property
    def pairs_in(self) -> int:
        return self.verdicts + sum(self.rejected.values())

    def tree(self) -> dict[str, Any]:
        """Return the counts as they stand in summary.json."""
        return {
            "pairs_in": self.pairs_in,
            "verdicts": {
                Verdict.CLEAN.value: self.clean,
                Verdict.SUSPECT.value: self.suspect,
                Verdict.POISONED.value: self.poisoned,
            },
            "reasons": self.reasons,
            "rejected": sum(self.rejected.values()),
            "rejected_by_reason": self.rejected,
            "flagged": self.flagged,
        }


def count_pairs(scan: Scan) -> Counts:
    """Count verdicts, reasons and rejected pairs from the committed parts."""
    verdicts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    accused = 0
    for table in scan.verdicts.tables(["verdict", "reasons"]):
        verdicts.update(table.column("verdict").to_pylist())
        reasons.update(pc.list_flatten(table.column("reasons")).to_pylist())
        accused += sum(not ACCUSING.isdisjoint(found) for found in table.column("reasons").to_pylist())
    for table in Parts.of(scan.folder.rejected).tables(["reason"]):
        rejected.update(table.column("reason").to_pylist())
    return Counts(
        clean=verdicts[Verdict.CLEAN.value],
        suspect=verdicts[Verdict.SUSPECT.value],
        poisoned=verdicts[Verdict.POISONED.value],
        flagged=reasons[Reason.POISON_SUSPECT.value],
        accused=accused,
        reasons=dict(sorted(reasons.items())),
        rejected=dict(sorted(rejected.items())),
    )


def accused_mask(verdicts: Parts, reasons: frozenset[str] = ACCUSING) -> np.ndarray:
    """Return `[N] bool`: pairs with one of the reasons; by default those accused of poison, by the statistics or by proof."""
    blocks = [
        np.array([not reasons.isdisjoint(found) for found in table.column("reasons").to_pylist()], bool)
        for table in verdicts.tables(["reasons"])
    ]
    return np.concatenate(blocks) if blocks else np.empty(0, bool)


def score_names(scores: Parts) -> list[str]:
    """Return the score columns, the ensemble first."""
    table = scores.read(scores.numbers[0])
    names = [field.name for field in table.schema if pa.types.is_float32(field.type)]
    return sorted(names, key=lambda name: (name != "ensemble", name))


def manifest_uids(path: str) -> pa.Array:
    """Return the uids that a manifest calls poisoned.

    Raises:
        ConfigError: the file is no Parquet file with a column `uid`.
    """
    try:
        return pq.read_table(path, columns=["uid"]).column("uid").combine_chunks()
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        raise ConfigError(
            f"manifest={path}: not a manifest of `clipsan poison` ({' '.join(str(error).split())[:200]})"
        ) from None


def truth_mask(table: Parts, poisoned: pa.Array) -> np.ndarray:
    """Return `[N] bool`: which pairs of a table the manifest calls poisoned."""
    blocks = [pc.is_in(part.column("uid"), value_set=poisoned).to_numpy() for part in table.tables(["uid"])]
    return np.concatenate(blocks).astype(bool) if blocks else np.empty(0, bool)


def detection_summary(scores: Parts, truth: np.ndarray) -> dict[str, Any]:
    """Return the detection figures of every score column against the truth."""
    return {name: detection_figures(scores.column(name), truth) for name in score_names(scores)}


@dataclass(frozen=True, slots=True)
class Measured:
    """A scan held against the ground truth."""

    truth: np.ndarray
    """`[N] bool`: the poisoned pairs."""
    detection: dict[str, Any] | None
    """Figures of every score column; None where all pairs are poisoned, or none is."""

    @classmethod
    def of(cls, scores: Parts, manifest: str) -> "Measured":
        """Measure the scores; see manifest_uids for what is raised."""
        truth = truth_mask(scores, manifest_uids(manifest))
        if not truth.any():
            sys.stderr.write(f"manifest={manifest}: it names none of the scanned pairs, so nothing is measured\n")
        measurable = truth.any() and not truth.all()
        return cls(truth, detection_summary(scores, truth) if measurable else None)

    def figures(self, scan: Scan, cut: float) -> dict[str, Any]:
        """Return what summary.json says of it; `cut` is the score from which a pair is flagged."""
        proven = accused_mask(scan.verdicts, frozenset({Reason.PROVEN_TRIGGER.value}))
        return {
            **({"detection": self.detection} if self.detection is not None else {}),
            "poisoned": int(self.truth.sum()),
            "poisoned_proven": int((self.truth & proven).sum()),
            "poisoned_flagged": int((self.truth & (scan.scores.column("ensemble") >= cut)).sum()),
        }


def save_uid_lists(scan: Scan) -> None:
    """Write flagged.npy (pairs that the clean copy leaves out) and allow.npy (the others), in DataComp's format."""
    flagged: list[str] = []
    allowed: list[str] = []
    for table in scan.verdicts.tables(["uid_hex", "reasons"]):
        for uid, reasons in zip(table.column("uid_hex").to_pylist(), table.column("reasons").to_pylist(), strict=True):
            (allowed if scan.quarantine.isdisjoint(reasons) else flagged).append(uid)
    np.save(scan.folder.root / "flagged.npy", uid_array(flagged))
    np.save(scan.folder.root / "allow.npy", uid_array(allowed))


@dataclass(frozen=True, slots=True)
class Flagged:
    """One of the most suspicious pairs, before its picture is fetched."""

    part: int
    uid: str
    caption: str
    score: float
    reasons: tuple[str, ...]
    concept: str | None
    verdict: str
    trigger_id: str | None
    scores: dict[str, float]


def most_suspicious(verdicts: Parts, names: list[str], limit: int = PICTURE_LIMIT) -> list[Flagged]:
    """Return the flagged pairs with the highest ensemble scores, ties by uid; never holds more than one part beside them."""
    best: list[Flagged] = []
    for index in verdicts.numbers:
        table = verdicts.read(index, ["uid", "caption", "reasons", "concept", "verdict", "trigger_id", *names])
        flagged = [not ACCUSING.isdisjoint(reasons) for reasons in table.column("reasons").to_pylist()]
        for row in table.filter(pa.array(flagged, pa.bool_())).to_pylist():
            scores = {name: float(row[name]) for name in names}
            best.append(
                Flagged(
                    part=index,
                    uid=row["uid"],
                    caption=row["caption"],
                    score=scores["ensemble"],
                    reasons=tuple(row["reasons"]),
                    concept=row["concept"],
                    verdict=row["verdict"],
                    trigger_id=row["trigger_id"],
                    scores=scores,
                )
            )
        best = sorted(best, key=lambda f: (-f.score, f.uid))[:limit]
    return best


def fetch_pictures(scan: Scan, flagged: list[Flagged], proof: Proof) -> dict[str, tuple[bytes, bytes | None]]:
    """Return uid -> thumbnail, and the same with the region that carries the claim if one is known; read from the source again."""
    plan, settings = scan.plan, scan.plan.config
    wanted: dict[int, list[str]] = {}
    for pair in flagged:
        wanted.setdefault(pair.part, []).append(pair.uid)
    work = PictureWork(Pictures(settings.data, settings.embed.max_pixels), settings.model, masks_of(proof, wanted))
    pictures: dict[str, tuple[bytes, bytes | None]] = {}
    for done in scan.records("show").each(list(pieces_of(plan.pairs.units, wanted).values()), work):
        pictures |= done.record
    return pictures


def rejected_examples(rejected: Parts, limit: int) -> list[Mapping[str, str]]:
    """Return the first rejected pairs, in the order of the data set."""
    found: list[Mapping[str, str]] = []
    for table in rejected.tables(["uid", "reason"]):
        found += table.slice(0, limit - len(found)).to_pylist()
        if len(found) >= limit:
            break
    return found
