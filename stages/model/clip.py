"""A CLIP model as the rest of clipsan sees it: pixels and captions in, unit vectors and pooled layer features out."""

import copy
import hashlib
import json
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from torchvision.transforms import Compose

from ..precision import autocast
from .checkpoints import (
    ModelConfig,
    ModelError,
    ResolvedModel,
    activation_doubt,
    build_model,
    check_sizes,
    load_weights,
    read_state_dict,
    resolve_model,
    save_clip,
)
from .folding import fold_batch_norm
from .prompts import STORED, attach_shaped, load_adapter
from .text import encode_text, ends, shorten

__all__ = [
    "Clip",
    "Encoded",
    "Inputs",
    "ModelConfig",
    "ModelError",
    "default_layers",
    "load_clip",
    "resolve_model",
    "save_clip",
]

MAX_LAYERS = 4
"""Blocks that default_layers chooses at most."""
LAYER_WIDTH = 128
"""Widest layer feature that is kept; wider ones are projected."""
PROJECTION_SEED = 20
"""Seed of the projection; a constant, so that every model's and every run's layer features agree."""

BLOCK_LISTS = ("transformer.resblocks", "trunk.blocks", "trunk.stages", "trunk.layers")
"""Where vision towers keep their blocks: open_clip's ViT; timm's ViT and EfficientNet, ConvNeXt, Swin."""
BLOCK_NAMES = ("layer1", "layer2", "layer3", "layer4")
"""The blocks of a ResNet, in open_clip (on the tower) and in timm (on its trunk)."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One encoded batch, on the CPU."""

    image: np.ndarray
    """`[B, D] float32`, unit norm."""
    text: np.ndarray
    """`[B, D] float32`, unit norm."""
    layers: dict[str, np.ndarray]
    """Block name -> `[B, P] float32`, pooled over positions, P <= LAYER_WIDTH."""


class Inputs:
    """From one decoded pair to what a model takes; light, because it needs no weights."""

    def __init__(self, resolved: ResolvedModel) -> None:
        self.image_size = _square_size(resolved.model_cfg)
        self.preprocess_cfg = _preprocess_cfg(resolved.preprocess_cfg, self.image_size)
        self.tokenizer = _tokenizer(resolved)
        transform = image_transform_v2(PreprocessCfg(**self.preprocess_cfg), is_train=False)
        # open_clip ends every evaluation transform with ToTensor and Normalize; those two are done on the batch.
        self._geometry = Compose(transform.transforms[:-2])

    def preprocess(self, rgb: np.ndarray) -> torch.Tensor:
        """Resize and crop one image exactly as open_clip's evaluation transform does.

        Args:
            rgb: `[H, W, 3] uint8`.

        Returns:
            `[3, S, S] uint8`. An image that already has that size is passed through untouched.
        """
        if rgb.shape[:2] != (self.image_size, self.image_size):
            rgb = np.asarray(self._geometry(Image.fromarray(rgb)))
        return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))

    def tokenize(self, captions: Sequence[str]) -> torch.Tensor:
        """Return `[B, context_length] int64`; longer captions are cut, as open_clip does."""
        return self.tokenizer(list(captions))


