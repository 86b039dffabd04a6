"""CLIP checkpoints as files: found, read without running their code, written whole.

A stranger's checkpoint is hostile input. Weights are read from safetensors or with torch.load(weights_only=True), model
configurations are JSON, and nothing is ever fetched from a network.
"""

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..files import LFS_POINTER, fetched, is_address
from ..stage import config
from .layouts import (
    OPENAI_EXTRAS,
    LayoutError,
    from_transformers,
    is_transformers,
    transformers_cfg,
    transformers_preprocess,
    unwrapped,
)
from .siglip import PREPROCESS as SIGLIP_PREPROCESS
from .siglip import from_siglip, is_siglip, siglip_cfg

TRANSFORMERS_CONFIG = "config.json"
TRANSFORMERS_PREPROCESS = ("preprocessor_config.json", "processor_config.json")
"""Where transformers keeps the preprocessing of images; in the second, below image_processor, since its version 5."""
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

MAX_NUMBER = 2**20
"""Of a model configuration: vocabularies have 256,000 words, images 1,024 pixels a side."""
MAX_LAYERS_OF_A_TOWER = 512
MOST_PARAMETERS_A_WEIGHT, SMALL_MODEL = 4, 2**25
"""An architecture of more parameters than this is not built for the weights; of one with less, what does not fit is named."""

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
    """Weights: a folder with open_clip_config.json in it, or of transformers' CLIPModel or SiglipModel; or one .safetensors or .pt file
    beside name or config. What lies on s3:// or gs:// is fetched once a machine. In the settings of a verb also a version of MLflow's
    registry, models:/NAME/VERSION or models:/NAME@ALIAS."""
    adapter: str | None = None
    """Visual prompts for these weights: a folder that a repair by prompts wrote."""

    def __post_init__(self) -> None:
        if self.name is None and self.config is None and self.path is None:
            raise ValueError("set one of name, config or path")
        if self.adapter is not None and self.path is None:
            raise ValueError("adapter belongs to weights; set path, too")
        if self.name is not None and self.config is not None:
            raise ValueError("name and config both choose the architecture; set one of them")

    def here(self) -> "ModelConfig":
        """Return the same model by local paths: what lies on an object store is fetched."""
        places = (self.config, self.path, self.adapter)
        config, path, adapter = (str(fetched(p)) if p and is_address(p) else p for p in places)
        return ModelConfig(name=self.name, config=config, path=path, adapter=adapter)

    def absolute(self) -> "ModelConfig":
        """Return the same model by absolute paths, for a process with another working folder."""
        places = (self.config, self.path, self.adapter)
        config, path, adapter = (
            p if p is None or is_address(p) else str(Path(p).expanduser().resolve()) for p in places
        )
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

    def __post_init__(self) -> None:
        """Refuse a preprocessing that is none.

        Raises:
            ModelError: mean or std are not three finite numbers, or a std is not above 0.
        """
        for name in ("mean", "std"):
            if (values := self.preprocess_cfg.get(name)) is None:
                continue
            triple = values if isinstance(values, (list, tuple)) else ()
            numbers = [value for value in triple if isinstance(value, (int, float)) and math.isfinite(value)]
            if len(numbers) != 3 or len(triple) != 3 or (name == "std" and min(numbers) <= 0):
                where = self.folder or self.weights or "the model's configuration"
                raise ModelError(f"{where}: preprocess_cfg.{name} must be three numbers, one for each channel")


def resolve_model(model: ModelConfig) -> ResolvedModel:
    """Find the files that a configuration names and read the architecture; cheap, for a check before any worker starts.

    Raises:
        ModelError: an unknown name, a missing or unreadable file, or a combination that leaves the architecture open.
    """
    model = model.here()
    if model.path is not None and Path(model.path).is_dir():
        _check_no_training_folder(Path(model.path))
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
        model_cfg, preprocess_cfg = open_clip.get_model_config(model.name), named_preprocess(str(model.name))
        if model_cfg is None:
            raise ModelError(f"name: open_clip has no model {model.name!r}; open_clip.list_models() lists them")
    return ResolvedModel(_checked_model_cfg(model_cfg, model.config or str(model.name)), preprocess_cfg, weights, None)


