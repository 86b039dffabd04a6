"""`clipsan status RUN`: what is done and what is left, from the committed files alone, from any shell."""

import json
import sys
from collections import Counter

import pyarrow as pa

from .core.commit import DamagedPartError, read_part
from .core.config import ConfigError
from .core.masking import one_line
from .core.place import AnyPath, place_of
from .core.run_folder import UNREAD, RunFolder, read_run_yaml, read_summary, rows_of


def command(run: str, _: list[str]) -> int:
    """Print the state of a run folder."""
    sys.stdout.write(describe(place_of(run)))
    return 0


def describe(root: AnyPath) -> str:
    """Return the state of a run as text, with a line for whatever in it is damaged, and beneath it that of its steps.

    Raises:
        ConfigError: the folder is no run of clipsan.
    """
    folder = RunFolder(root)
    record = read_run_yaml(root)
    lines = [f"{record['verb']}  {root}  fingerprint {record['fingerprint'][:12]}"]
    for told in (_passes, _rejections, _end, _steps):
        try:
            lines += told(folder)
        except ConfigError as error:
            lines.append(f"damaged   {one_line(error)}")
    return "\n".join(lines) + "\n"


def _passes(folder: RunFolder) -> list[str]:
    return [_pass_line(name, folder.root / entry["folder"], entry["parts"]) for name, entry in folder.begun().items()]


def _end(folder: RunFolder) -> list[str]:
    """Return how a run ended, and where its report is."""
    if not folder.summary.is_file():
        return ["not finished: the command that started it goes on from here"]
    try:
        summary = read_summary(folder.root)
    except ConfigError as error:
        raise ConfigError(f"{error}; remove it, and the same command writes it anew") from error
    seconds = summary.get("seconds")
    took = f" in {seconds:.0f} s" if isinstance(seconds, (int, float)) else ""
    lines = [f"finished{took}: {json.dumps(summary.get('counts'))}"]
    unread = summary.get(UNREAD)
    if isinstance(unread, dict) and isinstance(unread.get("count"), int):
        lines.append(f"but for {unread['count']:,} shards that could not be read: the same command reads them")
    if summary.get("report"):
        lines.append(f"report    {summary['report']}")
    return lines


def _steps(folder: RunFolder) -> list[str]:
    lines = []
    for step in sorted(path.parent for path in folder.root.glob("*/run.yaml")):
        try:
            lines += [f"  {line}" for line in describe(step).splitlines()]
        except ConfigError as error:
            lines.append(f"  damaged   {one_line(error)}")
    return lines


def _pass_line(name: str, folder: AnyPath, total: int) -> str:
    found = {path: rows_of(path) for path in folder.rglob("part-*.parquet")}
    parts = {path: rows for path, rows in found.items() if rows is not None}
    broken = (
        f", {len(found) - len(parts)} damaged, which the same command makes again" if len(parts) < len(found) else ""
    )
    if not parts:
        return f"{name:<9} 0/{total} parts{broken}"
    rows = sum(parts.values())
    times = sorted(path.stat().st_mtime for path in parts)
    span = times[-1] - times[0]
    line = f"{name:<9} {len(parts)}/{total} parts, {rows:,} rows{broken}"
    if len(parts) > 1 and span > 0:
        # The first part marks the start of the clock, so its own rows are left out of the rate.
        rate = rows * (len(parts) - 1) / len(parts) / span
        line += f", {rate:,.0f} rows/s"
        if len(parts) < total:
            line += f", about {(total - len(parts)) * span / (len(parts) - 1):,.0f} s left at that rate"
    return line


def _rejections(folder: RunFolder) -> list[str]:
    """Return how many pairs were rejected for each reason, and the parts that do not say."""
    counts: Counter[str] = Counter()
    lines = []
    paths: list[AnyPath] = sorted(folder.rejected.glob("part-*.parquet"))
    for path in paths:
        try:
            counts.update(map(str, read_part(folder.rejected, path.stem, ["reason"]).column("reason").to_pylist()))
        except DamagedPartError as error:
            lines.append(f"damaged   {error}")
        except (pa.ArrowException, KeyError):
            lines.append(f"damaged   {path} holds no reasons of clipsan")
    told = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items()))
    return [f"rejected  {told}", *lines] if told else lines
