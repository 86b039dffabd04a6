"""MLflow: one run a verb, written when the verb has its result; the run folder is complete without it."""

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.run_folder import flatten
from stages.stage import config

PARAMETER_LENGTH = 6000
"""MLflow refuses a longer parameter value."""


@config
class TrackingConfig:
    """Where the run is logged."""

    enabled: bool = True
    """False logs nothing."""
    uri: str | None = None
    """MLflow tracking URI; null: MLFLOW_TRACKING_URI where it is set, else an SQLite file beside the run folder."""
    experiment: str = "clipsan"
    """Name of the experiment."""


def log_run(
    settings: TrackingConfig,
    *,
    verb: str,
    root: Path,
    tree: Any,
    metrics: Mapping[str, float],
    files: list[Path],
    parent: str | None = None,
) -> str | None:
    """Log parameters, metrics and small files of a finished verb; return where, or None when it could not be done.

    `parent` is what an earlier call returned: the run stands below that one, in the same place.

    A tracking server that is away must not cost a result that took hours: the failure is said in one line, and the run folder
    keeps everything.
    """
    if not settings.enabled:
        return None
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    import mlflow
    from mlflow.exceptions import MlflowException

    # After the import, which sets these levels itself.
    for name in ("mlflow", "mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)

    above, _, parent_id = (parent or "").partition(" run ")
    uri = above or settings.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.parent / 'mlflow.db'}"
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        run = client.create_run(_experiment(client, settings.experiment, uri, root), run_name=f"{verb}-{root.name}")
        run_id = run.info.run_id
        client.set_tag(run_id, "clipsan.verb", verb)
        client.set_tag(run_id, "clipsan.root", str(root))
        if parent_id:
            client.set_tag(run_id, "mlflow.parentRunId", parent_id)
        for name, value in flatten(tree).items():
            client.log_param(run_id, name, str(value)[:PARAMETER_LENGTH])
        for name, value in metrics.items():
            client.log_metric(run_id, name, float(value))
        for file in files:
            if file.is_file():
                client.log_artifact(run_id, str(file))
        client.set_terminated(run_id)
    except (MlflowException, OSError) as error:
        sys.stderr.write(
            f"MLflow at {uri} took no log ({' '.join(str(error).split())[:200]}); the run folder {root} is complete\n"
        )
        return None
    return f"{uri} run {run_id}"


def _experiment(client: Any, name: str, uri: str, root: Path) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # Without a location MLflow would put artifacts of a local store into whatever folder the command was started from.
    local = (root.parent / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
    return str(client.create_experiment(name, artifact_location=local))


def metrics_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a summary as metric name -> value (nested names joined by dots)."""
    numbers = {name: value for name, value in flatten(dict(summary)).items() if isinstance(value, (int, float))}
    return {_metric_name(name): float(value) for name, value in numbers.items()}


def _metric_name(name: str) -> str:
    """MLflow allows letters, digits and `_-. /` in a metric's name."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)