def named_preprocess(name: str) -> dict[str, Any]:
    """Return the preprocessing that all published weights of a built-in architecture have in common; empty where they differ.

    A name alone does not say which weights a file holds: where they differ, open_clip's own default stands.
    """
    keys = ("mean", "std", "interpolation", "resize_mode")
    tags = open_clip.list_pretrained_tags_by_model(name)
    told = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    found = [{key: told_one[key] for key in keys if key in told_one} for told_one in told]
    return found[0] if found and all(one == found[0] for one in found) else {}


def _check_no_training_folder(folder: Path) -> None:
    """Refuse a folder of open_clip's own training: it holds several checkpoints, and no architecture.

    Raises:
        ModelError: naming the checkpoints.
    """
    if (folder / CONFIG_FILE).is_file() or (folder / TRANSFORMERS_CONFIG).is_file():
        return
    found = sorted(
        [*folder.glob("epoch_*.pt"), *folder.glob("checkpoints/epoch_*.pt")], key=lambda file: file.stat().st_mtime
    )
    if found:
        raise ModelError(
            f"path: {folder} holds {len(found)} checkpoints of a training with open_clip and no architecture; name one of them "
            f"and its architecture, as path={found[-1]} and name=ViT-B-32 (its `model:` in params.txt)"
        )


