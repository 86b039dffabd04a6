"""torchvision's DeepLab v3 as a labelled oracle for photos (Chen et al., "Rethinking Atrous Convolution", 2017)."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torchvision
from pydantic import Field
from torch.nn import functional as F

from ..model.checkpoints import ModelError, load_weights, read_state_dict
from ..stage import config
from .label_maps import VOC_NAMES, named, regions_of
from .regions import Oracle, OracleConfig, Region

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEAD = "classifier.4.weight"
AUXILIARY = "aux_classifier."


@config
class DeepLabConfig(OracleConfig):
    """DeepLab with weights in torchvision's layout."""

    path: str
    """Weights: a plain state dict, .pth or .safetensors."""
    kind: Literal["deeplab"] = "deeplab"
    backbone: Literal["resnet50", "resnet101", "mobilenet_v3_large"] = "resnet50"
    """Which of torchvision's three models the weights are of."""
    names: tuple[str, ...] = VOC_NAMES
    """Names of the classes, in order; "" makes no region."""
    shorter_px: Annotated[int, Field(ge=32)] = 520
    """Shorter side at which the network sees an image; 520 as torchvision trained its own."""

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path,)

    def build(self, device: str = "cpu") -> Oracle:
        return DeepLab(self, device)


class DeepLab:
    """Each connected part of a class is a region; its quality is the mean probability of the class in it."""

    def __init__(self, settings: DeepLabConfig, device: str) -> None:
        """Load the model.

        Raises:
            ModelError: the file is missing or holds code, or its tensors are not those of the backbone or the names.
        """
        self._settings = settings
        self._device = torch.device(device)
        self._model = _load(settings).to(self._device)
        self._mean = torch.tensor(MEAN, device=self._device).view(1, 3, 1, 1)
        self._std = torch.tensor(STD, device=self._device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> list[Region]:
        """Return the regions of `[H, W, 3] uint8`, the surest first."""
        height, width = image.shape[:2]
        scale = self._settings.shorter_px / min(height, width)
        size = (round(height * scale), round(width * scale))
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self._device).permute(2, 0, 1)[None].float() / 255
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        logits = self._model((pixels - self._mean) / self._std)["out"]
        logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        scores, labels = logits.softmax(1)[0].max(0)
        return regions_of(labels.cpu().numpy(), named(self._settings.names), scores=scores.cpu().numpy())


def _load(settings: DeepLabConfig) -> torch.nn.Module:
    path = Path(settings.path)
    if not path.is_file():
        raise ModelError(f"path: no such file: {path}")
    weights = read_state_dict(path)
    if HEAD not in weights:
        raise ModelError(f"{path} has no {HEAD}; path takes the weights of a torchvision DeepLab v3")
    classes = weights[HEAD].shape[0]
    if classes != len(settings.names):
        raise ModelError(f"{path} tells {classes} classes apart, but names has {len(settings.names)}; set names")
    # The auxiliary head serves training alone.
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(AUXILIARY)}
    build: Any = getattr(torchvision.models.segmentation, f"deeplabv3_{settings.backbone}")
    with torch.random.fork_rng(devices=[]):
        model: torch.nn.Module = build(weights=None, weights_backbone=None, num_classes=classes, aux_loss=False)
    try:
        load_weights(model, weights, str(path))
    except ModelError as error:
        raise ModelError(f"{error}; set backbone to the model that these weights are of") from None
    return model.eval()
