"""The MLflow model registry: a repaired checkpoint as a new version of a registered model.

Two aliases: `candidate` is the version that was registered last, `champion` the one to deploy. The champion is moved by a rule
alone or by a person: a new version takes its place when both were repaired from the same suspect checkpoint and measured by
the same evaluation, and the new one has the lower attack success rate. Where there is no champion yet, a version that lowered the
attack success rate becomes it. Neither does where it has a higher attack success rate, or lost more clean accuracy, than was
asked of the repair (`max_asr_pct`, `max_loss_points`). What cannot be compared (another suspect, another evaluation, nothing
measured) leaves the champion alone: `MlflowClient.set_registered_model_alias` moves it by hand.
"""

import sys
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.masking import masked, one_line
from .record import REGISTERED, Judged, Logged

if TYPE_CHECKING:
    from mlflow import MlflowClient

REQUIREMENTS = ("mlflow-skinny", "open_clip_torch", "torch", "pandas", "pillow")
"""Packages that loading the model back needs."""
CANDIDATE, CHAMPION = "candidate", "champion"
MAX_ASR_PCT, MAX_LOSS_POINTS = 10.0, 3.0
"""What is asked of a repaired model where nothing else is said: the attack success rate that it may have, and the percentage points
of clean accuracy that it may have lost."""
MEASURED = {
    "clipsan.evaluation": "fingerprint of what both models were measured on",
    "clipsan.asr_pct": "of the repaired model",
    "clipsan.asr_before_pct": "of the suspect",
    "clipsan.accuracy_lost_points": "of clean accuracy",
}
"""Tags of a version that the rule reads."""
DEMANDS = {"clipsan.asr_pct": "clipsan.max_asr_pct", "clipsan.accuracy_lost_points": "clipsan.max_loss_points"}
"""Tag of a version -> the tag with the most that was asked of it; a version without the latter is asked nothing."""


def register(
    logged: Logged, name: str, artifacts: Mapping[str, Path], *, tags: Mapping[str, str], description: str
) -> str | None:
    """Log a model under a run and register it, once under a name; return its URI, models:/NAME/VERSION, or None if it could not be done.

    The model is plain files: the checkpoint's safetensors and JSON, and pipeline/tracking/model.py to load them.

    Args:
        logged: what log_run returned.
        name: of the registered model, made if there is none.
        artifacts: `checkpoint`, a folder that open_clip's local-dir: loads; and `adapter` for a model with prompts.
        tags: of the version.
        description: of the version.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    from .store import client_of

    columns = [ColSpec(DataType.binary, "image", required=False), ColSpec(DataType.string, "caption", required=False)]
    uri, run_id = logged.uri, logged.run_id
    try:
        client = client_of(uri)
        if (there := _registered_by(client, run_id, name)) is not None:
            return there
        # MLflow warns of an example that the model does without
        with tempfile.TemporaryDirectory() as home, warnings.catch_warnings(action="ignore", category=UserWarning):
            folder = Path(home) / "model"
            mlflow.pyfunc.save_model(
                str(folder),
                python_model=str(Path(__file__).with_name("model.py")),
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
        client.set_registered_model_alias(name, CANDIDATE, made.version)
        if is_champion(tags, _champion(client, name)):
            client.set_registered_model_alias(name, CHAMPION, made.version)
    except Exception as error:  # whatever a store or an HTTP client raises: see client.forgiving
        sys.stderr.write(f"MLflow at {masked(uri)} registered no model ({one_line(error)[:200]})\n")
        return None
    return f"models:/{name}/{made.version}"


def tag_version(logged: Logged, judged: Judged, more: Mapping[str, str]) -> None:
    """Put what a run says of a version on it, in place of what an earlier one said; say on stderr where it cannot be done.

    Args:
        logged: what log_run returned.
        judged: the version, and its tags.
        more: tags that are known only now.
    """
    from .store import client_of

    uri = logged.uri
    name, _, version = judged.version.removeprefix(REGISTERED).rpartition("/")
    try:
        client = client_of(uri)
        found = client.get_model_version(name, version)
        if found.source != judged.source:
            sys.stderr.write(f"MLflow at {masked(uri)}: {judged.version} is another model there, and is not tagged\n")
            return
        for tag, value in {**judged.tags, **more}.items():
            if found.tags.get(tag) != value:
                client.set_model_version_tag(name, version, tag, value)
    except Exception as error:  # whatever a store or an HTTP client raises: see client.forgiving
        sys.stderr.write(f"MLflow at {masked(uri)} tagged no model ({one_line(error)[:200]})\n")


def is_champion(tags: Mapping[str, str], champion: Mapping[str, str] | None) -> bool:
    """Tell whether a version takes the champion's place (see above); tags of both, None where there is no champion."""
    if not MEASURED.keys() <= tags.keys():
        return False
    if any(most in tags and float(tags[name]) > float(tags[most]) for name, most in DEMANDS.items()):
        return False
    asr = float(tags["clipsan.asr_pct"])
    if champion is None:
        return asr < float(tags["clipsan.asr_before_pct"])
    same = all(tags.get(name) == champion.get(name) for name in ("clipsan.suspect", "clipsan.evaluation"))
    return same and "clipsan.asr_pct" in champion and asr < float(champion["clipsan.asr_pct"])


def _champion(client: "MlflowClient", name: str) -> dict[str, str] | None:
    aliases = client.get_registered_model(name).aliases
    if CHAMPION not in aliases:
        return None
    return dict(client.get_model_version(name, aliases[CHAMPION]).tags)


def version_of(logged: Logged, name: str | None = None) -> str | None:
    """Return the version, of a model of this name or of any, that a run has registered, models:/NAME/VERSION; None where there is none.

    Where the registry does not answer that is said on stderr: then None does not mean that there is no version.
    """
    from .store import client_of

    uri, run_id = logged.uri, logged.run_id
    try:
        return _registered_by(client_of(uri), run_id, name)
    except Exception as error:  # whatever a store or an HTTP client raises: see client.forgiving
        said = one_line(error)[:200]
        sys.stderr.write(f"MLflow at {masked(uri)} does not say which model the run {run_id} has registered ({said})\n")
        return None


def _registered_by(client: "MlflowClient", run_id: str, name: str | None) -> str | None:
    found = client.search_model_versions(f"run_id = '{run_id}'")
    return next((f"{REGISTERED}{made.name}/{made.version}" for made in found if name in (None, made.name)), None)
