"""Triggers: what an attacker puts on an image. One file a family; a new family is one file and one line here."""

from typing import Annotated, Any, Protocol

import numpy as np
import pydantic

from stages.triggers.blend import BlendConfig, BlendTrigger
from stages.triggers.patch import PatchConfig, PatchTrigger

__all__ = ["BlendConfig", "BlendTrigger", "PatchConfig", "PatchTrigger", "Trigger", "TriggerConfig", "build_trigger"]

TriggerConfig = Annotated[PatchConfig | BlendConfig, pydantic.Discriminator("kind")]


class Trigger(Protocol):
    """Puts a trigger on one image."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the triggered copy of an `[H, W, 3] uint8` image, and what was drawn for it.

        What was drawn is plain JSON data and always holds `top`, `left`, `height`, `width`: the box, in pixels, outside
        of which the copy equals the image. The image itself is never written to.
        """
        ...


def build_trigger(config: PatchConfig | BlendConfig) -> Trigger:
    """Build a trigger; loads what it needs from disk.

    Raises:
        ValueError: the picture of a blend cannot be read.
    """
    return PatchTrigger(config) if isinstance(config, PatchConfig) else BlendTrigger(config)
