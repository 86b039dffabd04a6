"""`clipsan log RUN`: log a finished run folder, and the run folders in it, to MLflow, from the files alone.

For results whose server was away, or that are to be in another place too. What is there already is not logged twice.
"""

import sys
from pathlib import Path

import yaml

from ..core.config import ConfigError, apply_override, validate
from ..core.run_folder import RunFolder
from .record import TrackingConfig
from .send import log_folder, registered


def command(run: str, overrides: list[str]) -> int:
    """Log a run folder; 1 when a server took it not or not whole."""
    root = Path(run).expanduser().resolve()
    found = log_folder(settings_of(root, overrides), root)
    for folder, logged in found:
        version = registered(logged)
        sys.stdout.write(f"{folder}: {logged or 'not logged'}{f', {version}' if version else ''}\n")
    return 0 if all(logged is not None for _, logged in found) else 1


def settings_of(root: Path, overrides: list[str]) -> TrackingConfig:
    """Return the tracking of the run itself, with `tracking.key=value` overrides.

    Raises:
        ConfigError: no run of clipsan is there, or an override is none of tracking's.
    """
    run_yaml = RunFolder(root).run_yaml
    if not run_yaml.is_file():
        raise ConfigError(f"{root}: no run.yaml there, so this is no run folder of clipsan")
    made = yaml.safe_load(run_yaml.read_text(encoding="utf-8"))
    wrong = [override for override in overrides if not override.startswith("tracking.")]
    if wrong:
        raise ConfigError(f"{wrong[0]}: of a finished run only tracking.uri and tracking.experiment can be chosen")
    # it was the step of another run then; here it is what the user names
    tree = {"tracking": {**made["config"].get("tracking", {}), "enabled": True, "parent": None}}
    for override in overrides:
        apply_override(tree, override)
    return validate(TrackingConfig, tree["tracking"], verb="log")
