"""MLflow: one run a run folder, and one scheme of names for all of them.

- Experiment: `tracking.experiment`, clipsan unless another is named.
- Run: named VERB-FOLDER, or FOLDER where that begins with the verb (scan, evaluate-before). A run folder that lies in another
  (a step of `run` or `demo`, a cell of `bench`, a trial of `sweep`) is a child of that one's run.
- Tags that say which folder it is: clipsan.verb, clipsan.root (the absolute path where it was made), clipsan.fingerprint. A
  folder is logged once: whoever logs it again finds the run by these. clipsan.content, a hash of all that was logged, is
  written last.
- Tags of lineage, on a repair and on the version that it registers: clipsan.suspect (SHA-256 of the suspect checkpoint),
  clipsan.data (fingerprint of what it learned from), clipsan.scan, clipsan.scan_root and clipsan.scan_run (fingerprint, folder
  and MLflow run of the scan), clipsan.method.
- Tags of a verdict, on the version that was audited (`Judged`): clipsan.audit and clipsan.audit_run (fingerprint and MLflow run of
  the audit), clipsan.audit_verdict, clipsan.audit_label and clipsan.audit_p (what stands out most, and how far),
  clipsan.audit_targets (JSON, those of proven triggers).
- Tags of versions, on every run whose settings named one of a model registry, on its steps, and on the version that a repair of it
  registers: clipsan.version is the one that `model` named (models:/NAME/VERSION), clipsan.version.SETTING that of another setting.
- Parameters: the resolved settings; metrics: the numbers of summary.json; both with dotted names. Artifacts: report, run.yaml,
  summary.json and what else the verb names.
- Inputs: every data set with its digest (names and sizes of its files, and how they are read) and a context: scan, trusted,
  training, poisoning or evaluation.
- Models: see registry.py.

What is logged lies in OUT/tracking.json before any server is asked, so a server that is away costs no result: `clipsan log OUT`
sends it later, from the folder alone.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from clipsan.stages.files import digest, split_query
from clipsan.stages.samples import Unit
from clipsan.stages.sources import SourceConfig, identity
from clipsan.stages.stage import config

from ..core.commit import fingerprint
from ..core.config import ConfigError, validate
from ..core.masking import masked
from ..core.place import AnyPath
from ..core.run_folder import RunFolder, flatten, read_run_yaml, read_summary

RECORD = "tracking.json"
REGISTERED = "models:/"
"""Begins the name of a version of a registered model, where a setting may name one in place of a path."""
DIGEST_LENGTH = 32
"""Hexadecimal digits; MLflow takes 36."""


@config
class TrackingConfig:
    """Where the run is logged."""

    enabled: bool = True
    """False logs nothing."""
    uri: str | None = None
    """MLflow tracking URI; null: MLFLOW_TRACKING_URI where it is set, else an SQLite file beside the run folder."""
    experiment: str = "clipsan"
    """Name of the experiment."""
    parent: str | None = None
    """Id of the MLflow run that this one stands below; `clipsan run` and `clipsan demo` fill it in for their steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataInput:
    """A data set that a run read."""

    name: str
    digest: str
    kind: str
    path: str
    context: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecord:
    """A model that a run made, to be registered."""

    name: str
    artifacts: dict[str, str]
    """`checkpoint`, and `adapter` for a model with prompts: folders, relative to the run folder where they lie in it."""
    card: str
    """File with the description."""
    tags: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A version of a registered model that a run says something of."""

    version: str
    """models:/NAME/VERSION."""
    source: str
    """Where its registry has it from: a version of the same name from elsewhere is another model, and is told nothing."""
    tags: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """All that MLflow is told of a run folder."""

    verb: str
    root: str
    fingerprint: str
    params: dict[str, str]
    metrics: dict[str, float]
    files: list[str]
    """Relative to the run folder where they lie in it."""
    tags: dict[str, str] = field(default_factory=dict)
    inputs: list[DataInput] = field(default_factory=list)
    model: ModelRecord | None = None
    judged: Judged | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        folder = Path(split_query(self.root)[0]).name
        return folder if folder.startswith(self.verb) else f"{self.verb}-{folder}"

    def content(self, home: Path) -> str:
        """Return the hash of what is logged, files included; `home` is where the run folder lies now."""
        tree = asdict(self)
        present = [file for file in self.files if (home / file).is_file()]
        tree["files"] = {file: digest(home / file) for file in present}
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Logged:
    """A run in MLflow."""

    uri: str
    """Of the tracking server or store."""
    run_id: str

    def __str__(self) -> str:
        return f"{masked(self.uri)} run {self.run_id}"


def data_input(source: SourceConfig, units: list[Unit], context: str) -> DataInput:
    """Return what MLflow is told of a data set."""
    digest = fingerprint(identity(source, units))[:DIGEST_LENGTH]
    paths = [masked(path) for path in ([source.path] if isinstance(source.path, str) else source.path)]
    name = "/".join(Path(paths[0]).parts[-2:])
    return DataInput(name=name, digest=digest, kind=source.kind, path=", ".join(paths), context=context)


def version_tags(models: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that say which versions of a model registry a run read; `models` has their names by the setting."""
    return {"clipsan.version" + ("" if key == "model" else f".{key}"): name for key, name in models.items()}


