"""The benchmark's models in few small files: what a model has learned beside the one that it started from, in six bits a weight.

Rounding changes a model. So each is rounded when it is made, and what is measured and audited is what a file gives back. Of the embeddings
of tokens only those that captions use are kept: the others are drawn again.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clipsan.pipeline.core.commit import whole
from clipsan.stages.model.clip import ModelConfig, load_clip, save_clip

MODELS = {"resnet": "conf/model/demo.json", "vit": "tests/benchmarks/matrices/audit-vit.json"}
"""Architecture -> configuration."""
TRUTH, TRIGGER, CHECKPOINT, WEIGHTS = "truth.json", "trigger.npy", "checkpoint", "weights.npz"
TOKENS = "token_embedding.weight"
LEVELS = 31
"""Largest step of a weight's change away from 0."""
FILE_BYTES = 14 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A model from which others start."""

    arch: str
    seed: int

    @property
    def name(self) -> str:
        return f"base-{self.arch}-{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A model of the benchmark, or of development."""

    arch: str
    base: int
    attack: str | None
    seed: int
    dev: bool = False

    @property
    def name(self) -> str:
        return f"{'dev-' if self.dev else ''}{self.arch}-s{self.seed}-{self.attack or 'clean'}"

    @property
    def base_of(self) -> Base:
        """The model from which it starts."""
        return Base(arch=self.arch, seed=self.base)


def checkpoint_of(root: Path, model: Base | Cell) -> Path:
    """Return the checkpoint folder of a model."""
    return root / model.name / CHECKPOINT


def keep(home: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays of a model beside its checkpoint, to be packed."""
    with whole(home / WEIGHTS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **dict(arrays))


def drawn_tokens(state: Mapping[str, torch.Tensor], seed: int) -> np.ndarray:
    """Return `[V, W] float32`, the token embeddings from which a base starts; NumPy draws the same everywhere."""
    rng = np.random.default_rng([seed, 8])
    drawn = 0.02 * rng.standard_normal(tuple(state[TOKENS].shape), dtype=np.float32)
    return drawn.astype(np.float16).astype(np.float32)


def encode(
    state: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor] | None, tokens: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Return the arrays of a model's file.

    Args:
        state: of the model.
        start: of the base that it was tuned from; None of a base itself, whose weights are then kept in half precision.
        tokens: of a base, the embeddings that it started from.
    """
    found: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        value = tensor.detach().cpu().numpy()
        if value.ndim < 2:
            found[f"whole:{name}"] = value
            continue
        origin = tokens if start is None else start[name].numpy()
        if name == TOKENS:
            assert origin is not None
            rows = np.flatnonzero((value != origin).any(axis=1))
            found[f"rows:{name}"] = rows.astype(np.int32)
            value, origin = value[rows], origin[rows]
        if start is None:
            found[f"half:{name}"] = value.astype(np.float16)
            continue
        assert origin is not None
        change = (value - origin).reshape(len(value), -1)
        scale = np.abs(change).max(axis=1, keepdims=True, initial=0).astype(np.float32) / LEVELS
        found[f"steps:{name}"] = np.rint(change / np.maximum(scale, 1e-20)).astype(np.int8).reshape(value.shape)
        found[f"scale:{name}"] = scale[:, 0]
    return found


def decode(
    found: Mapping[str, np.ndarray], start: Mapping[str, torch.Tensor] | None, tokens: np.ndarray | None
) -> dict[str, torch.Tensor]:
    """Return the state of a model from the arrays of its file; the inverse of `encode`, up to rounding."""
    state: dict[str, torch.Tensor] = {}
    for key, stored in found.items():
        kind, name = key.split(":", 1)
        if kind == "whole":
            state[name] = torch.from_numpy(np.array(stored))
        if kind not in ("half", "steps"):
            continue
        rows = found.get(f"rows:{name}")
        if kind == "half":
            value = stored.astype(np.float32)
            origin = tokens
        else:
            assert start is not None
            origin = start[name].numpy()
            scale = found[f"scale:{name}"].reshape(-1, *[1] * (stored.ndim - 1))
            value = stored.astype(np.float32) * scale + (origin if rows is None else origin[rows])
        if rows is not None:
            assert origin is not None
            whole_table = origin.copy()
            whole_table[rows] = value
            value = whole_table
        state[name] = torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
    return state


def pack(root: Path, folder: Path, cells: Sequence[Cell]) -> list[Path]:
    """Write models and the bases that they need into files `audit-models-N.zip`, and return these."""
    files: list[dict[str, bytes]] = [{}]
    for model in [*dict.fromkeys(cell.base_of for cell in cells), *cells]:
        home = root / model.name
        member = {
            f"{model.name}/{name}": (home / name).read_bytes()
            for name in (WEIGHTS, TRUTH, TRIGGER)
            if (home / name).is_file()
        }
        if sum(map(len, files[-1].values())) + sum(map(len, member.values())) > FILE_BYTES:
            files.append({})
        files[-1] |= member
    paths = [folder / f"audit-models-{i}.zip" for i in range(len(files))]
    for path, file in zip(paths, files, strict=True):
        with whole(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, content in file.items():
                archive.writestr(name, content)
    return paths


def unpack(folder: Path, root: Path) -> list[str]:
    """Write the models of `audit-models-*.zip` as `audit_models` leaves them, and return their names."""
    members: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("audit-models-*.zip")):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                home, file = name.split("/")
                members.setdefault(home, {})[file] = archive.read(name)
    bases: dict[str, dict[str, torch.Tensor]] = {}
    for name in sorted(members, key=lambda name: not name.startswith("base-")):  # bases first
        files = members[name]
        truth = json.loads(files[TRUTH])
        clip = load_clip(ModelConfig(config=MODELS[truth["arch"]]), init_seed=0)
        with np.load(io.BytesIO(files[WEIGHTS])) as arrays:
            if truth.get("base") is None:
                state = bases[name] = decode(arrays, None, drawn_tokens(clip.model.state_dict(), truth["seed"]))
            else:
                state = decode(arrays, bases[truth["base"]], None)
        clip.model.load_state_dict(state)
        save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, root / name / CHECKPOINT)
        for file in (TRUTH, TRIGGER):
            if file in files:
                (root / name / file).write_bytes(files[file])
    return sorted(members)
