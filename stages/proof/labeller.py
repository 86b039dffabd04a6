"""What a second, trusted CLIP sees in a region: the independent scorer of EftCLIP."""

from collections.abc import Sequence

import numpy as np
import torch

from ..model.clip import Clip
from ..oracle.regions import Region
from .disagreement import BATCH


class Labeller:
    """Gives each region the label whose prompts its crop is nearest to."""

    def __init__(self, clip: Clip, names: Sequence[str], templates: Sequence[str] = ("a photo of a {}.",)) -> None:
        """Encode the prompts.

        Args:
            clip: the trusted model; never the suspect one.
            names: labels to choose from.
            templates: prompts with one {}; a label's direction is the mean of its prompts, as in CLIP.

        Raises:
            ValueError: no names, or no templates.
        """
        if not names or not templates:
            raise ValueError("a labeller needs names and templates")
        self._clip = clip
        self._names = tuple(names)
        prompts = [template.format(name) for name in names for template in templates]
        mean = clip.encode_text(prompts).reshape(len(names), len(templates), -1).mean(1)
        self._text = mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def labels(self, image: np.ndarray, regions: Sequence[Region]) -> list[str]:
        """Return the best label of each region of `[H, W, 3] uint8`; the crop is the smallest box around the mask."""
        chosen: list[str] = []
        for start in range(0, len(regions), BATCH):
            boxes = [region.box for region in regions[start : start + BATCH]]
            crops = [self._clip.preprocess(image[t : t + h, left : left + w]) for t, left, h, w in boxes]
            vectors = self._clip.encode_images(torch.stack(crops))[0]
            chosen += [self._names[best] for best in (vectors @ self._text.T).argmax(1).tolist()]
        return chosen
