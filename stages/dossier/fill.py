"""What stands in an image where something was taken out of it."""

import numpy as np
from scipy.ndimage import gaussian_filter

from ..pixels import to_uint8


def fill(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a copy of `[H, W, 3] uint8` with the masked pixels replaced by a blur of those around them.

    The blur weighs only pixels outside (normalised convolution), in steps of growing width, each filling what the one
    before could not reach; what none reaches, where hardly a pixel is left, gets the mean of these. A margin of one pixel is
    replaced too: a region's edge is seldom exact.
    """
    hidden = gaussian_filter(mask.astype(np.float64), 0.8, truncate=1.5) > 0.05
    weight = (~hidden).astype(np.float64)
    if not weight.any():
        return np.full_like(image, 128)
    filled = image.astype(np.float64)
    todo = hidden
    sigma = 1.0
    while todo.any() and sigma <= 4 * max(image.shape):
        near = gaussian_filter(weight, sigma, mode="constant")
        blurred = np.stack([gaussian_filter(image[..., c] * weight, sigma, mode="constant") for c in range(3)], axis=-1)
        reached = todo & (near > 0.05)
        filled[reached] = blurred[reached] / near[reached][:, None]
        todo = todo & ~reached
        sigma *= 2
    filled[todo] = image[~hidden].mean(axis=0)
    return to_uint8(filled)
