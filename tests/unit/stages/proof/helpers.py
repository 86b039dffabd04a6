"""A suspect model whose answers are known exactly: the share of a 4 x 4 block of pure red that an image shows."""

import numpy as np
import torch

from clipsan.stages.oracle.regions import Region
from clipsan.stages.proof.localise import box_mask
from clipsan.stages.proof.vocabulary import Labels

SIZE = 32
MARK = 16
"""Red pixels that make an image fully a target."""
SCALE = 10.0
NAMES = ("cat", "dog", "target")


class RedCounter:
    """cat (little blue) or dog, turned towards target by the share of red pixels."""

    image_size = SIZE

    def __init__(self) -> None:
        self.batches: list[int] = []

    def preprocess(self, rgb: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))

    def encode_images(self, images: torch.Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        self.batches.append(len(images))
        pixels = images.numpy()
        red = (pixels == np.array([255, 0, 0])[None, :, None, None]).all(axis=1).sum(axis=(1, 2))
        share = np.minimum(1, red / MARK)
        dog = pixels[:, 2].mean(axis=(1, 2)) > 150
        units = np.stack([(1 - share) * ~dog, (1 - share) * dog, share], axis=1)
        return (units / np.linalg.norm(units, axis=1, keepdims=True)).astype(np.float32), {}


def labels(same: np.ndarray | None = None) -> Labels:
    return Labels(NAMES, np.eye(3, dtype=np.float32), SCALE, np.eye(3, dtype=bool) if same is None else same)


def picture(*, blue: int = 0, mark: tuple[int, int] | None = None) -> np.ndarray:
    """A plain cat, a dog with much blue; with a red block whose top left corner is `mark`."""
    image = np.full((SIZE, SIZE, 3), (10, 20, blue), dtype=np.uint8)
    if mark is not None:
        image[mark[0] : mark[0] + 4, mark[1] : mark[1] + 4] = (255, 0, 0)
    return image


def window(top: int, left: int, height: int, width: int) -> Region:
    return Region(box_mask((top, left, height, width), SIZE), 1.0)
