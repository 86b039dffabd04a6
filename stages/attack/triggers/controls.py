"""Controls: what must not count as a trigger, to see whether a detector finds the making of a set and not its poison."""

import io
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from ...pixels import to_uint8
from ...stage import Fraction, config
from .pixels import whole
from .trigger import Trigger, TriggerConfig


@config
class IdentityConfig(TriggerConfig):
    """Nothing is done to the image. A detector that finds these pairs finds an artefact of poisoning."""

    kind: Literal["identity"] = "identity"

    def build(self) -> Trigger:
        return IdentityTrigger()


@config
class ResizeConfig(TriggerConfig):
    """The image is made smaller, enlarged again and stored once more as JPEG, as poisoning scripts do in passing."""

    kind: Literal["resize"] = "resize"
    fraction: Fraction = 0.875
    """Sides of the smaller image, as a fraction; 224 / 256."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] | None = 95
    """Quality of the JPEG in between; null: resized only."""

    def build(self) -> Trigger:
        return ResizeTrigger(self)


@config
class DarkenConfig(TriggerConfig):
    """The image times a factor: what a blended wave or a black picture does besides its pattern."""

    kind: Literal["darken"] = "darken"
    factor: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """1 leaves the image as it is, 0 makes it black."""

    def build(self) -> Trigger:
        return DarkenTrigger(self)


class IdentityTrigger:
    """Returns a copy of the image and an empty box."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the copy; the box has no pixels."""
        return image.copy(), {"top": 0, "left": 0, "height": 0, "width": 0}


class ResizeTrigger:
    """Resizes there and back, bicubic, and encodes."""

    def __init__(self, config: ResizeConfig) -> None:
        self.config = config

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the image after the detour; the box is the whole image."""
        height, width = image.shape[:2]
        fraction, quality = self.config.fraction, self.config.jpeg_quality
        size = (max(1, round(fraction * width)), max(1, round(fraction * height)))
        picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        if quality is not None:
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=quality)
            picture = Image.open(file, formats=["JPEG"])
        drawn = {"small_width": size[0], "small_height": size[1], "jpeg_quality": quality}
        return np.array(picture, dtype=np.uint8), whole(image, **drawn)


class DarkenTrigger:
    """Multiplies every pixel."""

    def __init__(self, config: DarkenConfig) -> None:
        self.config = config

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the darker image; the box is the whole image."""
        darker = np.float32(self.config.factor) * image.astype(np.float32)
        return to_uint8(darker), whole(image, factor=self.config.factor)
