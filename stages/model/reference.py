"""An encoder that has nothing to do with the suspect model: what a picture shows in the eyes of a second reader."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import Compose

from ..files import fetched, is_address
from ..stage import config
from .checkpoints import ModelConfig, ModelError, read_state_dict, resolve_model
from .clip import LAYER_WIDTH, Inputs, load_clip, orthonormal

COUNTERS = "num_batches_tracked"
"""Of batch normalisation: plays no part, and not every library stores it."""


@config
class ReferenceConfig:
    """A second image encoder: one of timm's architectures with local weights, or the image tower of a CLIP."""

    timm: str | None = None
    """Architecture by timm's name, such as tf_efficientnet_lite0; it wants `weights`."""
    weights: str | None = None
    """One .safetensors, .pt or .pth file: by the names of timm, or by position where another library has saved them."""
    clip: ModelConfig | None = None
    """Instead: a CLIP that was not trained on these pairs."""

    def __post_init__(self) -> None:
        if (self.timm is None) == (self.clip is None):
            raise ValueError("set one of timm and clip")
        if (self.timm is None) != (self.weights is None):
            raise ValueError("timm and weights belong together")

    @property
    def file(self) -> Path:
        """The file of weights, on this machine."""
        weights = str(self.weights)
        return fetched(weights) if is_address(weights) else Path(weights).expanduser()


class ReferenceInputs:
    """From a decoded picture to what a reference takes; light, because it needs no weights."""

    def __init__(self, settings: ReferenceConfig) -> None:
        self._clip = None if settings.clip is None else Inputs(resolve_model(settings.clip))
        if self._clip is not None:
            self.size = self._clip.image_size
            self.mean, self.std = self._clip.preprocess_cfg["mean"], self._clip.preprocess_cfg["std"]
            return
        if not timm.is_model(str(settings.timm)):
            raise ModelError(f"reference.timm: timm has no model {settings.timm!r}; timm.list_models() lists them")
        known = timm.get_pretrained_cfg(str(settings.timm))
        data = resolve_data_config({}, pretrained_cfg=known.to_dict() if known is not None else {})
        self.size = int(data["input_size"][-1])
        self.mean, self.std = list(data["mean"]), list(data["std"])
        # timm ends every evaluation transform with a tensor and its normalisation; those two are done on the batch
        self._geometry = Compose(create_transform(**data).transforms[:-2])

    def preprocess(self, rgb: np.ndarray) -> torch.Tensor:
        """Resize and crop one image `[H, W, 3] uint8` as the encoder was evaluated with; return `[3, R, R] uint8`."""
        if self._clip is not None:
            return self._clip.preprocess(rgb)
        cut = np.asarray(self._geometry(Image.fromarray(rgb)))
        return torch.from_numpy(np.ascontiguousarray(cut.transpose(2, 0, 1)))


class Reference:
    """A loaded second encoder, in evaluation mode and float32.

    Raises:
        ModelError: unknown architecture, or weights that cannot be read or are another architecture's.
    """

    def __init__(self, settings: ReferenceConfig, device: torch.device) -> None:
        self.inputs = ReferenceInputs(settings)
        self._device = device
        self._clip = None if settings.clip is None else load_clip(settings.clip, device)
        self._model: torch.nn.Module | None = None
        if self._clip is None:
            model = timm.create_model(str(settings.timm), pretrained=False, num_classes=0)
            model.load_state_dict(_matched(model.state_dict(), read_state_dict(settings.file), settings))
            self._model = model.eval().to(device)
        with torch.inference_mode():
            blank = torch.zeros(1, 3, self.inputs.size, self.inputs.size, dtype=torch.uint8)
            wide = self._encode(blank).shape[1]
        self.width = min(wide, LAYER_WIDTH)
        self._projection = (
            None if wide == self.width else torch.from_numpy(orthonormal(wide, self.width)).to(self._device)
        )

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return unit vectors `[B, P] float32`, P <= LAYER_WIDTH, of `[B, 3, R, R] uint8`, on the device."""
        with torch.inference_mode():
            unit = torch.nn.functional.normalize(self._encode(images), dim=-1)
            return unit if self._projection is None else unit @ self._projection

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        if self._clip is not None:
            return self._clip.image_features(images)[0]
        assert self._model is not None
        mean, std = (torch.tensor(v, device=self._device).view(1, 3, 1, 1) for v in (self.inputs.mean, self.inputs.std))
        found: torch.Tensor = self._model((images.to(self._device).float() / 255 - mean) / std)
        return found.float()


def _matched(
    own: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor], settings: ReferenceConfig
) -> dict[str, torch.Tensor]:
    """Return the stored weights under the model's names; what is stored beyond them (a classifier) is left out."""
    wanted = {name: value for name, value in own.items() if not name.endswith(COUNTERS)}
    counters = {name: value for name, value in own.items() if name.endswith(COUNTERS)}
    if all(name in stored and stored[name].shape == value.shape for name, value in wanted.items()):
        return {**counters, **{name: stored[name] for name in wanted}}
    given = [value for name, value in stored.items() if not name.endswith(COUNTERS)][: len(wanted)]
    if [value.shape for value in given] == [value.shape for value in wanted.values()]:
        return {**counters, **dict(zip(wanted, given, strict=True))}
    raise ModelError(
        f"reference.weights: {settings.weights} does not fit {settings.timm}, by name or by position; its first tensors are "
        f"{', '.join(list(stored)[:3])}"
    )


@lru_cache(maxsize=4)
def reference_fingerprint(settings: ReferenceConfig) -> str:
    """Return the SHA-256 (hexadecimal) of what a reference is; where its weights lie plays no part.

    Raises:
        ModelError: as Reference.
    """
    if settings.clip is not None:
        return load_clip(settings.clip, "cpu").fingerprint
    Reference(settings, torch.device("cpu"))  # weights that do not fit are found here, before any worker starts
    return hashlib.sha256(f"{settings.timm}:".encode() + settings.file.read_bytes()).hexdigest()
