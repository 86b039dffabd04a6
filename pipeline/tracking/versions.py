"""A version of a registered model as a model of a verb: `path=models:/NAME/VERSION`, or `models:/NAME@ALIAS`.

Wherever settings name one, `core.verb` puts the paths of its files in its place before anything else looks at them. The files are those
that `registry.register` laid down: a checkpoint, and prompts where it has any. They are read as any other checkpoint of a stranger's;
nothing that MLflow could run of a version is run.
"""

import atexit
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

import yaml

from clipsan.stages.model.clip import ModelConfig

from ..core.config import ConfigError
from ..core.masking import masked, one_line
from ..core.place import AnyPath, place_of, written
from ..core.run_folder import RunFolder
from .record import REGISTERED, TrackingConfig, place

T = TypeVar("T")

NAMED = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")
RUNS = "runs:/"
SAID = 200
"""Characters of a server's message that are shown."""
MODEL_KEYS = frozenset(field.name for field in fields(ModelConfig))
"""Of a section that is still a plain tree: one without other keys is a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version, and where its files are."""

    name: str
    """models:/NAME/VERSION."""
    source: str
    """Where MLflow has it from, which tells it from a version of the same name in another registry."""
    home: AnyPath
    """The folder with its files."""
    fetched: bool
    """Whether that is a copy on this machine, for as long as this process lives."""
    parts: dict[str, str]
    """`checkpoint`, and `adapter` for a model with prompts: folders in `home`."""

    def model(self, given: ModelConfig) -> ModelConfig:
        """Return what the settings named, by the paths of its files."""
        adapter = str(self.home / self.parts["adapter"]) if "adapter" in self.parts else given.adapter
        return replace(given, path=str(self.home / self.parts["checkpoint"]), adapter=adapter)


def find_versions(settings: Any) -> dict[str, Version]:
    """Return the versions that a verb's settings name, by the dotted names of the settings: model, reference, repair.model, ...

    Raises:
        ConfigError: see find_version; with the name of the setting.
    """
    found: dict[str, Version] = {}

    def look(key: str, model: ModelConfig) -> ModelConfig:
        try:
            found[key] = find_version(settings.tracking, place_of(settings.out), str(model.path))
        except ConfigError as error:
            raise ConfigError(f"{key}.{error}") from error
        return model

    _each_named(settings, look)
    return found


def by_paths(settings: T, versions: Mapping[str, Version]) -> T:
    """Return settings with the files of the versions in place of their names."""
    changed: T = _each_named(settings, lambda key, model: versions[key].model(model))
    return changed


def keep(versions: Mapping[str, Version], folder: RunFolder) -> dict[str, Version]:
    """Return versions that lie where every worker and a later run can read them: what was fetched is copied into the run folder."""
    kept = dict(versions)
    for key, version in versions.items():
        if version.fetched:
            home = folder.models / key
            with written(home) as there:
                shutil.copytree(str(version.home), there, dirs_exist_ok=True)
            kept[key] = replace(version, home=home, fetched=False)
    return kept


def _each_named(node: Any, change: Callable[[str, ModelConfig], ModelConfig], key: str = "") -> Any:
    """Return settings with each model that names a version changed; what holds none is the same object."""
    if isinstance(node, ModelConfig):
        return change(key, node) if names_version(node.path) else node
    if isinstance(node, dict) and node.keys() <= MODEL_KEYS and names_version(node.get("path")):
        model = change(key, ModelConfig(path=node["path"], adapter=node.get("adapter")))
        return {**node, "path": model.path, **({} if model.adapter is None else {"adapter": model.adapter})}
    if isinstance(node, (list, tuple)):
        items = [_each_named(item, change, f"{key}.{i}" if key else str(i)) for i, item in enumerate(node)]
        return type(node)(items) if any(new is not old for new, old in zip(items, node, strict=True)) else node
    if is_dataclass(node) and not isinstance(node, type):
        parts = {field.name: getattr(node, field.name) for field in fields(node)}
    elif isinstance(node, dict):
        parts = node
    else:
        return node
    made = {name: _each_named(part, change, f"{key}.{name}" if key else str(name)) for name, part in parts.items()}
    changed = {name: part for name, part in made.items() if part is not parts[name]}
    if not changed:
        return node
    return {**node, **changed} if isinstance(node, dict) else replace(node, **changed)


