"""What stands in the files that settings name by their paths: it decides a result, and the paths alone do not tell it."""

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from clipsan.stages.attack.triggers import TriggerConfig
from clipsan.stages.files import digest
from clipsan.stages.repair.method import Method


def contents(settings: Any) -> dict[str, list[str]]:
    """Return the SHA-256 of every file and folder that a trigger or a method of repair reads anywhere in some settings, for a fingerprint.

    Nothing at all where there are none. What data, models, oracles and vocabularies hold enters fingerprints in ways of their own.
    """
    found = digests(_paths(settings))
    return {"files": found} if found else {}


def digests(paths: Iterable[str]) -> list[str]:
    """Return the SHA-256 of files and folders; of what is not there, whose reader says so, none."""
    return [digest(path) for path in paths if Path(path).exists()]


def _paths(settings: Any) -> Iterator[str]:
    if isinstance(settings, list | tuple):
        for one in settings:
            yield from _paths(one)
    elif is_dataclass(settings):
        if isinstance(settings, TriggerConfig):
            yield from settings.paths.values()
        elif isinstance(settings, Method):
            yield from settings.files
        for field in fields(settings):
            yield from _paths(getattr(settings, field.name))
