"""A dossier on disk: triggers/ID/ with dossier.json, pictures for people, and arrays for the next run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..attack.triggers.pixels import to_uint8
from .dossier import Cutout, Dossier, Place, Rate

VERSION = 1
GREY = 128


def write_dossier(folder: Path, dossier: Dossier) -> None:
    """Write one trigger into `folder`, which is made.

    dossier.json holds every figure. trigger.png and mask.png are the canonical picture and its pixels, further pictures of
    a varying patch are trigger-2.png and mask-2.png on, mean.png is the mean of the members. What changes the whole image is
    residual.npy (with gain.npy), texture.npy (with band.npy) or warp.npy, exact, and the picture of it is residual.png and
    so on. heat.npy is the heat map.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for i, cutout in enumerate(dossier.cutouts, 1):
        Image.fromarray(cutout.picture).save(folder / f"trigger{_suffix(i)}.png")
        Image.fromarray(255 * cutout.mask.astype(np.uint8)).save(folder / f"mask{_suffix(i)}.png")
    if dossier.mean is not None:
        Image.fromarray(dossier.mean).save(folder / "mean.png")
    for name in ("heat", "gain", "band"):
        if (array := getattr(dossier, name)) is not None:
            np.save(folder / f"{name}.npy", array)
    if dossier.effect is not None:
        np.save(folder / f"{dossier.kind}.npy", dossier.effect)
        Image.fromarray(visible(dossier)).save(folder / f"{dossier.kind}.png")
    (folder / "dossier.json").write_text(json.dumps(_to_json(dossier), indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_dossier(folder: Path) -> Dossier:
    """Return what `write_dossier` wrote, equal in every field.

    Raises:
        ValueError: the folder holds no dossier, or one of another version.
    """
    try:
        stored: dict[str, Any] = json.loads((folder / "dossier.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no dossier of a trigger: {error}") from error
    if stored.pop("version", None) != VERSION:
        raise ValueError(f"{folder}: a dossier of another version than {VERSION}; scan again")
    places = stored.pop("cutouts")
    cutouts = tuple(_read_cutout(folder, i, corner) for i, corner in enumerate(places, 1))
    return Dossier(
        **stored
        | {
            "targets": tuple(stored["targets"]),
            "uids": tuple(stored["uids"]),
            "flips": Rate(**stored["flips"]),
            "control": Rate(**stored["control"]),
            "place": None if stored["place"] is None else Place(**stored["place"]),
        },
        cutouts=cutouts,
        mean=_read_picture(folder / "mean.png") if (folder / "mean.png").exists() else None,
        heat=_read_array(folder / "heat.npy"),
        gain=_read_array(folder / "gain.npy"),
        band=_read_array(folder / "band.npy"),
        effect=_read_array(folder / f"{stored['kind']}.npy"),
    )


def write_dossiers(folder: Path, dossiers: tuple[Dossier, ...]) -> None:
    """Write each into `folder`/ID."""
    for dossier in dossiers:
        write_dossier(folder / dossier.id, dossier)


def read_dossiers(folder: Path) -> tuple[Dossier, ...]:
    """Return all dossiers below a folder in the order of their numbers; none if there is no such folder."""
    found = [read_dossier(path.parent) for path in folder.glob("*/dossier.json")]
    return tuple(sorted(found, key=lambda dossier: (len(dossier.id), dossier.id)))


def visible(dossier: Dossier) -> np.ndarray:
    """Return a picture of the trigger, `[h, w, 3] uint8`: a patch's own, grey outside its mask; else what an effect does.

    A residual is drawn as its change of a grey image, the largest one at the end of the scale, and of a texture one pattern;
    a warp as its displacement, red down and green right, around grey.
    """
    if dossier.kind == "patch":
        cutout = dossier.cutouts[0]
        return np.where(cutout.mask[..., None], cutout.picture, GREY).astype(np.uint8)
    effect = np.asarray(dossier.effect, np.float64)
    if dossier.kind == "texture":
        effect = effect[0]
    if dossier.gain is not None:
        effect = effect + (dossier.gain - 1) * GREY
    if dossier.kind == "warp":
        effect = np.concatenate([effect, np.zeros_like(effect[..., :1])], axis=-1)
    return to_uint8(GREY + 127 * effect / max(float(np.abs(effect).max()), 1e-9))


def _to_json(dossier: Dossier) -> dict[str, Any]:
    arrays = {"mean", "heat", "gain", "band", "effect", "cutouts"}
    plain = {f.name: getattr(dossier, f.name) for f in dataclasses.fields(dossier) if f.name not in arrays}
    for name in ("flips", "control", "place"):
        plain[name] = None if plain[name] is None else dataclasses.asdict(plain[name])
    return {"version": VERSION, **plain, "cutouts": [[cutout.top, cutout.left] for cutout in dossier.cutouts]}


def _suffix(number: int) -> str:
    return "" if number == 1 else f"-{number}"


def _read_cutout(folder: Path, number: int, corner: list[int]) -> Cutout:
    with Image.open(folder / f"mask{_suffix(number)}.png") as file:
        mask = np.asarray(file) > 0
    picture = _read_picture(folder / f"trigger{_suffix(number)}.png")
    return Cutout(picture=picture, mask=mask, top=corner[0], left=corner[1])


def _read_array(path: Path) -> np.ndarray | None:
    return np.load(path, allow_pickle=False) if path.exists() else None


def _read_picture(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"))
