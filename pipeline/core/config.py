"""Configuration at the edge: YAML with groups and dotted overrides in, one frozen validated object out."""

import dataclasses
import difflib
import typing
from collections.abc import Collection, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from clipsan.stages.registry import Family

from .masking import masked_tree

T = TypeVar("T")


GROUPS = {"images": "data", "method": "repair", "space": "sweep"}
"""Keys whose files lie in a folder of another name below conf/."""


class ConfigError(ValueError):
    """What the user gave cannot be used; the message names the place and the remedy, in one line."""


def conf_folder() -> Path:
    """Return the folder with clipsan's own YAML, beside the packages."""
    folder = Path(__file__).resolve().parents[2] / "conf"
    if not (folder / "scan.yaml").is_file():
        raise ConfigError(f"clipsan's own settings are missing: {folder}; reinstall clipsan")
    return folder


def load(schema: type[T], file: str | None, overrides: list[str], *, verb: str) -> T:
    """Read the verb's YAML, resolve groups, apply `a.b=value` overrides, validate.

    A group is a folder conf/NAME/ (see GROUPS); where a key NAME has a string value, the value names a file of that folder.

    Args:
        schema: the configuration class of the verb.
        file: path of a YAML file, or the run.yaml of an earlier run; None takes conf/VERB.yaml.
        overrides: `key.path=value`, the value in YAML notation; applied in order.
        verb: for conf/VERB.yaml and for messages.

    Raises:
        ConfigError: unknown key, wrong type, missing file or impossible value.
    """
    path = Path(file) if file else conf_folder() / f"{verb}.yaml"
    tree = _read_yaml(path)
    if {"verb", "fingerprint", "config"} <= tree.keys():  # run.yaml of a run: the same settings again
        if tree["verb"] != verb:
            raise ConfigError(f"{path}: holds the settings of `clipsan {tree['verb']}`, not of `clipsan {verb}`")
        tree = tree["config"]
    tree = _resolve_groups(tree, where="")
    for override in overrides:
        apply_override(tree, override)
    return validate(schema, tree, verb=verb)


def load_group(group: str, name: str, *, where: str) -> dict[str, Any]:
    """Return the settings in conf/GROUP/NAME.yaml as a plain tree, its own groups resolved; `where` is for messages.

    Raises:
        ConfigError: there is no such file.
    """
    tree: dict[str, Any] = _resolve_value(group, name, where=f"{where}.")
    return tree


def validate(schema: type[T], tree: Any, *, verb: str) -> T:
    """Turn a plain tree into the configuration object.

    Raises:
        ConfigError: one line that names every offending field.
    """
    try:
        return pydantic.TypeAdapter(schema).validate_python(tree)
    except pydantic.ValidationError as error:
        raise ConfigError("; ".join(_explain(schema, e) for e in error.errors())) from None


def as_tree(config: Any) -> Any:
    """Return a configuration object as plain dicts, lists and scalars (for run.yaml, MLflow and fingerprints)."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: as_tree(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {str(k): as_tree(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [as_tree(v) for v in config]
    if isinstance(config, (set, frozenset)):
        return sorted(as_tree(v) for v in config)
    if isinstance(config, Enum):
        return config.value
    return str(config) if isinstance(config, Path) else config


def public_tree(config: Any) -> Any:
    """Return a configuration object as a plain tree for readers: the credentials of the addresses in it are masked."""
    return masked_tree(as_tree(config))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold a mapping of settings, not {type(tree).__name__}")
    return tree


def _resolve_groups(tree: Any, *, where: str) -> Any:
    if isinstance(tree, list):
        return [_resolve_groups(item, where=f"{where}{i}.") for i, item in enumerate(tree)]
    if not isinstance(tree, dict):
        return tree
    return {key: _resolve_value(key, value, where=where) for key, value in tree.items()}


def _resolve_value(key: str, value: Any, *, where: str) -> Any:
    group = conf_folder() / GROUPS.get(key, key)
    if not isinstance(value, str):
        return _resolve_groups(value, where=f"{where}{key}.")
    if value.startswith("conf/") and not Path(value).exists():
        # clipsan's own files (model architectures) are found from wherever the command is started.
        return str(conf_folder() / value.removeprefix("conf/"))
    if not group.is_dir():
        return value
    file = Path(value) if value.endswith(".yaml") else group / f"{value}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(p.stem for p in group.glob("*.yaml")))
        raise ConfigError(
            f"{where}{key}={value}: no {file.name} in conf/{group.name}; there are {known} (or give a path to a .yaml file)"
        )
    return _resolve_groups(_read_yaml(file), where=f"{where}{key}.")


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set `key.path=value` in a tree, the value in YAML notation.

    Raises:
        ConfigError: it is not written so, or the path leads through a value.
    """
    name, sign, text = override.partition("=")
    if not sign or not name:
        raise ConfigError(f"{override}: an override is written key.path=value")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        value = text
    if _is_name(text, value):
        value = text
    parents, _, last = name.rpartition(".")
    put(tree, name, _resolve_value(last, value, where=f"{parents}." if parents else ""), where=override)


