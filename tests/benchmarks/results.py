"""The store of benchmark figures: the tables of RESULTS.md are generated from these files, never typed.

One JSON file a subject in tests/benchmarks/results/, with one flat row a measured cell. A row is replaced by a new one of the same
key, so a benchmark can be run cell by cell; the head of the file (date, versions, machine) is that of the last cell written.
"""

import fcntl
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from clipsan.pipeline.core.commit import write_text
from clipsan.pipeline.core.run_folder import versions

FOLDER = Path(__file__).resolve().parent / "results"

Value = str | int | float | bool | list[float] | None
Row = dict[str, Value]

KEYS = {
    "attacks": ("data", "attack", "trigger", "rate_pct", "model", "seed"),
    "suspects": ("data", "attack", "seed", "model"),
    "detection": ("data", "attack", "rate_pct", "detector", "model", "seed"),
    "throughput": ("method", "data", "model"),
    "fuzz": ("format",),
    "clean_models": ("model", "data"),
    "matching": ("images", "side_px", "patch_px", "patch"),
    "scan_224": ("images", "side_px", "patch_px"),
    "scale": ("pairs", "oracle", "workers"),
    "audit": ("model", "attack", "seed", "reference"),
    "audit_peers": ("model", "attack", "seed", "reference"),
    "audit_guard": ("model", "attack", "seed"),
    "naming": ("cell", "clean_pct", "poisoned", "concept_poisoned_pct"),
    "demo": ("data", "attack", "detector", "model", "seed"),
    # the suspect models are trained where they are repaired, and no two kinds of processor round alike
    "repair": ("data", "attack", "method", "model", "seed", "cpu"),
    "sweep": ("data", "attack", "method", "model", "model_seed", "seed"),
    "faults": ("fault",),
    "oracle": ("set", "oracle", "attack", "seed"),
    "per_image": ("set", "oracle", "prune", "attack", "seed"),
    "density": (
        *("data", "attack", "rate_pct", "model", "seed"),
        *("reference", "block_pairs", "k", "averaged", "version"),
    ),
}
"""Fields of a row that say which cell it is, for each file."""


class ResultsError(ValueError):
    """A stored file or a new row does not have the shape that the tables need."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a time was measured on; no host name and no path."""

    cpu: str
    cores: int
    memory_gib: float


@dataclass(frozen=True, slots=True)
class Results:
    """One file of figures."""

    command: str
    """What measures them, from the root of a checkout."""
    seeds: list[int]
    date: str
    """Day of the last row written, as 2026-01-31."""
    versions: dict[str, str]
    machine: Machine
    rows: list[Row]


def this_machine() -> Machine:
    """Return the cores that this process may use, the memory and the kind of processor."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        cpu=processor(text) or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(memory / 2**30, 1),
    )


def processor(cpuinfo: str) -> str | None:
    """Return a processor's name with its family and model, which tell apart what a hypervisor gives one name."""
    found = [
        re.search(rf"^{name}\s*:\s*(.+)$", cpuinfo, re.MULTILINE) for name in ("model name", "cpu family", "model")
    ]
    shown = [match.group(1).strip() for match in found if match]
    return f"{shown[0]} ({'-'.join(shown[1:])})" if len(shown) == len(found) else None


def load(name: str, folder: Path = FOLDER) -> Results | None:
    """Return the stored figures; None when nothing has been measured.

    Raises:
        ResultsError: the file does not have the shape of Results, or a row is not flat or lacks its key.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    tree = json.loads(path.read_text(encoding="utf-8"))
    try:
        found = Results(**{**tree, "machine": Machine(**tree["machine"])})
    except (TypeError, KeyError) as error:
        raise ResultsError(f"{path.name}: not a file of figures: {error}") from None
    for row in found.rows:
        check(name, row)
    return found


def record(name: str, rows: Iterable[Mapping[str, Value]], *, command: str, folder: Path = FOLDER) -> Results:
    """Add rows to a file, each in place of the one with the same key, and return what it holds then.

    Several benchmarks may write to one file at the same time.

    Raises:
        ResultsError: a row is not flat, or lacks a field of its key.
    """
    fresh = [dict(row) for row in rows]
    for row in fresh:
        check(name, row)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = load(name, folder)
        merged = {key(name, row): row for row in (before.rows if before else [])}
        merged |= {key(name, row): row for row in fresh}
        ordered = [merged[k] for k in sorted(merged, key=_sortable)]
        seeds = sorted({int(row["seed"]) for row in ordered if isinstance(row.get("seed"), int)})
        found = Results(command, seeds, date.today().isoformat(), versions(), this_machine(), ordered)
        write_text(folder / f"{name}.json", json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n")
    return found


def key(name: str, row: Mapping[str, Value]) -> tuple[Value, ...]:
    """Return what tells a row from the others of its file."""
    return tuple(row[field] for field in KEYS[name])  # type: ignore[return-value]


def check(name: str, row: Mapping[str, Value]) -> None:
    """Refuse what the tables could not show.

    Raises:
        ResultsError: the file is unknown, a field of the key is missing, a value is neither a scalar nor an interval
            (`*_ci95`, two numbers), or a share (`*_pct`) is outside 0 to 100.
    """
    if name not in KEYS:
        raise ResultsError(f"{name}: no such file of figures; there are {', '.join(KEYS)}")
    missing = [field for field in KEYS[name] if field not in row]
    if missing:
        raise ResultsError(f"{name}: a row lacks {', '.join(missing)}: {dict(row)}")
    for field, value in row.items():
        if isinstance(value, list):
            if not field.endswith("_ci95") or len(value) != 2:
                raise ResultsError(f"{name}: {field} is a list, but only *_ci95 is one, of two numbers")
        elif not isinstance(value, str | int | float | bool | None):
            raise ResultsError(f"{name}: {field} is {type(value).__name__}, and rows are flat")
        elif field.endswith("_pct") and value is not None and not (_is_number(value) and 0 <= value <= 100):
            raise ResultsError(f"{name}: {field}={value}, but a percentage lies in 0 to 100")


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _sortable(values: tuple[Value, ...]) -> tuple[tuple[int, float, str], ...]:
    """Numbers by falling size, then text, then nothing: the higher poison rate comes first."""
    return tuple(
        (0, -float(v), "") if isinstance(v, int | float) else (2, 0.0, "") if v is None else (1, 0.0, str(v))
        for v in values
    )
