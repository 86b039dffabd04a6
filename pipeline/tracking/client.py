"""What talks to an MLflow server: a record becomes a run, once. Imported late, as MLflow takes seconds to import."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run

from clipsan.stages.files import is_address

from ..core.masking import masked, one_line
from ..core.place import AnyPath
from .record import DataInput, Logged, Record, TrackingConfig
from .registry import register, tag_version
from .store import client_of, file_of

CONTENT = "clipsan.content"
PARENT = "mlflow.parentRunId"
PARAMETER_LENGTH = 6000
"""MLflow refuses a longer parameter value."""
PARAMETERS_A_CALL, METRICS_A_CALL = 100, 1000
"""MLflow's limits."""

SAID_LENGTH = 200
"""Characters of a server's message that are shown."""


@contextmanager
def forgiving(uri: str, root: AnyPath) -> Iterator[None]:
    """Say in one line what a server refuses or why it cannot be reached, and go on behind the block.

    Whatever a store, its driver or an HTTP client raises comes through MLflow as it is; none of it is worth a finished run.
    """
    try:
        yield
    except Exception as error:
        said = one_line(error)[:SAID_LENGTH]
        sys.stderr.write(f"MLflow at {masked(uri)} took no log ({said}); the run folder {root} keeps it\n")


def begin(settings: TrackingConfig, record: Record, home: Path) -> str:
    """Start the run of a record, or find it, with its parameters; return its id."""
    client, experiment = _open(settings, home.parent)
    run = _find(client, experiment, _identity(record, None))
    if run is None:
        run = client.create_run(experiment, tags=_identity(record, settings.parent), run_name=record.name)
    else:
        client.update_run(run.info.run_id, status="RUNNING")
    _log_params(client, run, record)
    return str(run.info.run_id)


def end(uri: str, run_id: str, status: str) -> None:
    """End a run: FINISHED, FAILED or KILLED."""
    client_of(uri).set_terminated(run_id, status)


def send(settings: TrackingConfig, record: Record, home: Path) -> str:
    """Log a record where it is not logged yet, register its model or tag the one that it judges, and return the id of the run.

    Args:
        settings: with the resolved uri, and the parent's run id if there is one.
        record: what to log.
        home: where the run folder lies now.

    Raises:
        Exception: the server or the store is away or refuses; which kinds MLflow lets through depends on the store.
    """
    # what lies here of a run folder on an object store is a passing copy
    store = file_of(str(settings.uri))
    beside = store.parent if store is not None and is_address(record.root) else home.parent
    client, experiment = _open(settings, beside)
    run = _find(client, experiment, _identity(record, None))
    content = record.content(home)
    if run is None:
        run = client.create_run(experiment, tags=_identity(record, settings.parent), run_name=record.name)
    run_id = str(run.info.run_id)
    if run.data.tags.get(CONTENT) != content or run.info.status != "FINISHED":
        _log(client, run, record, home)
        client.set_tag(run_id, CONTENT, content)
        client.set_terminated(run_id)
    if settings.parent and run.data.tags.get(PARENT) != settings.parent:
        client.set_tag(run_id, PARENT, settings.parent)
    lineage = record.tags | _scan_run(client, experiment, record.tags)
    for name, value in lineage.items():
        if run.data.tags.get(name) != value:
            client.set_tag(run_id, name, value)
    logged = Logged(str(settings.uri), run_id)
    _register(logged, record, home, lineage)
    if record.judged is not None:
        tag_version(logged, record.judged, {f"clipsan.{record.verb}_run": run_id})
    return run_id


def _open(settings: TrackingConfig, beside: Path) -> tuple[MlflowClient, str]:
    uri = str(settings.uri)
    client = client_of(uri)
    found = client.get_experiment_by_name(settings.experiment)
    if found is not None:
        return client, str(found.experiment_id)
    # Without a location MLflow would put artifacts of a local store into whatever folder the command was started from.
    local = (beside / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
    return client, str(client.create_experiment(settings.experiment, artifact_location=local))


def _identity(record: Record, parent: str | None) -> dict[str, str]:
    tags = {"clipsan.verb": record.verb, "clipsan.root": record.root, "clipsan.fingerprint": record.fingerprint}
    return tags | ({PARENT: parent} if parent else {})


def _find(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> Run | None:
    """Return the newest run with these tags."""
    wanted = " and ".join(f"tags.`{name}` = {_quoted(value)}" for name, value in tags.items())
    return next(iter(client.search_runs([experiment], wanted, order_by=["attributes.start_time DESC"])), None)


def _quoted(value: str) -> str:
    return f'"{value}"' if "'" in value else f"'{value}'"


def _log(client: MlflowClient, run: Run, record: Record, home: Path) -> None:
    run_id = run.info.run_id
    _log_params(client, run, record)
    now = int(time.time() * 1000)
    changed = [
        Metric(name, value, now, 0) for name, value in record.metrics.items() if run.data.metrics.get(name) != value
    ]
    for start in range(0, len(changed), METRICS_A_CALL):
        client.log_batch(run_id, metrics=changed[start : start + METRICS_A_CALL])
    if record.inputs:
        client.log_inputs(run_id, datasets=[_dataset(given) for given in record.inputs])
    for file in record.files:
        if (home / file).is_file():
            client.log_artifact(run_id, str(home / file))


def _log_params(client: MlflowClient, run: Run, record: Record) -> None:
    # A parameter cannot be changed: of two runs of one folder the first one's settings stand.
    known = run.data.params
    new = [Param(name, value[:PARAMETER_LENGTH]) for name, value in record.params.items() if name not in known]
    for start in range(0, len(new), PARAMETERS_A_CALL):
        client.log_batch(run.info.run_id, params=new[start : start + PARAMETERS_A_CALL])


def _dataset(given: DataInput) -> DatasetInput:
    source = json.dumps({"kind": given.kind, "path": given.path})
    dataset = Dataset(name=given.name, digest=given.digest, source_type=given.kind, source=source)
    return DatasetInput(dataset, tags=[InputTag("mlflow.data.context", given.context)])


def _scan_run(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> dict[str, str]:
    """Return the MLflow run of the scan that a repair builds on, if it was logged to the same place."""
    if "clipsan.scan_root" not in tags:
        return {}
    found = _find(client, experiment, {"clipsan.verb": "scan", "clipsan.root": tags["clipsan.scan_root"]})
    return {} if found is None else {"clipsan.scan_run": str(found.info.run_id)}


def _register(logged: Logged, record: Record, home: Path, lineage: Mapping[str, str]) -> None:
    model = record.model
    if model is None:
        return
    artifacts = {key: home / path for key, path in model.artifacts.items()}
    card = (home / model.card).read_text(encoding="utf-8")
    register(logged, model.name, artifacts, tags={**lineage, **model.tags}, description=card)
