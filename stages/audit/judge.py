"""The suspect model as an audit asks it: pixels in, cosines to the labels out, with gradients to the pixels."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from ..evaluation.zero_shot import class_embeddings
from ..model.clip import Clip

CHUNK = 48
"""Images of one forward pass: their activations fit into the caches of a CPU."""


class Judge:
    """A CLIP and a vocabulary; every parameter is frozen."""

    def __init__(self, clip: Clip, names: Sequence[str], templates: Sequence[str]) -> None:
        """Encode the labels.

        Args:
            clip: the model; its parameters are frozen here.
            names: of the labels.
            templates: sentences with {} where a name goes.
        """
        self.clip = clip
        self.names = tuple(names)
        clip.model.requires_grad_(False)
        self.labels = torch.from_numpy(class_embeddings(clip, names, templates)).to(clip.device)
        self.side = clip.image_size
        self._mean = torch.tensor(clip.preprocess_cfg["mean"], device=clip.device).view(1, 3, 1, 1)
        self._std = torch.tensor(clip.preprocess_cfg["std"], device=clip.device).view(1, 3, 1, 1)

    def pixels(self, images: np.ndarray) -> torch.Tensor:
        """Return `[N, S, S, 3] uint8` as `[N, 3, S, S] float32` in [0, 1], on the model's device."""
        turned = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return torch.from_numpy(turned).to(self.clip.device).float().div_(255)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return unit vectors `[N, D] float32` of `[N, 3, S, S]` pixels in [0, 1]; gradients flow back."""
        found = []
        for part in torch.split(pixels, CHUNK):
            normed = ((part - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
            found.append(F.normalize(self.clip.model.encode_image(normed, normalize=False).float(), dim=-1))
        return torch.cat(found)

    def cosines(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return `[N, C] float32`: how well each label fits each image."""
        return self.features(pixels) @ self.labels.T

    @torch.no_grad()
    def of(self, images: np.ndarray) -> np.ndarray:
        """Return the cosines `[N, C] float32` of `[N, S, S, 3] uint8`."""
        return np.asarray(self.cosines(self.pixels(images)).cpu())

    @torch.no_grad()
    def seen(self, images: np.ndarray) -> np.ndarray:
        """Return unit vectors `[N, D] float32` of `[N, S, S, 3] uint8`."""
        return np.asarray(self.features(self.pixels(images)).cpu())
