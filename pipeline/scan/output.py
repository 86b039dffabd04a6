"""What a finished scan says in figures: where the pairs went, how well that fits the ground truth, and the uid lists."""

import sys
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipsan.stages.evaluation.detection import detection_figures
from clipsan.stages.samples import Reject, uid_array, uid_rows
from clipsan.stages.selection import ALLOWED, FLAGGED, REJECTED
from clipsan.stages.verdicts import ACCUSING, Reason, Verdict

from ..core.commit import parquet_table, whole
from ..core.config import ConfigError
from ..core.parts import Parts, has_any, value_counts
from .losses import Losses
from .passes import Scan
from .shared import among


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
    losses: Losses

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
            "bytes_changed": self.rejected.get(Reject.BYTES_CHANGED.value, 0),
            "flagged": self.flagged,
        }


def count_pairs(scan: Scan) -> Counts:
    """Count verdicts, reasons and rejected pairs from the committed parts."""
    verdicts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    accused = 0
    for table in scan.verdicts.tables(["verdict", "reasons"]):
        verdicts.update(value_counts(table.column("verdict")))
        reasons.update(value_counts(pc.list_flatten(table.column("reasons"))))
        accused += int(has_any(table.column("reasons"), ACCUSING).sum())
    rejected = Parts.of(scan.folder.rejected)
    shards = len({unit.shard for unit in scan.plan.pairs.units})
    losses = Losses.of_run(rejected, scanned=sum(verdicts.values()), shards=shards)
    losses = replace(losses, unread=scan.unread.shards, why_unread=scan.unread.reason)
    return Counts(
        clean=verdicts[Verdict.CLEAN.value],
        suspect=verdicts[Verdict.SUSPECT.value],
        poisoned=verdicts[Verdict.POISONED.value],
        flagged=reasons[Reason.POISON_SUSPECT.value],
        accused=accused,
        reasons=dict(sorted(reasons.items())),
        rejected=rejected.counts("reason"),
        losses=losses,
    )


def accused_mask(verdicts: Parts, reasons: frozenset[str] = ACCUSING) -> np.ndarray:
    """Return `[N] bool`: pairs with one of the reasons; by default those accused of poison, by the statistics or by proof."""
    blocks = [has_any(table.column("reasons"), reasons) for table in verdicts.tables(["reasons"])]
    return np.concatenate(blocks) if blocks else np.empty(0, bool)


def score_names(scores: Parts) -> list[str]:
    """Return the score columns, the ensemble first."""
    table = scores.read(scores.numbers[0])
    names = [field.name for field in table.schema if pa.types.is_float32(field.type)]
    return sorted(names, key=lambda name: (name != "ensemble", name))


def manifest_uids(path: str) -> pa.Array:
    """Return the uids that a manifest calls poisoned: all of a control's, of an attack those whose caption names a target.

    Raises:
        ConfigError: the file is no Parquet file with a column `uid`.
    """
    try:
        names = set(pq.read_schema(path).names)
        table = parquet_table(path, ["uid", *names & {"target"}])
        if "target" in names and table.column("target").null_count < table.num_rows:
            table = table.filter(pc.is_valid(table.column("target")))
        return table.column("uid").combine_chunks()
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
    """Write the uids of all pairs in DataComp's format: flagged.npy (what the clean copy leaves out), allow.npy (the others) and
    rejected.npy (what could not be scanned).

    No uid is both in allow.npy and in another list: of a pair with a key that was taken the same uid was scanned, but whoever takes
    pairs by their uid takes both.
    """
    rejected = Parts.of(scan.folder.rejected).tables(["uid_hex"])
    unread = uid_array(uid_rows(table.column("uid_hex").to_pylist()) for table in rejected)
    flagged: list[np.ndarray] = []
    allowed: list[np.ndarray] = []
    for table in scan.verdicts.tables(["uid_hex", "reasons"]):
        bad = has_any(table.column("reasons"), scan.quarantine)
        uids = uid_rows(table.column("uid_hex").to_pylist())
        flagged.append(uids[bad])
        allowed.append(uids[~(bad | among(uids, unread))])
    for name, uids in ((FLAGGED, uid_array(flagged)), (ALLOWED, uid_array(allowed)), (REJECTED, unread)):
        with whole(scan.folder.root / name) as temporary, temporary.open("wb") as file:
            np.save(file, uids)
