"""CLIP checkpoints as files: found, read without running their code, written whole.

A stranger's checkpoint is hostile input. Weights are read from safetensors or with torch.load(weights_only=True), model
configurations are JSON, and nothing is ever fetched from a network.
"""

import json
import os
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..stage import config

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
WEIGHT_FILES = (
    WEIGHTS_FILE,
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "open_clip_model.pt",
    "pytorch_model.bin",
)
"""Names under which a folder's weights are looked for, in this order (open_clip's own order, safetensors first)."""

SHOWN_KEYS = 3
"""Keys of each kind that a mismatch message lists."""


class ModelError(ValueError):
    """A model cannot be built or its weights cannot be read; the message says what to do."""


@config
class ModelConfig:
    """Which CLIP model: an architecture, weights, or a folder with both."""

    name: str | None = None
    """Architecture by open_clip's built-in name, such as ViT-B-32."""
    config: str | None = None
    """Architecture from a local JSON file, in the format of open_clip's model_configs/."""
    path: str | None = None
    """Weights: a folder with open_clip_config.json in it, or one .safetensors or .pt file beside name or config."""
    adapter: str | None = None
    """Visual prompts for these weights: a folder that a repair by prompts wrote."""

    def __post_init__(self) -> None:
        if self.name is None and self.config is None and self.path is None:
            raise ValueError("set one of name, config or path")
        if self.adapter is not None and self.path is None:
            raise ValueError("adapter belongs to weights; set path, too")
        if self.name is not None and self.config is not None:
            raise ValueError("name and config both choose the architecture; set one of them")

    def absolute(self) -> "ModelConfig":
        """Return the same model by absolute paths, for a process with another working folder."""
        places = (self.config, self.path, self.adapter)
        config, path, adapter = (str(Path(p).expanduser().resolve()) if p else None for p in places)
        return ModelConfig(name=self.name, config=config, path=path, adapter=adapter)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """What a ModelConfig stands for, after a look at the files; no weights are read yet."""

    model_cfg: dict[str, Any]
    """open_clip's model configuration."""
    preprocess_cfg: dict[str, Any]
    """The preprocessing that came with the weights; empty where none is stated."""
    weights: Path | None
    """The file with the weights; None: architecture only."""
    folder: Path | None
    """The checkpoint's folder, where a tokenizer may stand; None for a single file or none."""


def resolve_model(model: ModelConfig) -> ResolvedModel:
    """Find the files that a configuration names and read the architecture; cheap, for a check before any worker starts.

    Raises:
        ModelError: an unknown name, a missing or unreadable file, or a combination that leaves the architecture open.
    """
    if model.path is not None and Path(model.path).is_dir():
        if model.name is not None or model.config is not None:
            raise ModelError(f"path {model.path} is a folder with its own {CONFIG_FILE}; leave out name and config")
        return _resolve_folder(Path(model.path))
    weights = None
    if model.path is not None:
        weights = Path(model.path)
        if not weights.is_file():
            raise ModelError(f"path: no such file or folder: {weights}")
        if model.name is None and model.config is None:
            raise ModelError(f"path {weights} is one file of weights; set name or config to say its architecture")
    if model.config is not None:
        stored = _read_json(Path(model.config))
        model_cfg = stored.get("model_cfg", stored)
        preprocess_cfg = stored.get("preprocess_cfg", {})
    else:
        model_cfg, preprocess_cfg = open_clip.get_model_config(model.name), {}
        if model_cfg is None:
            raise ModelError(f"name: open_clip has no model {model.name!r}; open_clip.list_models() lists them")
    return ResolvedModel(_checked_model_cfg(model_cfg, model.config or str(model.name)), preprocess_cfg, weights, None)


