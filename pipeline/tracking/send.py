"""A run folder on its way to MLflow: recorded first, then sent; what cannot be sent now is sent later by `clipsan log`."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..core.commit import fingerprint, write_json
from ..core.masking import masked, masked_tree
from ..core.place import AnyPath, is_below, read_here
from ..core.place import below as below_root
from ..core.run_folder import flatten
from .record import (
    RECORD,
    DataInput,
    Judged,
    Logged,
    ModelRecord,
    Record,
    TrackingConfig,
    fingerprint_of,
    place,
    read_record,
)


def log_run(
    settings: TrackingConfig,
    *,
    verb: str,
    root: AnyPath,
    tree: Any,
    metrics: Mapping[str, float],
    files: Sequence[AnyPath],
    parent: Logged | None = None,
    tags: Mapping[str, str] | None = None,
    inputs: Sequence[DataInput] = (),
    model: ModelRecord | None = None,
    judged: Judged | None = None,
) -> Logged | None:
    """Record and log a finished verb; return where, or None when it could not be logged.

    `parent` is what an earlier call returned: the run stands below that one, in the same place. A tracking server that is away
    must not cost a result that took hours: the failure is said in one line, and the run folder keeps everything.
    """
    if not settings.enabled:
        return None
    record = replace(
        _begun(verb, root, tree),
        metrics={name: float(value) for name, value in metrics.items()},
        files=[str(below_root(file, root)) if is_below(file, root) else str(file) for file in files],
        tags=dict(tags or {}),
        inputs=list(inputs),
        model=model,
        judged=judged,
    )
    write_json(root / RECORD, asdict(record))
    return _send(settings, record, root, parent)


def log_folder(
    settings: TrackingConfig, root: AnyPath, parent: Logged | None = None
) -> list[tuple[AnyPath, Logged | None]]:
    """Log a finished run folder and those in it, each below the one that it lies in; return where each was logged.

    What has been logged before is found, and completed where it is not complete.

    Raises:
        ConfigError: the folder holds no finished run of clipsan.
    """
    logged = _send(settings, read_record(root), root, parent)
    found: list[tuple[AnyPath, Logged | None]] = [(root, logged)]
    if logged is not None:
        # a scan before the repair that refers to it
        for child in sorted(_nested(root), key=lambda child: ("clipsan.scan_root" in read_record(child).tags, child)):
            found += log_folder(settings, child, logged)
    return found


@contextmanager
def below(settings: TrackingConfig, *, verb: str, root: AnyPath, tree: Any) -> Iterator[TrackingConfig]:
    """Start, or find, the run that a verb's steps stand below; give the tracking of those steps, and mark what failed.

    Where it cannot be started the steps are logged alone, and `log_folder` puts them below it later.
    """
    if not settings.enabled:
        yield settings
        return
    from . import client as mlflow_log

    assert isinstance(root, Path)  # those of verbs with steps lie on file systems
    steps = replace(settings, uri=place(settings, root))
    with mlflow_log.forgiving(str(steps.uri), root):
        steps = replace(steps, parent=mlflow_log.begin(steps, _begun(verb, root, tree), root))
    try:
        yield steps
    except BaseException as error:
        if steps.parent is not None and steps.parent != settings.parent:
            with mlflow_log.forgiving(str(steps.uri), root):
                mlflow_log.end(str(steps.uri), steps.parent, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise


def _begun(verb: str, root: AnyPath, tree: Any) -> Record:
    """Return what is known of a run before it has figures."""
    params = {name: str(value) for name, value in flatten(masked_tree(tree)).items()}
    found = fingerprint_of(root) or fingerprint(tree)
    return Record(verb=verb, root=str(root), fingerprint=found, params=params, metrics={}, files=[])


def untracked(settings: TrackingConfig, root: AnyPath) -> str | None:
    """Return why a run is logged nowhere although it is to be; None where it is, or is not to be."""
    if not settings.enabled or place(settings, root) is not None:
        return None
    return (
        "MLflow's SQLite file cannot lie on an object store; name a server with tracking.uri or MLFLOW_TRACKING_URI, now or "
        f"with `clipsan log {root}` later"
    )


def registered(logged: Logged | None, name: str | None = None) -> str | None:
    """Return the version, of a model of this name or of any, that logging a run has registered, models:/NAME/VERSION; None: none."""
    if logged is None:
        return None
    from .registry import version_of

    return version_of(logged, name)


def _send(settings: TrackingConfig, record: Record, home: AnyPath, parent: Logged | None) -> Logged | None:
    from . import client as mlflow_log

    uri = place(settings, home) if parent is None else parent.uri
    if uri is None:
        sys.stderr.write(f"not logged: {untracked(settings, home)}\n")
        return None
    above = settings.parent if parent is None else parent.run_id
    sent: list[str] = []
    with mlflow_log.forgiving(uri, home):
        model = [] if record.model is None else [record.model.card, *record.model.artifacts.values()]
        with read_here(home, [*record.files, *model]) as here:
            sent.append(mlflow_log.send(replace(settings, uri=uri, parent=above), record, here))
    if not sent:
        # a folder's own word for where it is to be sent is not enough: see log.settings_of
        there = f", to the same place with tracking.uri={masked(settings.uri)}" if settings.uri else ""
        sys.stderr.write(f"`clipsan log {home}` logs it later{there}\n")
        return None
    return Logged(uri, sent[0])


def _nested(root: AnyPath) -> list[AnyPath]:
    """Return the run folders with a record that lie in this one, but in no other between; links lead nowhere."""
    found: list[AnyPath] = []
    for folder in (path for path in root.iterdir() if path.is_dir() and not path.is_symlink()):
        found += [folder] if (folder / RECORD).is_file() else _nested(folder)
    return found
