"""What a finished scan shows: the figures of summary.json, the uid lists, the flagged pairs with their pictures."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipsan.stages.decode import decode
from clipsan.stages.evaluation.detection import detection_figures
from clipsan.stages.model.clip import Inputs, ModelConfig, resolve_model
from clipsan.stages.report.figures import overlay, thumbnail
from clipsan.stages.report.page import PICTURE_LIMIT
from clipsan.stages.samples import Unit, uid_array
from clipsan.stages.sources import SourceConfig, read_unit
from clipsan.stages.verdicts import ACCUSING, Reason, Verdict

from ..core.cluster import ClusterConfig
from ..core.commit import read_part
from ..core.config import ConfigError
from ..core.pass_old import Row, run_pass
from ..core.run_folder import RunFolder


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


def count_pairs(folder: RunFolder, parts: Iterable[int]) -> Counts:
    """Count verdicts, reasons and rejected pairs from the committed parts."""
    verdicts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    accused = 0
    for index in parts:
        table = read_part(folder.verdicts, index, ["verdict", "reasons"])
        verdicts.update(table.column("verdict").to_pylist())
        reasons.update(pc.list_flatten(table.column("reasons")).to_pylist())
        accused += sum(not ACCUSING.isdisjoint(found) for found in table.column("reasons").to_pylist())
    for path in sorted(folder.rejected.glob("part-*.parquet")):
        with path.open("rb") as source:
            rejected.update(pq.read_table(source, columns=["reason"]).column("reason").to_pylist())
    return Counts(
        clean=verdicts[Verdict.CLEAN.value],
        suspect=verdicts[Verdict.SUSPECT.value],
        poisoned=verdicts[Verdict.POISONED.value],
        flagged=reasons[Reason.POISON_SUSPECT.value],
        accused=accused,
        reasons=dict(sorted(reasons.items())),
        rejected=dict(sorted(rejected.items())),
    )


def column(folder: Path, parts: Iterable[int], name: str) -> np.ndarray:
    """Return one numeric column of all parts, in the order of the data set (4 bytes a pair)."""
    blocks = [read_part(folder, index, [name]).column(name).to_numpy() for index in parts]
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


def accused_mask(folder: Path, parts: Iterable[int], reasons: frozenset[str] | None = None) -> np.ndarray:
    """Return `[N] bool`: pairs with one of the reasons; None: accused of poison, by the statistics or by proof."""
    wanted = ACCUSING if reasons is None else reasons
    blocks = [
        np.array([not wanted.isdisjoint(found) for found in table.column("reasons").to_pylist()], bool)
        for table in (read_part(folder, index, ["reasons"]) for index in parts)
    ]
    return np.concatenate(blocks) if blocks else np.empty(0, bool)


def score_names(folder: Path, parts: Iterable[int]) -> list[str]:
    """Return the score columns, the ensemble first."""
    first = next(iter(parts))
    table = read_part(folder, first)
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


def truth_mask(folder: Path, parts: Iterable[int], poisoned: pa.Array) -> np.ndarray:
    """Return `[N] bool`: which scanned pairs the manifest calls poisoned."""
    blocks = [pc.is_in(read_part(folder, i, ["uid"]).column("uid"), value_set=poisoned).to_numpy() for i in parts]
    return np.concatenate(blocks).astype(bool) if blocks else np.empty(0, bool)


def detection_summary(folder: Path, parts: list[int], truth: np.ndarray) -> dict[str, Any]:
    """Return the detection figures of every score column against the truth."""
    return {name: detection_figures(column(folder, parts, name), truth) for name in score_names(folder, parts)}


def save_uid_lists(folder: RunFolder, parts: Iterable[int], quarantine: frozenset[str]) -> None:
    """Write flagged.npy (pairs with a reason of `quarantine`) and allow.npy (the others), in DataComp's format."""
    flagged: list[str] = []
    allowed: list[str] = []
    for index in parts:
        table = read_part(folder.verdicts, index, ["uid_hex", "reasons"])
        for uid, reasons in zip(table.column("uid_hex").to_pylist(), table.column("reasons").to_pylist(), strict=True):
            (allowed if quarantine.isdisjoint(reasons) else flagged).append(uid)
    np.save(folder.root / "flagged.npy", uid_array(flagged))
    np.save(folder.root / "allow.npy", uid_array(allowed))


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


def most_suspicious(
    folder: RunFolder, parts: Iterable[int], names: list[str], limit: int = PICTURE_LIMIT
) -> list[Flagged]:
    """Return the flagged pairs with the highest ensemble scores, ties by uid; never holds more than one part beside them."""
    best: list[Flagged] = []
    for index in parts:
        table = read_part(
            folder.verdicts, index, ["uid", "caption", "reasons", "concept", "verdict", "trigger_id", *names]
        )
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


class PictureWork:
    """Fetches the pictures of a few pairs of one unit, as thumbnails, and what carries the claim on them."""

    def __init__(
        self, source: SourceConfig, max_pixels: int, model: ModelConfig, masks: Mapping[str, np.ndarray]
    ) -> None:
        self._source = source
        self._max_pixels = max_pixels
        self._masks = masks
        self._inputs = Inputs(resolve_model(model)) if masks else None

    def run(self, piece: tuple[Unit, frozenset[str]]) -> Row:
        unit, wanted = piece
        pictures: dict[str, tuple[bytes, bytes | None]] = {}
        for pair in read_unit(self._source, unit):
            if pair.reject is None and pair.uid in wanted and pair.image is not None:
                rgb = decode(pair.image, self._max_pixels).rgb
                pictures[pair.uid] = thumbnail(rgb), self._overlay(pair.uid, rgb)
            if len(pictures) == len(wanted):
                break
        return {"pairs": len(pictures), "pictures": pictures}

    def _overlay(self, uid: str, rgb: np.ndarray) -> bytes | None:
        if self._inputs is None or uid not in self._masks:
            return None
        seen = self._inputs.preprocess(rgb).permute(1, 2, 0).numpy()
        return overlay(np.ascontiguousarray(seen), self._masks[uid])


def fetch_pictures(
    source: SourceConfig,
    units: list[Unit],
    flagged: list[Flagged],
    *,
    max_pixels: int,
    model: ModelConfig,
    masks: Mapping[str, np.ndarray],
    cluster: ClusterConfig,
) -> dict[str, tuple[bytes, bytes | None]]:
    """Return uid -> thumbnail, and the same with the region `masks[uid]` if there is one; read from the source again."""
    by_unit: dict[int, set[str]] = {}
    for pair in flagged:
        by_unit.setdefault(pair.part, set()).add(pair.uid)
    pieces = [(unit, frozenset(by_unit[unit.index])) for unit in units if unit.index in by_unit]
    pictures: dict[str, tuple[bytes, bytes | None]] = {}
    args = (source, max_pixels, model, masks)
    for record in run_pass("pictures", pieces, PictureWork, args, cluster=cluster):
        pictures |= record["pictures"]
    return pictures


def rejected_examples(folder: RunFolder, limit: int) -> list[Mapping[str, str]]:
    """Return the first rejected pairs, in the order of the data set."""
    found: list[Mapping[str, str]] = []
    for path in sorted(folder.rejected.glob("part-*.parquet")):
        with path.open("rb") as source:
            found += pq.read_table(source, columns=["uid", "reason"]).slice(0, limit - len(found)).to_pylist()
        if len(found) >= limit:
            break
    return found