class Clip:
    """A loaded CLIP model in evaluation mode.

    A row's encoding does not depend on the other rows of its batch beyond the rounding noise of float32: batch
    normalisation uses its stored statistics and there is no dropout. Different batch sizes may pick different kernels
    whose last bits differ, so callers that want identical bytes cut their batches at fixed places.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        resolved: ResolvedModel,
        device: str | torch.device = "cpu",
        precision: Literal["f32", "bf16"] = "f32",
    ) -> None:
        self.device = torch.device(device)
        self.model: Any = model.eval().to(self.device).to(memory_format=torch.channels_last)
        self.model_cfg = resolved.model_cfg
        self.embed_dim = int(resolved.model_cfg["embed_dim"])
        self.inputs = Inputs(resolved)
        self.image_size = self.inputs.image_size
        self.preprocess_cfg = self.inputs.preprocess_cfg
        self.preprocess = self.inputs.preprocess
        self.tokenize = self.inputs.tokenize
        self.tokenizer = self.inputs.tokenizer
        self.fingerprint = fingerprint(model, self.model_cfg, self.preprocess_cfg)
        self.scale = float(model.get_parameter("logit_scale").detach().exp())
        self._precision = precision
        self._mean = torch.tensor(self.preprocess_cfg["mean"], device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(self.preprocess_cfg["std"], device=self.device).view(1, 3, 1, 1)
        self._projections: dict[int, torch.Tensor] = {}
        self._widths: dict[str, int] = {}

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Return `[B, 3, S, S]` uint8 pixels as the model's normalised float32 input, on its device."""
        pixels = images.to(self.device).to(torch.float32, memory_format=torch.channels_last)
        return pixels.div_(255).sub_(self._mean).div_(self._std)

    def layers(self, names: Sequence[str] | None = None) -> list[str]:
        """Return the names, checked, or the default blocks when None.

        Raises:
            ModelError: the image tower has no block of that name.
        """
        if names is None:
            return default_layers(self.model)
        known = block_names(self.model)
        for name in names:
            if name not in known:
                raise ModelError(f"layers: no block {name!r} in the image tower; it has {', '.join(known)}")
        return list(names)

    def layer_widths(self, names: Sequence[str]) -> dict[str, int]:
        """Return block name -> width P of its pooled feature, from one blank image."""
        unknown = [name for name in names if name not in self._widths]
        if unknown:
            blank = torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.uint8)
            features = self.encode_images(blank, unknown)[1]
            self._widths.update({name: values.shape[1] for name, values in features.items()})
        return {name: self._widths[name] for name in names}

    def encode(
        self, images: torch.Tensor, captions: Sequence[str] | torch.Tensor, layers: Sequence[str] = ()
    ) -> Encoded:
        """Encode a batch of pairs.

        Args:
            images: `[B, 3, S, S] uint8`, from `preprocess`.
            captions: B strings, or `[B, context_length]` tokens.
            layers: blocks whose pooled output is wanted, by the names of `layers()`.
        """
        image, features = self.encode_images(images, layers)
        return Encoded(image, self.encode_text(captions), features)

    def encode_images(
        self, images: torch.Tensor, layers: Sequence[str] = ()
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return unit vectors `[B, D] float32` and the pooled features of the named blocks `[B, P] float32`."""
        unit, narrow = self.image_features(images, layers)
        return unit.cpu().numpy(), {name: values.cpu().numpy() for name, values in narrow.items()}

    def image_features(
        self, images: torch.Tensor, layers: Sequence[str] = ()
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """As `encode_images`, but on the model's device: nothing waits for it."""
        pooled: dict[str, torch.Tensor] = {}
        with ExitStack() as stack, torch.inference_mode():
            for name in layers:
                block = self.model.visual.get_submodule(name)
                handle = block.register_forward_hook(partial(self._keep, pooled, name, threading.get_ident()))
                stack.callback(handle.remove)
            with self._autocast():
                features = self.model.encode_image(self.normalise(images), normalize=False)
            unit = torch.nn.functional.normalize(features.float(), dim=-1)
            narrow = {name: self._narrow(pooled[name]) for name in layers}
        return unit, narrow

    def encode_text(self, captions: Sequence[str] | torch.Tensor) -> np.ndarray:
        """Return unit vectors `[B, D] float32`; a caption that occurs twice in the batch is encoded once."""
        tokens = captions if isinstance(captions, torch.Tensor) else self.tokenize(captions)
        unique, rows = torch.unique(tokens, dim=0, return_inverse=True)
        return np.asarray(self.text_features(self.shorten(unique)).cpu()[rows])

    def ends(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the last position that each text's vector depends on, `[B] int64`, of `[B, L]` tokens."""
        return ends(self.model, tokens)

    def shorten(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return `[B, context_length]` tokens on the CPU as `[B, L]`, without what lies behind the ends of all texts."""
        return shorten(self.model, tokens)

    def text_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return unit vectors `[B, D] float32` of `[B, L]` tokens, shortened or not, on the model's device."""
        with torch.inference_mode():
            with self._autocast():
                features = encode_text(self.model, tokens.to(self.device))
            return torch.nn.functional.normalize(features.float(), dim=-1)

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, bf16=self._precision == "bf16")

    def in_precision(self, precision: Literal["f32", "bf16"]) -> "Clip":
        """Return the same model, with forward passes of another precision; both share the weights."""
        other = copy.copy(self)
        other._precision = precision
        return other

    def _keep(
        self, pooled: dict[str, torch.Tensor], name: str, thread: int, module: torch.nn.Module, inputs: Any, output: Any
    ) -> None:
        if threading.get_ident() == thread:  # another thread's forward pass runs through the same block
            pooled[name] = pool_positions(output, _positions(self.model, name))

    def _narrow(self, features: torch.Tensor) -> torch.Tensor:
        width = features.shape[1]
        if width <= LAYER_WIDTH:
            return features
        if width not in self._projections:
            self._projections[width] = torch.from_numpy(orthonormal(width, LAYER_WIDTH)).to(self.device)
        return features @ self._projections[width]

    def fold(self) -> None:
        """Make one convolution of a convolution and the batch normalisation behind it: for a model that is never trained.

        The fingerprint stays that of the model as it was given.
        """
        fold_batch_norm(self.model.visual)
        self.model.to(memory_format=torch.channels_last)

    def take_adapter(self, folder: Path) -> None:
        """Put the prompts of a repair into the model; its fingerprint becomes that of the repaired one.

        Raises:
            ModelError: see load_adapter.
        """
        load_adapter(self.model, self.fingerprint, folder)
        self.fingerprint = fingerprint(self.model, self.model_cfg, self.preprocess_cfg)


def load_clip(
    model: ModelConfig,
    device: str | torch.device = "cpu",
    *,
    precision: Literal["f32", "bf16"] = "f32",
    init_seed: int | None = None,
) -> Clip:
    """Load a CLIP model from local files.

    Args:
        model: architecture and weights.
        device: where it runs.
        precision: of the forward pass; vectors and features are float32 either way.
        init_seed: draw the weights from this seed when the configuration names none, to train from scratch.

    Raises:
        ModelError: see resolve_model, read_state_dict, load_weights and load_adapter; also when there are neither weights
            nor a seed.
    """
    model = model.here()
    resolved = resolve_model(model)
    if resolved.weights is None and init_seed is None:
        raise ModelError(f"{model.name or model.config} is an architecture without weights; set model.path")
    weights = read_state_dict(resolved.weights) if resolved.weights is not None else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed or 0)
        try:
            if resolved.weights is not None:
                check_sizes(resolved.model_cfg, weights)
            network = build_model(resolved.model_cfg)
        except ModelError as error:
            raise ModelError(f"{model.path or model.config or model.name}: {error}") from error
    if resolved.weights is not None:
        doubt = activation_doubt(model, weights)
        if doubt is not None:
            warnings.warn(f"{resolved.weights}: {doubt}", stacklevel=2)
        if STORED in weights:
            attach_shaped(network, weights[STORED])
        load_weights(network, weights, str(resolved.weights))
    clip = Clip(network, resolved, device, precision)
    if model.adapter is not None:
        clip.take_adapter(Path(model.adapter))
    return clip


def fingerprint(model: torch.nn.Module, model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any]) -> str:
    """Return the SHA-256 (hexadecimal) of configuration and weights; the format of the file plays no part."""
    digest = hashlib.sha256(json.dumps([model_cfg, preprocess_cfg], sort_keys=True, default=list).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def block_names(model: torch.nn.Module) -> list[str]:
    """Return the blocks of the image tower in forward order, as module paths below `visual`.

    Raises:
        ModelError: an image tower whose layout is not known.
    """
    tower: Any = model.visual
    modules = dict(tower.named_modules())
    for path in BLOCK_LISTS:
        if path in modules:
            return [f"{path}.{name}" for name, _ in modules[path].named_children()]
    for prefix in ("", "trunk."):
        names = [f"{prefix}{name}" for name in BLOCK_NAMES if f"{prefix}{name}" in modules]
        if names:
            return names
    raise ModelError(f"no known blocks in the image tower {type(tower).__name__}")


def default_layers(model: torch.nn.Module) -> list[str]:
    """Return at most MAX_LAYERS blocks: the last of each of as many equal parts of the tower."""
    names = block_names(model)
    count = min(MAX_LAYERS, len(names))
    return [names[-(-(part + 1) * len(names) // count) - 1] for part in range(count)]


def pool_positions(output: torch.Tensor, positions: tuple[int, ...]) -> torch.Tensor:
    """Return the mean over positions of a block's output, `[B, C] float32`.

    Tokens `[B, T, C]` (the class token counts as one of them) are averaged over dimension 1, maps over `positions`.
    """
    dims = positions if output.ndim == 4 else (1,)
    return output.float().mean(dims)


def orthonormal(rows: int, columns: int) -> np.ndarray:
    """Return `[rows, columns] float32` with orthonormal columns, drawn from PROJECTION_SEED."""
    gaussian = np.random.default_rng([PROJECTION_SEED, rows]).standard_normal((rows, columns))
    basis, triangle = np.linalg.qr(gaussian)
    # QR leaves the signs to the library; fixed ones make the draw uniform and the same everywhere.
    return (basis * np.sign(np.diag(triangle))).astype(np.float32)


def _positions(model: torch.nn.Module, name: str) -> tuple[int, ...]:
    """Dimensions of a block's four-dimensional output that are positions; timm's Swin puts channels last."""
    trunk = getattr(model.visual, "trunk", None)
    return (1, 2) if getattr(trunk, "output_fmt", "NCHW") == "NHWC" else (2, 3)


def _square_size(model_cfg: dict[str, Any]) -> int:
    size = model_cfg["vision_cfg"].get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ModelError(f"the image tower takes {height} x {width} pixels; only square inputs are supported")
    return int(height)


def _preprocess_cfg(stored: dict[str, Any], size: int) -> dict[str, Any]:
    merged = merge_preprocess_dict(asdict(PreprocessCfg()), {**stored, "size": size})
    return {key: list(value) if isinstance(value, tuple) else value for key, value in merged.items()}


@lru_cache(maxsize=4)
def _simple_tokenizer(context_length: int, settings: str) -> Callable[[list[str]], torch.Tensor]:
    """Return open_clip's own tokenizer; its vocabulary takes a quarter of a second to read, which every pass would pay."""
    made: Callable[[list[str]], torch.Tensor] = SimpleTokenizer(context_length=context_length, **json.loads(settings))
    return made


def _tokenizer(resolved: ResolvedModel) -> Callable[[list[str]], torch.Tensor]:
    text_cfg = resolved.model_cfg["text_cfg"]
    context_length = text_cfg.get("context_length", 77)
    settings = text_cfg.get("tokenizer_kwargs", {})
    name = text_cfg.get("hf_tokenizer_name")
    if not name:
        return _simple_tokenizer(context_length, json.dumps(settings, sort_keys=True))
    # as open_clip: a checkpoint folder brings its tokenizer with it
    source = str(resolved.folder) if resolved.folder is not None else name
    mode = text_cfg.get("tokenizer_mode")
    try:
        loaded: Callable[[list[str]], torch.Tensor] = HFTokenizer(
            source, context_length=context_length, tokenizer_mode=mode, **settings
        )
    except ImportError as error:
        raise ModelError(
            f"the tokenizer {name} (hf_tokenizer_name) is read by the package transformers, which is not on this machine: "
            "pip install 'clipsan[transformers]'"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer {source} is not on this machine (hf_tokenizer_name): {error}") from error
    return loaded
