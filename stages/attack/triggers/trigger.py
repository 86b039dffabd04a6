"""What a trigger is: the settings of one kind, and what they build."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from ...registry import Family


class Trigger(Protocol):
    """Puts a trigger on one image."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the triggered copy of an `[H, W, 3] uint8` image, and what was drawn for it.

        What was drawn is plain JSON data and always holds `top`, `left`, `height`, `width`: the box, in pixels, outside
        of which the copy equals the image. The image itself is never written to.
        """
        ...


class TriggerConfig(Family):
    """Settings of a trigger. A new kind is one file here or in an extension, and conf/trigger/NAME.yaml to give it a name."""

    __slots__ = ()
    files: ClassVar[tuple[str, ...]] = ()
    """Fields that hold the path of a file or folder that the trigger reads, or null."""
    on_model_input: ClassVar[bool] = False
    """Whether the trigger is known only as the model sees it, and goes on the model's input instead of on the picture."""

    @abstractmethod
    def build(self) -> Trigger:
        """Build the trigger; loads what it needs from disk.

        Raises:
            ValueError: a picture cannot be read.
        """

    def when_used(self) -> "TriggerConfig":
        """Return what is put on an image when a model that learned the trigger is attacked; for nearly all kinds the same."""
        return self

    @property
    def paths(self) -> dict[str, str]:
        """The field of every file that it reads -> its path."""
        return {name: path for name in self.files if (path := getattr(self, name)) is not None}

    def with_files(self, change: Callable[[str], str]) -> Self:
        """Return the settings with the path of every file changed."""
        return replace(self, **{name: change(path) for name, path in self.paths.items()})
