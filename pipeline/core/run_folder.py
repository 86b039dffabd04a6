"""The folder of a run: where each thing lies, what made it, and its figures for machines."""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from clipsan.stages.evaluation.figures import check_units

from .commit import FOOTER_TAIL, REQUESTS, FingerprintError, clear_temporary, write_text
from .config import ConfigError
from .masking import masked_tree
from .place import AnyPath, place_of

PACKAGES = ("clipsan", "ray", "torch", "open_clip_torch", "pyarrow", "mlflow", "numpy", "scikit-learn")


UNREAD = "unread_shards"
"""Entry of summary.json of a run that could not read its whole input: the same command goes on with the rest."""
UNTOLD = "the input changed, the model, a file that the settings name, or clipsan itself"
"""What differs where neither the settings nor the verb tell."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run: everything that it leaves lies in one folder."""

    root: AnyPath

    @property
    def local(self) -> Path:
        """The same root, for a verb that writes to file systems alone (see Verb.on_stores)."""
        assert isinstance(self.root, Path)
        return self.root

    @property
    def embeddings(self) -> AnyPath:
        return self.root / "embeddings"

    @property
    def scores(self) -> AnyPath:
        return self.root / "scores"

    @property
    def work(self) -> AnyPath:
        """What a rerun needs and a reader does not."""
        return self.root / "work"

    @property
    def passes(self) -> AnyPath:
        """Name of each pass -> its folder and number of parts, as passes began; `clipsan status` reads it."""
        return self.work / "passes.json"

    @property
    def models(self) -> AnyPath:
        """Versions of a model registry that had to be fetched."""
        return self.root / "models"

    @property
    def verdicts(self) -> AnyPath:
        return self.root / "verdicts"

    @property
    def rejected(self) -> AnyPath:
        return self.root / "rejected"

    @property
    def report(self) -> AnyPath:
        return self.root / "report.html"

    @property
    def summary(self) -> AnyPath:
        return self.root / "summary.json"

    @property
    def run_yaml(self) -> AnyPath:
        return self.root / "run.yaml"

    @property
    def is_finished(self) -> bool:
        """Whether a run of clipsan has come to its end here."""
        return self.run_yaml.is_file() and self.summary.is_file()

    def begun(self) -> dict[str, Any]:
        """Return the passes that have begun, in their order: name -> folder and number of parts."""
        if not self.passes.is_file():
            return {}
        found = _read_json(self.passes)
        for entry in found.values():
            folder, parts = (entry.get("folder"), entry.get("parts")) if isinstance(entry, dict) else (None, None)
            # a stranger's folder must not lead anybody through the disk
            inside = (
                isinstance(folder, str)
                and 0 < len(folder) < 256
                and not folder.startswith("/")
                and ".." not in folder.split("/")
            )
            if not inside or "\0" in str(folder) or not isinstance(parts, int):
                raise ConfigError(
                    f"{self.passes}: holds no passes of clipsan (each with a folder in the run's, and its parts)"
                )
        return found


def open_run(
    out: str, *, verb: str, tree: Any, fingerprint: str, changed: Callable[[RunFolder], str | None] = lambda _: None
) -> RunFolder:
    """Create or reopen a run folder, clear what killed writers left in it, and write run.yaml.

    Args:
        out: the run folder.
        verb: whose.
        tree: the resolved configuration as a plain tree; credentials in it are masked.
        fingerprint: of everything that decides the result.
        changed: says what of the input is another than at the run before, where it knows.

    Raises:
        ConfigError: the folder belongs to another verb, or holds files that no run of clipsan made.
    """
    folder, tree = RunFolder(place_of(out)), masked_tree(tree)
    if folder.run_yaml.is_file():
        before = read_run_yaml(folder.root)
        if before.get("verb") != verb:
            raise ConfigError(
                f"out={out}: that folder holds a run of `clipsan {before.get('verb')}`; give another `out`"
            )
        if before.get("fingerprint") != fingerprint:
            told = _difference(before, tree) or changed(folder) or UNTOLD
            raise FingerprintError(
                f"out={out}: that folder holds a run with other settings or other input ({told}); give another `out`"
                + (", and embeddings=" + out + " to use its embeddings again" if verb == "scan" else "")
            )
    elif folder.root.is_dir() and any(folder.root.iterdir()):
        raise ConfigError(f"out={out}: that folder is not empty and no run of clipsan; give another `out`")
    clear_temporary(folder.root)
    record = {
        "verb": verb,
        "fingerprint": fingerprint,
        "config": tree,
        "versions": versions(),
    }
    write_text(folder.run_yaml, yaml.safe_dump(record, sort_keys=False, allow_unicode=True))
    return folder