def _resolve_folder(folder: Path) -> ResolvedModel:
    stored = _read_json(folder / CONFIG_FILE)
    model_cfg = _checked_model_cfg(stored.get("model_cfg"), str(folder / CONFIG_FILE))
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return ResolvedModel(model_cfg, stored.get("preprocess_cfg", {}), folder / name, folder)
    raise ModelError(f"path: {folder} holds no weights; looked for {', '.join(WEIGHT_FILES)}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"no such file: {path}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not a readable JSON file: {error}") from error
    if not isinstance(stored, dict):
        raise ModelError(f"{path}: expected a JSON object")
    return stored


def _checked_model_cfg(model_cfg: Any, where: str) -> dict[str, Any]:
    keys = ("embed_dim", "vision_cfg", "text_cfg")
    if not isinstance(model_cfg, dict) or not all(key in model_cfg for key in keys):
        raise ModelError(f"{where}: a model configuration needs {', '.join(keys)}")
    if "trust_remote_code" in json.dumps(model_cfg):
        raise ModelError(f"{where}: trust_remote_code would run code from the checkpoint; remove it")
    return model_cfg


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read weights on the CPU without running any code that the file carries.

    A training checkpoint's `state_dict` entry is taken, and DDP's `module.` prefix is dropped.

    Raises:
        ModelError: a pickle with anything but tensors and plain data, a TorchScript archive, a damaged file.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(_refusal(path, str(error))) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ModelError(_refusal(path, str(error))) from error
    if isinstance(stored, dict) and isinstance(stored.get("state_dict"), dict):
        stored = stored["state_dict"]
    if not isinstance(stored, dict) or not stored or not all(isinstance(v, torch.Tensor) for v in stored.values()):
        raise ModelError(f"{path} holds no state dict (a mapping from parameter names to tensors)")
    if all(name.startswith("module.") for name in stored):
        stored = {name.removeprefix("module."): tensor for name, tensor in stored.items()}
    return stored


def _refusal(path: Path, message: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", message)
    what = f"it calls {found.group(1)}" if found else message.strip().splitlines()[0] if message.strip() else "damaged"
    return (
        f"{path} is not plain weights ({what}); loading it could run code from the file, so it is refused. To convert "
        "it, on a machine that may be lost: model = torch.load(FILE, weights_only=False, map_location='cpu'); "
        "safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, 'model.safetensors') "
        "(for a dict use model['state_dict'] in place of model.state_dict(); for TorchScript use torch.jit.load)"
    )


def build_model(model_cfg: dict[str, Any]) -> torch.nn.Module:
    """Build the architecture with fresh weights from torch's global generator; nothing is downloaded.

    Raises:
        ModelError: open_clip or timm does not accept the configuration.
    """
    arguments = json.loads(json.dumps(model_cfg))
    if "timm_model_name" in arguments["vision_cfg"]:
        arguments["vision_cfg"]["timm_model_pretrained"] = False
    hugging_face = "hf_model_name" in arguments["text_cfg"]
    if hugging_face:
        arguments["text_cfg"]["hf_model_pretrained"] = False
    custom = arguments.pop("custom_text", False) or hugging_face
    if "multimodal_cfg" in arguments:
        raise ModelError("CoCa models (multimodal_cfg) are not supported")
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    try:
        model: torch.nn.Module = kind(**arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError, OSError) as error:
        raise ModelError(f"open_clip cannot build this model configuration: {error}") from error
    return model


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], where: str) -> None:
    """Load a state dict into a model, strictly.

    Older layouts that open_clip itself understands are accepted: a built-in text tower for a model with a custom one,
    OpenAI's extra integers, a logit scale with one element in place of a scalar. Position embeddings are never
    interpolated: another image size is another model.

    Raises:
        ModelError: naming the first missing and unexpected keys and the first shapes that differ.
    """
    weights = dict(weights)
    for name in ("input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids"):
        weights.pop(name, None)
    target = model.state_dict()
    if "positional_embedding" in weights and "positional_embedding" not in target:
        weights = open_clip.model.convert_to_custom_text_state_dict(weights)
    for name in ("logit_scale", "logit_bias"):
        if name in weights and name in target and weights[name].numel() == 1:
            weights[name] = weights[name].reshape(target[name].shape)
    problems = []
    missing = [name for name in target if name not in weights]
    unexpected = [name for name in weights if name not in target]
    shapes = [
        f"{name} {list(weights[name].shape)}, the model has {list(target[name].shape)}"
        for name in target
        if name in weights and weights[name].shape != target[name].shape
    ]
    for title, names in (("missing", missing), ("unexpected", unexpected), ("shape", shapes)):
        if names:
            more = f" and {len(names) - SHOWN_KEYS} more" if len(names) > SHOWN_KEYS else ""
            problems.append(f"{title}: {', '.join(names[:SHOWN_KEYS])}{more}")
    if problems:
        raise ModelError(f"{where} does not fit the architecture; {'; '.join(problems)}")
    model.load_state_dict(weights)


def save_clip(
    model: torch.nn.Module, model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any], folder: str | Path
) -> None:
    """Write a checkpoint folder that `open_clip.create_model("local-dir:FOLDER")` and ModelConfig(path=FOLDER) load.

    The folder appears whole or not at all; one that is already there is replaced.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    # clone: safetensors refuses tensors that share memory, as tied weights do
    weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, fresh / WEIGHTS_FILE)
    stored = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (fresh / CONFIG_FILE).write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    put_in_place(fresh, folder)


def put_in_place(fresh: Path, folder: Path) -> None:
    """Rename a finished folder to its place; one that stands there already goes only when the new one is there."""
    if folder.exists():
        stale = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        folder.rename(stale)
        fresh.rename(folder)
        shutil.rmtree(stale)
    else:
        fresh.rename(folder)