def read_record(root: AnyPath) -> Record:
    """Return what was to be logged of a run folder; of one that logged nothing, what run.yaml and summary.json hold.

    The folder may come from a stranger: what it says is checked, and every file that it names lies in it.

    Raises:
        ConfigError: the folder holds no finished run of clipsan, or names a file outside it.
    """
    path = root / RECORD
    try:
        record = _stored(path) if path.is_file() else _from_summary(root)
        _check_inside(root, record)
    except RecursionError as error:
        raise ConfigError(f"{root}: its files are nested too deep for a run of clipsan") from error
    return record


def _stored(path: AnyPath) -> Record:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON") from error
    try:
        return validate(Record, tree, verb="log")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _from_summary(root: AnyPath) -> Record:
    folder = RunFolder(root)
    if not folder.is_finished:
        raise ConfigError(f"{root}: no finished run of clipsan there")
    made = read_run_yaml(root)
    summary = read_summary(root)
    if not isinstance(summary, dict):
        raise ConfigError(f"{folder.summary}: no summary of clipsan")
    return Record(
        verb=made["verb"],
        root=str(root),
        fingerprint=made["fingerprint"],
        params={name: str(value) for name, value in flatten(made["config"]).items()},
        metrics=metrics_of(summary),
        files=[path.name for path in (folder.report, folder.run_yaml, folder.summary)],
    )


def _check_inside(root: AnyPath, record: Record) -> None:
    model = record.model
    named = [*record.files, *([model.card, *model.artifacts.values()] if model is not None else [])]
    if not isinstance(root, Path):  # a store has no links: what leads out of the folder says so itself
        for name in named:
            if name.startswith("/") or "://" in name or "?" in name or ".." in name.split("/"):
                raise ConfigError(
                    f"{root / RECORD}: {name} lies outside the run folder; nothing of it is sent anywhere"
                )
        return
    home = root.resolve()
    try:
        # one after the other: what lies outside is not walked through
        paths = (path for name in named for path in chain([root / name], (root / name).rglob("*")))
        outside = next((path for path in paths if not path.resolve().is_relative_to(home)), None)
    except (OSError, ValueError) as error:  # a name that no file can have
        raise ConfigError(f"{root / RECORD}: names no files of the run: {str(error)[:200]}") from error
    if outside is not None:
        raise ConfigError(f"{root / RECORD}: {outside} lies outside the run folder; nothing of it is sent anywhere")


def place(settings: TrackingConfig, root: AnyPath) -> str | None:
    """Return the tracking URI of a run folder; None where none is named and the folder is no place for an SQLite file."""
    named = settings.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if named is not None or not isinstance(root, Path):
        return named
    # the two characters that would mean something else in an SQLite URI
    beside = str(root.parent / "mlflow.db").replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{beside}"


def fingerprint_of(root: AnyPath) -> str | None:
    """Return the fingerprint of a run folder, None where there is no run."""
    return str(read_run_yaml(root)["fingerprint"]) if RunFolder(root).run_yaml.is_file() else None


def metrics_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a summary as metric name -> value (nested names joined by dots)."""
    numbers = {name: value for name, value in flatten(dict(summary)).items() if isinstance(value, (int, float))}
    return {_metric_name(name): float(value) for name, value in numbers.items()}


def _metric_name(name: str) -> str:
    """MLflow allows letters, digits and `_-. /` in a metric's name."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)
