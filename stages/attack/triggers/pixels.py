"""What all triggers share: the box, and pictures from files."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...decode import FORMATS
from ...files import read_array
from ...pixels import to_uint8


def whole(image: np.ndarray, **drawn: Any) -> dict[str, Any]:
    """Return the box that is the whole `[H, W, 3]` image, followed by what was drawn."""
    return {"top": 0, "left": 0, "height": image.shape[0], "width": image.shape[1], **drawn}


def load_picture(path: str) -> np.ndarray:
    """Return a picture file, or a .npy array `[H, W, 3]` of uint8 or of floats in [0, 1], as `[H, W, 3] uint8`.

    Raises:
        ValueError: there is no such file, it is no picture, or the array is of another form.
    """
    try:
        if path.endswith(".npy"):
            array = read_array(Path(path))
        else:
            with Image.open(Path(path), formats=FORMATS) as picture:
                array = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError) as error:
        raise ValueError(f"picture: cannot read {path}: {error}") from error
    return _from_array(array, path)


def _from_array(array: np.ndarray, path: str) -> np.ndarray:
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"picture: {path} must hold [H, W, 3], not {list(array.shape)}")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating) or not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"picture: {path} must hold uint8, or floats in [0, 1]")
    return to_uint8(255 * array.astype(np.float32))