def names_version(path: Any) -> bool:
    """Whether the path of a model is the name of a version."""
    return isinstance(path, str) and path.startswith(REGISTERED)


def find_version(settings: TrackingConfig, root: AnyPath, named: str) -> Version:
    """Return a version of the registry that a run logs to, its files on this machine.

    Args:
        settings: of the run.
        root: the run folder, beside which the registry lies where none is named.
        named: models:/NAME/VERSION or models:/NAME@ALIAS.

    Raises:
        ConfigError: it is not written so, the registry has none or cannot be asked, or it holds no checkpoint of clipsan's.
    """
    match = NAMED.fullmatch(named)
    if match is None:
        raise ConfigError(f"path={named}: a registered model is models:/NAME/VERSION or models:/NAME@ALIAS")
    uri = place(settings, root)
    if uri is None:
        raise ConfigError(f"path={named}: no registry is named; set tracking.uri or MLFLOW_TRACKING_URI")
    try:
        _check_there(uri)
        return _found(uri, **match.groupdict())
    except ConfigError as error:
        raise ConfigError(f"path={named}: {error}") from error
    except Exception as error:  # whatever a store or an HTTP client raises: see client.forgiving
        said = one_line(error)[:SAID]
        raise ConfigError(f"path={named}: MLflow at {masked(uri)} does not give it ({said})") from error


def _check_there(uri: str) -> None:
    from .store import file_of  # MLflow takes seconds to import

    store = file_of(uri)
    if store is not None and not store.is_file():  # MLflow would make one
        raise ConfigError(f"there is no registry at {masked(uri)}; set tracking.uri or MLFLOW_TRACKING_URI")


def _found(uri: str, name: str, version: str | None, alias: str | None) -> Version:
    from .store import client_of

    client = client_of(uri)
    if alias is not None:
        version = str(client.get_model_version_by_alias(name, alias).version)
    assert version is not None
    source = str(client.get_model_version(name, version).source)
    home, fetched = _files(client, uri, str(client.get_model_version_download_uri(name, version)))
    return Version(
        name=f"models:/{name}/{version}",
        source=source,
        home=home,
        fetched=fetched,
        parts=_parts(home, f"{name}/{version}"),
    )


def _files(client: Any, uri: str, location: str) -> tuple[Path, bool]:
    """Return the folder with a version's files, and whether it is a copy: what lies on a file system of this machine is not copied."""
    from mlflow.artifacts import download_artifacts

    if location.startswith(RUNS):  # by the run's own folder: MLflow copies what is named by its run, wherever it lies
        run_id, _, inner = location.removeprefix(RUNS).partition("/")
        location = f"{str(client.get_run(run_id).info.artifact_uri).rstrip('/')}/{inner}"
    if urlparse(location).scheme in ("", "file"):
        return Path(download_artifacts(artifact_uri=location, tracking_uri=uri)), False
    scratch = tempfile.mkdtemp(prefix="clipsan-version-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return Path(download_artifacts(artifact_uri=location, tracking_uri=uri, dst_path=scratch)), True


def _parts(home: Path, name: str) -> dict[str, str]:
    """Return the folders of a version that hold its checkpoint and its prompts.

    Raises:
        ConfigError: it is no model of clipsan's, or names a folder outside its own.
    """
    described = home / "MLmodel"
    tree = yaml.safe_load(described.read_text(encoding="utf-8")) if described.is_file() else None
    for key in ("flavors", "python_function", "artifacts"):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    entries = {key: tree.get(key) for key in ("checkpoint", "adapter")} if isinstance(tree, Mapping) else {}
    found = {
        key: str(entry["path"]) for key, entry in entries.items() if isinstance(entry, Mapping) and "path" in entry
    }
    if "checkpoint" not in found:
        raise ConfigError(f"version {name} holds no checkpoint that clipsan registered; give the checkpoint's own path")
    if any(not (home / path).resolve().is_relative_to(home.resolve()) for path in found.values()):
        raise ConfigError(f"version {name} names a folder that is not its own")
    return found
