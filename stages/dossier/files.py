"""Dossiers on disk: triggers/ID/, see `Dossier.save`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .dossier import ABSENT, VERSION, Dossier, shared_fields
from .patch import Patch
from .residual import Residual
from .texture import Texture
from .warp import Warp

KINDS: dict[str, type[Dossier]] = {kind.kind: kind for kind in (Patch, Residual, Texture, Warp)}


def read_dossier(folder: Path) -> Dossier:
    """Return what `Dossier.save` wrote, equal in every field.

    Raises:
        ValueError: the folder holds no dossier, or one of another version.
    """
    try:
        found = json.loads((folder / "dossier.json").read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("dossier.json holds no object")
        stored: dict[str, Any] = {**ABSENT, **found}
        if stored.get("version") != VERSION or stored["kind"] not in KINDS:
            raise ValueError(f"of another version than {VERSION}; scan again")
        return KINDS[stored["kind"]].load(folder, stored, shared_fields(stored))
    except Exception as error:  # what reads pictures and arrays raises nearly anything on a broken file
        raise ValueError(f"{folder}: no dossier of a trigger: {error}") from error


def write_dossiers(folder: Path, dossiers: Sequence[Dossier]) -> None:
    """Write each into `folder`/ID."""
    for dossier in dossiers:
        dossier.save(folder / dossier.id)


def read_dossiers(folder: Path) -> tuple[Dossier, ...]:
    """Return all dossiers below a folder in the order of their numbers; none if there is no such folder."""
    found = [read_dossier(path.parent) for path in folder.glob("*/dossier.json")]
    return tuple(sorted(found, key=lambda dossier: (len(dossier.id), dossier.id)))