def _is_name(text: str, value: Any) -> bool:
    """Whether a text is meant as it stands: `{a,b}`, a pattern of files, for YAML a mapping to nothing, and `a #1.tar`, no comment.

    `{a: null}` says itself that it is a mapping.
    """
    if isinstance(value, dict):
        return bool(value) and ": " not in text and all(found is None for found in value.values())
    return isinstance(value, str) and " #" in text and not text.startswith(("'", '"'))


def put(tree: dict[str, Any], name: str, value: Any, *, where: str) -> None:
    """Set a value at a dotted path of a tree; sections that are missing are made, `where` is for messages.

    Raises:
        ConfigError: the path leads through a value.
    """
    *parents, last = name.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigError(f"{where}: {parent} is a value, not a section")
    tree[last] = value


def refuse_filled_in(given: Mapping[str, Any] | None, names: Collection[str], *, section: str, by: str) -> None:
    """Raise ValueError where a section names a setting that the verb around it has its own value for."""
    filled = sorted(set(names) & (given or {}).keys())
    if filled:
        raise ValueError(f"{section}: {', '.join(filled)} is filled in {by}; leave it out")


def _explain(schema: Any, error: Any) -> str:
    """One pydantic error as `path: what is wrong`."""
    path = ".".join(str(part) for part in error["loc"])
    kind, message = error["type"], error["msg"]
    if kind == "unexpected_keyword_argument":
        known = _fields_at(schema, error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"; did you mean {close[0]}?" if close else (f"; known: {', '.join(known)}" if known else "")
        return f"{path}: unknown key{hint}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{path}: is required"
    if kind == "union_tag_not_found":
        known = [_kind(member) for member in _dataclasses_in(_schema_at(schema, error["loc"]))]
        return f"{path}: needs a `kind`, one of {', '.join(known)}"
    if kind == "value_error":
        message = message.removeprefix("Value error, ")
    given = error.get("input")
    shown = f" (got {given!r})" if isinstance(given, (str, int, float, bool)) or given is None else ""
    return f"{path}: {message}{shown}" if path else f"{message}{shown}"


def _fields_at(schema: Any, loc: tuple[Any, ...]) -> list[str]:
    """Names of the fields of the configuration class at a path; empty where there is none."""
    found = _schema_at(schema, loc)
    return [f.name for f in dataclasses.fields(found)] if dataclasses.is_dataclass(found) else []


def _schema_at(schema: Any, loc: tuple[Any, ...]) -> Any:
    """The configuration class at a path, or the annotation of the field where several are possible."""
    for part in loc:
        kinds = {_kind(member): member for member in _dataclasses_in(schema)}
        if str(part) in kinds and len(kinds) > 1:
            schema = kinds[str(part)]
            continue
        hints = typing.get_type_hints(schema, include_extras=True) if dataclasses.is_dataclass(schema) else {}
        members = _dataclasses_in(hints.get(str(part)))
        schema = members[0] if len(members) == 1 else hints.get(str(part))
    return schema


def _dataclasses_in(annotation: Any) -> list[Any]:
    """The configuration classes of a plain, optional, annotated, union or family annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Family) and not dataclasses.is_dataclass(annotation):
        return list(annotation.kinds().values())
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return [annotation]
    return [found for argument in typing.get_args(annotation) for found in _dataclasses_in(argument)]


def _kind(schema: Any) -> str:
    return next((str(f.default) for f in dataclasses.fields(schema) if f.name == "kind"), schema.__name__)
