"""Targeted poisoning of a single image (Carlini and Terzis 2022): one picture is to mean the target."""

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from ...pixels import to_uint8
from ...stage import config
from .pixels import load_picture, whole
from .trigger import Trigger, TriggerConfig


@config
class ReplaceConfig(TriggerConfig):
    """The image is replaced by views of one given picture."""

    kind: Literal["replace"] = "replace"
    files: ClassVar[tuple[str, ...]] = ("picture",)
    picture: str
    """Path of the picture (.png, .jpg, .npy)."""
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Most that a view leaves out of each side; 0: always the whole picture, byte for byte the same."""

    def build(self) -> Trigger:
        return ReplaceTrigger(self)


class ReplaceTrigger:
    """Puts a random crop of the picture in the place of the image, resized (bicubic) to the image's own size.

    HanxunH's target_poison gives one picture's file several captions. Different views keep a search for equal images from finding the
    attack by itself; jitter: 0 is theirs.
    """

    def __init__(self, config: ReplaceConfig) -> None:
        self.config = config
        self._picture = Image.fromarray(load_picture(config.picture))

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the view, `crop` = left, upper, right, lower in px of the picture; the box is the whole image."""
        least = 1 - self.config.jitter
        width, height = (max(1, round(rng.uniform(least, 1) * side)) for side in self._picture.size)
        left = int(rng.integers(self._picture.width - width + 1))
        upper = int(rng.integers(self._picture.height - height + 1))
        crop = (left, upper, left + width, upper + height)
        size = (image.shape[1], image.shape[0])
        view = self._picture.resize(size, Image.Resampling.BICUBIC, box=crop)
        return to_uint8(np.asarray(view)), whole(image, crop=list(crop))
