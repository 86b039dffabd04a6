"""The wall of pictures: the most suspicious pairs of a scan, each with what carries its claim."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from clipsan.stages.report.content import FlaggedPair
from clipsan.stages.report.page import PICTURE_LIMIT
from clipsan.stages.verdicts import ACCUSING

from ..core.parts import Parts, has_any
from ..data.pixels import Pictures, pieces_of
from ..proof.prove import Proof
from ..proof.report import masks_of
from .passes import Scan
from .work import PictureWork


@dataclass(frozen=True, slots=True)
class Flagged:
    """One of the most suspicious pairs, before its picture is fetched."""

    part: int
    row: dict[str, Any]
    """Of its verdict: uid, caption, reasons, concept, verdict, trigger_id and scores."""

    @property
    def uid(self) -> str:
        return str(self.row["uid"])


def most_suspicious(verdicts: Parts, names: list[str], limit: int = PICTURE_LIMIT) -> list[Flagged]:
    """Return the flagged pairs with the highest ensemble scores, ties by uid; never holds more than one part beside them."""
    best: list[Flagged] = []
    for index in verdicts.numbers:
        table = verdicts.read(index, ["uid", "caption", "reasons", "concept", "verdict", "trigger_id", *names])
        flagged = has_any(table.column("reasons"), ACCUSING)
        best += [Flagged(index, row) for row in table.filter(pa.array(flagged)).to_pylist()]
        best = sorted(best, key=lambda pair: (-pair.row["ensemble"], pair.uid))[:limit]
    return best


def wall(scan: Scan, names: list[str], proof: Proof, truth: np.ndarray | None) -> tuple[FlaggedPair, ...]:
    """Return the most suspicious pairs, of those whose picture could be read again.

    Args:
        scan: whose verdicts are written.
        names: the score columns to show.
        proof: knows which region of a picture carries its claim.
        truth: `[N] bool`, the poisoned pairs, where they are known.
    """
    best = most_suspicious(scan.verdicts, names)
    pictures = _pictures(scan, best, proof)
    poisoned = None if truth is None else _uids_of(scan.scores, truth)
    return tuple(
        FlaggedPair(
            uid=pair.uid,
            caption=pair.row["caption"],
            picture=pictures[pair.uid][0],
            heat=pictures[pair.uid][1],
            verdict=pair.row["verdict"] if scan.plan.config.oracle is not None else None,
            trigger_id=pair.row["trigger_id"],
            score=pair.row["ensemble"],
            rank=rank,
            reasons=tuple(pair.row["reasons"]),
            concept=pair.row["concept"],
            scores={name: pair.row[name] for name in names},
            truth=None if poisoned is None else pair.uid in poisoned,
        )
        for rank, pair in enumerate(best, 1)
        if pair.uid in pictures
    )


def _pictures(scan: Scan, flagged: list[Flagged], proof: Proof) -> dict[str, tuple[bytes, bytes | None]]:
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


def _uids_of(table: Parts, rows: np.ndarray) -> set[str]:
    """Return the uids of some rows `[N] bool` of a table."""
    ends = np.cumsum(list(table.rows.values()))[:-1]
    blocks = zip(table.tables(["uid"]), np.split(rows, ends), strict=True)
    return {uid for part, own in blocks for uid in part.filter(own).column("uid").to_pylist()}