def read_run_yaml(root: AnyPath) -> dict[str, Any]:
    """Return what run.yaml of a run folder holds: verb, fingerprint, config and versions.

    Raises:
        ConfigError: there is none, or it is not what clipsan writes (a stranger's, or damaged).
    """
    path = RunFolder(root).run_yaml
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{root}: no run.yaml there, so this is no run folder of clipsan") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML") from error
    texts = ("verb", "fingerprint")
    if (
        not isinstance(found, dict)
        or not all(isinstance(found.get(name), str) for name in texts)
        or not isinstance(found.get("config"), dict)
    ):
        raise ConfigError(f"{path}: holds no run of clipsan (verb, fingerprint and config)")
    return found


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    commit = _git_commit()
    return found | ({"git": commit} if commit else {})


def write_summary(folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Write summary.json, the run's figures for machines.

    Raises:
        ValueError: a percentage or a fraction is outside its range; see check_units.
    """
    check_units(summary)
    write_text(folder.summary, json.dumps(summary, indent=2, sort_keys=False, ensure_ascii=False) + "\n")


def read_summary(root: AnyPath) -> dict[str, Any]:
    """Return summary.json of a finished run.

    Raises:
        ConfigError: it is not what clipsan writes (a stranger's, or damaged).
    """
    return _read_json(root / "summary.json")


def _read_json(path: AnyPath) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must hold a JSON object, not {type(found).__name__}")
    return found


def finished(root: AnyPath, fingerprint: str) -> dict[str, Any] | None:
    """Return the summary of a run folder that is finished and has this fingerprint; None where it is not.

    A run that left shards unread is not.
    """
    fits = RunFolder(root).is_finished and read_run_yaml(root)["fingerprint"] == fingerprint
    summary = read_summary(root) if fits else None
    return None if summary is not None and UNREAD in summary else summary


def finished_scan(run: str, verbs: tuple[str, ...] = ("scan",)) -> tuple[RunFolder, dict[str, Any]]:
    """Return the folder of a finished scan that a setting `scan` names, and what its run.yaml holds; `verbs` may stand for a scan.

    Raises:
        ConfigError: there is no finished scan.
    """
    folder = RunFolder(place_of(run))
    if not folder.is_finished:
        raise ConfigError(f"scan={run}: no finished run of `clipsan scan` there")
    record = read_run_yaml(folder.root)
    if record["verb"] not in verbs:
        raise ConfigError(f"scan={run}: that folder holds a run of `clipsan {record['verb']}`")
    unread = read_summary(folder.root).get(UNREAD)
    if unread is not None:
        raise ConfigError(
            f"scan={run}: {unread['count']:,} of its shards could not be read; run that scan again first, which reads them"
        )
    return folder, record


def part_rows(folder: AnyPath) -> dict[int, int]:
    """Return part index -> rows, for the committed parts of a pass, from their footers alone; without those that are damaged."""
    found = {}
    with ThreadPoolExecutor(REQUESTS) as pool:
        paths: list[AnyPath] = sorted(folder.glob("part-*.parquet"))
        for path, rows in zip(paths, pool.map(rows_of, paths), strict=True):
            if rows is not None:
                found[int(path.stem.removeprefix("part-"))] = rows
    return found


def rows_of(part: AnyPath) -> int | None:
    """Return the rows of a part from its footer; None for one that is damaged and will be made again."""
    with part.open("rb") as source:
        end = source.seek(0, os.SEEK_END)
        source.seek(max(0, end - FOOTER_TAIL))
        length = int.from_bytes(source.read(4), "little")
        source.seek(max(0, end - FOOTER_TAIL - length))
        footer = source.read()
    try:  # what Arrow says of broken bytes is an OSError, too, and must not be taken for a store that is away
        return int(pq.read_metadata(pa.BufferReader(footer)).num_rows)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return None


def _difference(before: Mapping[str, Any], tree: Any) -> str:
    """Name the settings that differ, as dotted paths; nothing where none does."""
    old, new = flatten(before.get("config", {})), flatten(tree)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return "differs in " + ", ".join(names[:5]) if names else ""


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested tree as dotted path -> value, each path after a prefix."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {path: leaf for key, value in tree.items() for path, leaf in flatten(value, f"{prefix}{key}.").items()}


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
