"""The MLflow model registry: a repaired checkpoint as a new version of a registered model."""

import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

REQUIREMENTS = ("mlflow-skinny", "open_clip_torch", "torch", "pandas", "pillow")
"""Packages that loading the model back needs."""
NEWEST = "newest"
"""Alias of the last version that was registered."""


def register(
    logged: str, name: str, artifacts: Mapping[str, Path], *, tags: Mapping[str, str], description: str
) -> str | None:
    """Log a model under a run and register it; return its URI, models:/NAME/VERSION, or None when it could not be done.

    The model is plain files: the checkpoint's safetensors and JSON, and pipeline/mlflow_model.py to load them.

    Args:
        logged: what log_run returned.
        name: of the registered model, made if there is none.
        artifacts: `checkpoint`, a folder that open_clip's local-dir: loads; and `adapter` for a model with prompts.
        tags: of the version.
        description: of the version.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow.pyfunc
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    columns = [ColSpec(DataType.binary, "image", required=False), ColSpec(DataType.string, "caption", required=False)]
    uri, _, run_id = logged.partition(" run ")
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        # MLflow warns of an example that the model does without
        with tempfile.TemporaryDirectory() as home, warnings.catch_warnings(action="ignore", category=UserWarning):
            folder = Path(home) / "model"
            mlflow.pyfunc.save_model(
                str(folder),
                python_model=str(Path(__file__).with_name("mlflow_model.py")),
                artifacts={key: str(path) for key, path in artifacts.items()},
                signature=ModelSignature(inputs=Schema(columns)),
                pip_requirements=[f"{package}=={version(package)}" for package in REQUIREMENTS],
            )
            client.log_artifacts(run_id, str(folder), "model")
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        made = client.create_model_version(
            name, source=f"runs:/{run_id}/model", run_id=run_id, tags=dict(tags), description=description
        )
        client.set_registered_model_alias(name, NEWEST, made.version)
    except (MlflowException, OSError) as error:
        sys.stderr.write(f"MLflow at {uri} registered no model ({' '.join(str(error).split())[:200]})\n")
        return None
    return f"models:/{name}/{made.version}"


def find_run(logged: str, verb: str, root: Path) -> str | None:
    """Return the id of the last run of a verb that wrote a run folder, in the place of another run; None if there is none."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri, _, run_id = logged.partition(" run ")
    try:
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_run(run_id).info.experiment_id
        wanted = f"tags.`clipsan.verb` = '{verb}' and tags.`clipsan.root` = '{root}'"
        found = client.search_runs([experiment], wanted, max_results=1, order_by=["attributes.start_time DESC"])
    except (MlflowException, OSError):
        return None
    return str(found[0].info.run_id) if found else None


def tag_run(logged: str, tags: Mapping[str, str]) -> None:
    """Set tags of a logged run; a server that went away in between costs the tags."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri, _, run_id = logged.partition(" run ")
    try:
        client = MlflowClient(tracking_uri=uri)
        for name, value in tags.items():
            client.set_tag(run_id, name, value)
    except (MlflowException, OSError) as error:
        sys.stderr.write(f"MLflow at {uri} took no tags ({' '.join(str(error).split())[:200]})\n")
