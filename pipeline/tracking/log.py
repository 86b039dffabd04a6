"""`clipsan log RUN`: log a finished run folder, and the run folders in it, to MLflow, from the files alone.

For results whose server was away, or that are to be in another place too. What is there already is not logged twice.

The folder may come from a stranger. Only files inside it are sent, and only to a place that the user names: `tracking.uri=...`,
MLFLOW_TRACKING_URI, or the SQLite file beside the folder. A URI in the folder's own settings is not followed: the password in
this user's environment would go to whatever server it names.
"""

import os
import sys

from ..core.config import ConfigError, apply_override, validate
from ..core.masking import one_line
from ..core.place import AnyPath, place_of
from ..core.run_folder import read_run_yaml
from .record import TrackingConfig
from .send import log_folder, registered


def command(run: str, overrides: list[str]) -> int:
    """Log a run folder; 1 when a server took it not or not whole."""
    root = place_of(run)
    found = log_folder(settings_of(root, overrides), root)
    for folder, logged in found:
        version = registered(logged)
        sys.stdout.write(f"{folder}: {logged or 'not logged'}{f', {version}' if version else ''}\n")
    return 0 if all(logged is not None for _, logged in found) else 1


def settings_of(root: AnyPath, overrides: list[str]) -> TrackingConfig:
    """Return the tracking of the run itself, but for its URI, with `tracking.key=value` overrides.

    Raises:
        ConfigError: no run of clipsan is there, or an override is none of tracking's.
    """
    made = read_run_yaml(root)
    wrong = [override for override in overrides if not override.startswith("tracking.")]
    if wrong:
        raise ConfigError(f"{wrong[0]}: of a finished run only tracking.uri and tracking.experiment can be chosen")
    own = made["config"].get("tracking")
    own = own if isinstance(own, dict) else {}
    # it was the step of another run then; here it is what the user names
    tree = {"tracking": {**own, "enabled": True, "uri": None, "parent": None}}
    for override in overrides:
        apply_override(tree, override)
    settings = validate(TrackingConfig, tree["tracking"], verb="log")
    if own.get("uri") and settings.uri is None and own["uri"] != os.environ.get("MLFLOW_TRACKING_URI"):
        named = one_line(own["uri"])
        sys.stderr.write(f"{root}: its settings name {named}; to send it there, add tracking.uri={named}\n")
    return settings
