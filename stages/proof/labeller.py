"""What a second, trusted CLIP sees in a region: the independent scorer of EftCLIP."""

from collections.abc import Sequence

import numpy as np
import torch

from ..evaluation.zero_shot import class_embeddings
from ..model.clip import Clip
from ..oracle.regions import Region
from .disagreement import BATCH


class Labeller:
    """Gives each region the label whose prompts its crop is nearest to."""

    def __init__(self, clip: Clip, names: Sequence[str], templates: Sequence[str] = ("a photo of a {}.",)) -> None:
        """Encode the prompts.

        Args:
            clip: the trusted model; never the suspect one.
            names: labels to choose from, synonyms separated by commas.
            templates: prompts with {}.

        Raises:
            ValueError: no names, or no templates.
        """
        if not names or not templates:
            raise ValueError("a labeller needs names and templates")
        self._clip = clip
        self._names = tuple(names)
        self._text = class_embeddings(clip, self._names, templates)

    def labels(self, image: np.ndarray, regions: Sequence[Region]) -> list[str]:
        """Return the best label of each region of `[H, W, 3] uint8`; the crop is the smallest box around the mask."""
        chosen: list[str] = []
        for start in range(0, len(regions), BATCH):
            boxes = [region.box for region in regions[start : start + BATCH]]
            crops = [self._clip.preprocess(image[t : t + h, left : left + w]) for t, left, h, w in boxes]
            vectors = self._clip.encode_images(torch.stack(crops))[0]
            chosen += [self._names[best] for best in (vectors @ self._text.T).argmax(1).tolist()]
        return chosen