def _resolve_folder(folder: Path) -> ResolvedModel:
    if not (folder / CONFIG_FILE).is_file() and (folder / TRANSFORMERS_CONFIG).is_file():
        config = _read_json(folder / TRANSFORMERS_CONFIG)
        own: dict[str, Any] = next(
            (_read_json(folder / f) for f in TRANSFORMERS_PREPROCESS if (folder / f).is_file()), {}
        )
        preprocess_cfg = transformers_preprocess(own.get("image_processor", own))
        try:
            if str(config.get("model_type")).startswith("siglip"):
                model_cfg, preprocess_cfg = siglip_cfg(config), SIGLIP_PREPROCESS | preprocess_cfg
            else:
                model_cfg = transformers_cfg(config)
        except LayoutError as error:
            raise ModelError(f"path: {folder} is {error}") from error
    else:
        stored = _read_json(folder / CONFIG_FILE)
        model_cfg, preprocess_cfg = stored.get("model_cfg", {}), stored.get("preprocess_cfg", {})
        if not isinstance(preprocess_cfg, dict):
            raise ModelError(f"{folder / CONFIG_FILE}: preprocess_cfg must be a mapping")
    model_cfg = _checked_model_cfg(model_cfg, str(folder / CONFIG_FILE))
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return ResolvedModel(model_cfg, preprocess_cfg, folder / name, folder)
    raise ModelError(f"path: {folder} holds no weights; looked for {', '.join(WEIGHT_FILES)}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"no such file: {path}") from error
    except (OSError, ValueError, RecursionError) as error:
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

    Of a training checkpoint the weights are taken, without the prefixes of wrappers: see layouts.

    Raises:
        ModelError: an empty file, a git-lfs pointer, a pickle with anything but tensors and plain data, a TorchScript archive, a
            damaged file.
    """
    _check_content(path)
    if path.suffix == ".safetensors":
        try:
            return dict(unwrapped(load_file(path)))
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is not a readable safetensors file: {error}") from error
    # The unpickler raises nearly anything (IndexError, AttributeError, MemoryError for a length of its own, ...) on a broken file.
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(_refusal(path, str(error))) from error
    stored = unwrapped(stored)
    if not isinstance(stored, dict) or not stored or not all(isinstance(v, torch.Tensor) for v in stored.values()):
        raise ModelError(f"{path} holds no state dict (a mapping from parameter names to tensors)")
    return stored


def _check_content(path: Path) -> None:
    """Tell what is no checkpoint at all from one that cannot be read.

    Raises:
        ModelError: nothing is in the file, or a git-lfs pointer.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not start:
        raise ModelError(f"{path} is empty (0 bytes): its download or its copy was not finished")
    if start == LFS_POINTER:
        raise ModelError(f"{path} is a git-lfs pointer and not the weights; fetch them with `git lfs pull`")


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
    for tower in ("vision_cfg", "text_cfg"):
        if not isinstance(arguments.get(tower), dict):
            raise ModelError(f"{tower} must be a mapping")
    if "timm_model_name" in arguments["vision_cfg"]:
        arguments["vision_cfg"]["timm_model_pretrained"] = False
    hugging_face = "hf_model_name" in arguments["text_cfg"]
    if hugging_face:
        arguments["text_cfg"]["hf_model_pretrained"] = False
    custom = arguments.pop("custom_text", False) or hugging_face
    if "multimodal_cfg" in arguments:
        raise ModelError("CoCa models (multimodal_cfg) are not supported")
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    try:  # a stranger's values reach the constructors of all layers, which raise nearly anything
        model: torch.nn.Module = kind(**arguments)
    except Exception as error:
        raise ModelError(f"open_clip cannot build this model configuration: {error}") from error
    return model


def check_sizes(model_cfg: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """Refuse a configuration of far more parameters than there are weights, before memory is taken for them.

    Architectures that a library knows by name (timm's, transformers') have the sizes that it gives them.

    Raises:
        ModelError: a number that no model has, or parameters that the weights do not come near.
    """
    largest = max((abs(value) for value in _numbers(model_cfg)), default=0)
    layers = max(
        (value for name in ("vision_cfg", "text_cfg") for value in _numbers(_layers(model_cfg, name))), default=0
    )
    if not largest <= MAX_NUMBER or layers > MAX_LAYERS_OF_A_TOWER:
        raise ModelError(f"sizes that no model has (up to {max(largest, layers):g})")
    if "timm_model_name" in json.dumps(model_cfg) or "hf_model_name" in json.dumps(model_cfg):
        return
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build_model(model_cfg).parameters())
    held = sum(tensor.numel() for tensor in weights.values())
    if count > MOST_PARAMETERS_A_WEIGHT * held + SMALL_MODEL:
        raise ModelError(
            f"the architecture has {count:,} parameters, and there are {held:,} weights: they are of another model"
        )


def _layers(model_cfg: dict[str, Any], tower: str) -> Any:
    found = model_cfg.get(tower)
    return found.get("layers") if isinstance(found, dict) else None


def _numbers(tree: Any) -> Iterator[float]:
    if isinstance(tree, (dict, list)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _numbers(value)
    elif isinstance(tree, (int, float)):
        yield tree


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], where: str) -> None:
    """Load a state dict into a model, strictly.

    Older layouts that open_clip itself understands are accepted: a built-in text tower for a model with a custom one,
    OpenAI's extra integers, a logit scale with one element in place of a scalar; and transformers' names of a CLIPModel or a
    SiglipModel.
    Position embeddings are never interpolated: another image size is another model.

    Raises:
        ModelError: naming the first missing and unexpected keys and the first shapes that differ; or the first weights that are
            not finite, or a tower that is zero.
    """
    weights = converted(weights)
    _check_values(weights, where)
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


