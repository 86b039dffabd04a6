"""A trigger that a scan has proven, to measure a model with where nobody knows the attack."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ...dossier.files import read_dossier
from ...stage import config
from .pixels import whole
from .trigger import Trigger, TriggerConfig


@config
class ProvenConfig(TriggerConfig):
    """What `clipsan scan` wrote of a proven trigger."""

    kind: Literal["proven"] = "proven"
    files: ClassVar[tuple[str, ...]] = ("path",)
    on_model_input: ClassVar[bool] = True
    path: str
    """Folder of its dossier: RUN/triggers/t1."""

    def build(self) -> Trigger:
        return ProvenTrigger(self)


class ProvenTrigger:
    """Puts a dossier's trigger on an image as the model sees it, which is how the scan found and proved it."""

    def __init__(self, config: ProvenConfig) -> None:
        self._dossier = read_dossier(Path(config.path))

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the triggered copy of `[side, side, 3] uint8`; its box is the whole image.

        Raises:
            ValueError: the image is of another size than the model's input, for which the trigger was proven.
        """
        return self._dossier.apply(image, rng), whole(image, trigger=self._dossier.id)
