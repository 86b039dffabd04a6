"""`clipsan status RUN`: what is done and what is left, from the committed files alone, from any shell."""

import json
import sys
from collections import Counter

from .core.commit import parquet_table
from .core.place import AnyPath, place_of
from .core.run_folder import UNREAD, RunFolder, read_run_yaml, read_summary, rows_of


def command(run: str, _: list[str]) -> int:
    """Print the state of a run folder."""
    sys.stdout.write(describe(place_of(run)))
    return 0


def describe(root: AnyPath) -> str:
    """Return the state of a run as text, and beneath it that of its steps.

    Raises:
        ConfigError: the folder is no run of clipsan.
    """
    folder = RunFolder(root)
    record = read_run_yaml(root)
    lines = [f"{record['verb']}  {root}  fingerprint {record['fingerprint'][:12]}"]
    lines += [_pass_line(name, root / entry["folder"], entry["parts"]) for name, entry in folder.begun().items()]
    rejected = _rejections(folder.rejected)
    if rejected:
        lines.append("rejected  " + ", ".join(f"{reason} {count:,}" for reason, count in sorted(rejected.items())))
    if folder.summary.is_file():
        summary = read_summary(root)
        seconds = summary.get("seconds")
        took = f" in {seconds:.0f} s" if isinstance(seconds, (int, float)) else ""
        lines.append(f"finished{took}: {json.dumps(summary.get('counts'))}")
        unread = summary.get(UNREAD)
        if isinstance(unread, dict) and isinstance(unread.get("count"), int):
            lines.append(f"but for {unread['count']:,} shards that could not be read: the same command reads them")
        if summary.get("report"):
            lines.append(f"report    {summary['report']}")
    else:
        lines.append("not finished: the command that started it goes on from here")
    for step in sorted(path.parent for path in root.glob("*/run.yaml")):
        lines += [f"  {line}" for line in describe(step).splitlines()]
    return "\n".join(lines) + "\n"


def _pass_line(name: str, folder: AnyPath, total: int) -> str:
    parts = {path: rows for path in folder.rglob("part-*.parquet") if (rows := rows_of(path)) is not None}
    if not parts:
        return f"{name:<9} 0/{total} parts"
    rows = sum(parts.values())
    times = sorted(path.stat().st_mtime for path in parts)
    span = times[-1] - times[0]
    line = f"{name:<9} {len(parts)}/{total} parts, {rows:,} rows"
    if len(parts) > 1 and span > 0:
        # The first part marks the start of the clock, so its own rows are left out of the rate.
        rate = rows * (len(parts) - 1) / len(parts) / span
        line += f", {rate:,.0f} rows/s"
        if len(parts) < total:
            line += f", about {(total - len(parts)) * span / (len(parts) - 1):,.0f} s left at that rate"
    return line


def _rejections(folder: AnyPath) -> Counter[str]:
    counts: Counter[str] = Counter()
    for path in folder.glob("part-*.parquet"):
        with path.open("rb") as source:
            counts.update(parquet_table(source, ["reason"]).column("reason").to_pylist())
    return counts
