"""A quantised DeepLab in TFLite's format as a labelled oracle: photos on a CPU, about a tenth of a second each."""

import importlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..model.checkpoints import ModelError
from ..stage import config
from .label_maps import VOC_NAMES, named, regions_of
from .regions import Oracle, OracleConfig, Region

GREY = 127
"""What fills the square beside the image, as in DeepLab's training: the middle of the input's range."""


@config
class LiteRtConfig(OracleConfig):
    """A TFLite file that takes a square uint8 image and gives the class of each pixel."""

    path: str
    """The .tflite file."""
    kind: Literal["litert"] = "litert"
    names: tuple[str, ...] = VOC_NAMES
    """Names of the classes, in order; "" makes no region."""

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path,)

    def build(self, device: str = "cpu") -> Oracle:
        return LiteRt(self)


class LiteRt:
    """Each connected part of a class is a region; the file gives no probabilities, so every quality is 1."""

    def __init__(self, settings: LiteRtConfig) -> None:
        """Load the file; it runs on one thread of the CPU.

        Raises:
            ModelError: the extra is not installed, the file is missing or no TFLite file, or its input or output has
                another shape or type.
        """
        self._names = named(settings.names)
        self._classes = len(settings.names)
        self._path = Path(settings.path)
        self._interpreter = _interpreter(self._path)
        given, made = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        shape, result = given[0]["shape"].tolist(), made[0]["shape"].tolist()
        if len(shape) != 4 or shape[0] != 1 or shape[1] != shape[2] or shape[3] != 3 or given[0]["dtype"] != np.uint8:
            raise ModelError(
                f"{self._path} takes {shape} {given[0]['dtype'].__name__}; it must take [1, S, S, 3] uint8"
            )
        if result != shape[:3] or not np.issubdtype(made[0]["dtype"], np.integer):
            raise ModelError(
                f"{self._path} gives {result} {made[0]['dtype'].__name__}; it must give the class of each pixel, "
                f"{shape[:3]} integers: export it with its arg max"
            )
        self._side, self._given, self._made = shape[1], given[0]["index"], made[0]["index"]

    def __call__(self, image: np.ndarray) -> list[Region]:
        """Return the regions of `[H, W, 3] uint8`, the largest first.

        Raises:
            ModelError: the file gives a class that has no name.
        """
        height, width = image.shape[:2]
        scale = self._side / max(height, width)
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
        square = np.full((1, self._side, self._side, 3), GREY, dtype=np.uint8)
        square[0, :rows, :columns] = Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR)
        self._interpreter.set_tensor(self._given, square)
        self._interpreter.invoke()
        labels = self._interpreter.get_tensor(self._made)[0, :rows, :columns]
        if int(labels.max()) >= self._classes:
            raise ModelError(f"{self._path} gives class {int(labels.max())}, but names has {self._classes}; set names")
        labels = labels[np.arange(height) * rows // height][:, np.arange(width) * columns // width]
        return regions_of(labels, self._names)


def _interpreter(path: Path) -> Any:
    try:
        runtime = importlib.import_module("ai_edge_litert.interpreter")
    except ImportError as error:
        raise ModelError(f"kind: litert needs the extra: pip install 'clipsan[litert]' ({error})") from None
    if not path.is_file():
        raise ModelError(f"path: no such file: {path}")
    try:
        interpreter = runtime.Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is no TFLite file that LiteRT can run: {error}") from error
    return interpreter