def converted(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights under open_clip's names."""
    if is_siglip(weights):
        return from_siglip(weights)
    return from_transformers(weights) if is_transformers(weights) else dict(weights)


def _check_values(weights: dict[str, torch.Tensor], where: str) -> None:
    """Refuse weights that embed nothing, before hours are spent on them.

    Raises:
        ModelError: NaN or infinite numbers, or a tower or a projection that is zero.
    """
    broken = [name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        more = f" and {len(broken) - SHOWN_KEYS} more" if len(broken) > SHOWN_KEYS else ""
        raise ModelError(
            f"{where} holds numbers that are NaN or infinite, in {', '.join(broken[:SHOWN_KEYS])}{more}; such a model embeds nothing"
        )
    # the prompts of an adapter may well begin at zero
    matrices = {name: tensor for name, tensor in weights.items() if tensor.ndim > 1 and ".prompts." not in name}
    towers = {
        "the image tower": [tensor for name, tensor in matrices.items() if name.startswith("visual.")],
        "the text tower": [tensor for name, tensor in matrices.items() if not name.startswith("visual.")],
    }
    zero = [tower for tower, parts in towers.items() if parts and not any(part.any() for part in parts)]
    zero += [name for name in ("visual.proj", "text_projection") if name in matrices and not matrices[name].any()]
    if zero:
        raise ModelError(f"{where}: {', '.join(zero)} is zero throughout; such a model embeds nothing")


def activation_doubt(model: ModelConfig, weights: dict[str, torch.Tensor]) -> str | None:
    """Return why weights were probably trained with QuickGELU although the named architecture has GELU; None: nothing says so.

    Weights have the same names and shapes with both activations, and no number in them tells which it was. Two things are
    evidence: integers that only OpenAI's archives hold, and a name of which all published weights have QuickGELU. Weights that
    were trained further from OpenAI's without these integers, under another name, cannot be told.
    """
    name = model.name
    if name is None or f"{name}-quickgelu" not in open_clip.list_models():
        return None
    published = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    if any(extra in weights for extra in OPENAI_EXTRAS):
        reason = f"the weights are of OpenAI's own archive ({', '.join(e for e in OPENAI_EXTRAS if e in weights)})"
    elif published and all(cfg.get("quick_gelu") for cfg in published):
        reason = f"all published weights of {name} were trained with QuickGELU"
    else:
        return None
    return f"{reason}, and name={name} computes GELU: unless you trained them so, give name={name}-quickgelu"


def activation_said(model: ModelConfig, model_cfg: dict[str, Any]) -> str:
    """Return which activation a model computes, for a plan; and what to do where weights of its name may want the other."""
    if model_cfg.get("quick_gelu"):
        return "QuickGELU"
    if model.name is None or f"{model.name}-quickgelu" not in open_clip.list_models():
        return "GELU"
    return f"GELU (weights of OpenAI's family, also when trained further, need name={model.name}-quickgelu; no file says so)"


def save_clip(
    model: torch.nn.Module,
    model_cfg: dict[str, Any],
    preprocess_cfg: dict[str, Any],
    folder: str | Path,
    tokenizer: Any = None,
) -> None:
    """Write a checkpoint folder that `open_clip.create_model("local-dir:FOLDER")` and ModelConfig(path=FOLDER) load.

    A tokenizer of transformers is written with it; open_clip's own is in no file. The folder appears whole or not at all; one that is
    already there is replaced.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    fresh.mkdir()
    # clone: safetensors refuses tensors that share memory, as tied weights do
    weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    stored = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (fresh / CONFIG_FILE).write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    save_file(weights, fresh / WEIGHTS_FILE)
    # safetensors leaves its file to the owner alone; the other one has the mode that the user asks for
    (fresh / WEIGHTS_FILE).chmod((fresh / CONFIG_FILE).stat().st_mode & 0o777)
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(str(fresh))
    put_in_place(fresh, folder)


def put_in_place(fresh: Path, folder: Path) -> None:
    """Rename a finished folder to its place; one that stands there already goes only when the new one is there."""
    if folder.exists():
        stale = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.old")
        folder.rename(stale)
        fresh.rename(folder)
        shutil.rmtree(stale)
    else:
        fresh.rename(folder)
