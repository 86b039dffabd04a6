"""From numbers to pixels, the same everywhere."""

import numpy as np


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Return values on a scale of 0 to 255 as uint8: rounded once, to even at a half, and clamped, never wrapped."""
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)
