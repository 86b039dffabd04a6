"""What a scan could not read: shards that are gone or broken, and what is likely to help where most pairs are rejected."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clipsan.stages.samples import Reject
from clipsan.stages.sources.hints import ONE_ROW, likely_remedy

from ..core.parts import Parts
from ..core.run_folder import UNREAD

NAMED = 20
"""So many lost shards are named."""


@dataclass(frozen=True, slots=True)
class Losses:
    """What could not be read."""

    shards: tuple[str, ...]
    """Shards that cannot be read, at all or from some place on, in the order of the data set."""
    of: int
    """All shards."""
    hint: str | None
    """What is likely to help where most pairs are rejected for one cause."""
    unread: tuple[str, ...] = ()
    """Shards that could not be reached, or whose pairs kept killing the workers: the same command again reads them."""
    why_unread: str = ""

    @classmethod
    def of_run(cls, rejected: Parts, *, scanned: int, shards: int) -> "Losses":
        """Return what the rejected pairs of a scan say; `scanned` pairs were read."""
        lost: dict[str, None] = {}

        def causes() -> Iterator[tuple[str, str]]:
            for table in rejected.tables(["shard", "reason", "detail"]):
                for row in table.to_pylist():
                    if row["reason"] == Reject.SHARD_DAMAGED.value and not row["detail"].startswith(ONE_ROW):
                        lost[row["shard"]] = None
                    yield row["reason"], row["detail"]

        hint = likely_remedy(causes(), scanned + rejected.total)
        return cls(tuple(lost), shards, hint)

    @property
    def pct(self) -> float:
        return 100 * len(self.shards) / max(1, self.of)

    def tree(self, max_lost_shards_pct: float | None) -> dict[str, Any]:
        """Return the losses as they stand in summary.json; nothing where nothing is lost."""
        told: dict[str, Any] = {}
        if self.shards:
            too_many = max_lost_shards_pct is not None and self.pct > max_lost_shards_pct
            names = list(self.shards[:NAMED])
            told["lost_shards"] = {"count": len(self.shards), "of": self.of, "names": names, "too_many": too_many}
        if self.unread:
            names = list(self.unread[:NAMED])
            told[UNREAD] = {"count": len(self.unread), "of": self.of, "names": names, "why": self.why_unread}
        if self.hint is not None:
            told["hint"] = self.hint
        return told


def closing(summary: dict[str, Any]) -> str:
    """Return what the last lines of a scan say of its losses."""
    lost = summary.get("lost_shards")
    changed = summary.get("counts", {}).get("bytes_changed", 0)
    line = f"; {changed:,} images are not the ones whose hash the data set publishes" if changed else ""
    if lost is not None:
        more = ", ..." if lost["count"] > len(lost["names"]) else ""
        limit = ", more than max_lost_shards_pct allows" if lost["too_many"] else ""
        line += f"; {lost['count']:,} of {lost['of']:,} shards could not be read to their end{limit}: {', '.join(lost['names'])}{more}"
    line += f"\nscan: {summary['hint']}" if "hint" in summary else ""
    return line + (f"\nscan: not finished: {unread_said(summary)}" if UNREAD in summary else "")


def unread_said(summary: dict[str, Any]) -> str:
    """Return which shards a scan could not read, why, and what to do."""
    unread = summary[UNREAD]
    more = ", ..." if unread["count"] > len(unread["names"]) else ""
    why = f" ({unread['why']})" if unread["why"] else ""
    return (
        f"{unread['count']:,} of {unread['of']:,} shards could not be read{why}: {', '.join(unread['names'])}{more}; "
        "nothing is said of their pairs, and the same command again reads them"
    )


def status(summary: dict[str, Any]) -> int:
    """Return the exit status: 1 where shards could not be read, or more are lost than the user allows."""
    return int(UNREAD in summary or summary.get("lost_shards", {}).get("too_many", False))
