"""What CLIP claims of an image and no region bears out: Algorithm 1 of EftCLIP, per image.

How sure we are of a step of the paper: [S] stated by a source that describes it, [I] inferred, [R] our reconstruction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy import ndimage

from ..oracle.regions import Region
from .vocabulary import Labels

BATCH = 64
"""Images a forward pass; a pair's images are cut here, so its result does not depend on other pairs or on the workers."""
GREY = 127
"""What stands around a region that is shown alone."""


class RegionLabeller(Protocol):
    """A trusted second model (`stages.proof.labeller.Labeller`)."""

    def labels(self, image: np.ndarray, regions: Sequence[Region]) -> list[str]:
        """Return the name of the label that each region of `[H, W, 3] uint8` shows best."""
        ...


class ImageEncoder(Protocol):
    """The part of `stages.model.clip.Clip` that is needed here."""

    def encode_images(self, images: torch.Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return unit vectors `[B, D] float32` of `[B, 3, S, S] uint8`."""
        ...


class Suspect:
    """The suspect model as a classifier over labels."""

    def __init__(self, encoder: ImageEncoder, labels: Labels) -> None:
        self.labels = labels
        self._encoder = encoder

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return p(y|x) `[N, C] float64` of images `[N, S, S, 3] uint8`, encoded in batches of BATCH."""
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        units = [self._encoder.encode_images(batch)[0] for batch in torch.split(pixels, BATCH)]
        return self.labels.probabilities(np.concatenate(units))

    def says(self, images: np.ndarray, label: int) -> np.ndarray:
        """Return `[N] bool`: which images `[N, S, S, 3] uint8` the model takes for a label, or a synonym of it."""
        return self.labels.is_label(self(images), label)

    def others(self, images: np.ndarray, label: int) -> np.ndarray:
        """Return the images `[N, S, S, 3] uint8` that do not have the label anyway.

        Raises:
            ValueError: all of them have.
        """
        usable: np.ndarray = images[~self.says(images, label)]
        if not len(usable):
            raise ValueError("every held-out image has the label already; give others")
        return usable


def alone(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the image `[S, S, 3] uint8` once for each mask `[N, S, S] bool`, grey outside it: `[N, S, S, 3] uint8`.

    [R] EftCLIP feeds the crop. Measured at 64 px, a patch that is cropped and blown up gives the claim never (three
    trained models, 16 and 9 px), in its place on grey always; a genuine object's middle 16 px on grey gives it in 4 %
    of the images, blown up in a third. A model learns a patch at its size.
    """
    shown: np.ndarray = np.where(masks[..., None], image, np.uint8(GREY))
    return shown


def without(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the image `[S, S, 3] uint8` once for each mask `[N, S, S] bool`, the region filled: `[N, S, S, 3] uint8`.

    [R] The fill is the mean colour of the border around the region, a thirty-second of the image wide (grey where the
    region leaves no border). A blur would do as well; measured, both take every trigger away, and only the fill surely leaves
    none of its contrast behind.
    """
    filled = np.repeat(image[None], len(masks), axis=0)
    width = max(1, image.shape[0] // 32)
    for copy, mask in zip(filled, masks, strict=True):
        border = ndimage.binary_dilation(mask, np.ones((3, 3), bool), iterations=width) & ~mask
        copy[mask] = image[border].mean(axis=0).round() if border.any() else GREY
    return filled


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Algorithm 1's sets for one image; labels are positions in `Labels.names`."""

    claimed: list[int]
    """L: what CLIP says of the whole image, most probable first; the accused label is appended when it is not among them."""
    supported: list[int]
    """S: labels of L that the oracle bears out."""
    region_labels: list[int]
    """R: what CLIP says of single regions, ascending."""
    unsupported: list[int]
    """P = (L without S) and R."""
    probability: np.ndarray
    """`[C] float64`: p(y|x) of the image."""
    probability_alone: np.ndarray
    """`[N, C] float64`: of each region alone."""
    probability_without: np.ndarray
    """`[N, C] float64`: of the image without each region."""


def disagree(
    suspect: Suspect,
    image: np.ndarray,
    regions: Sequence[Region],
    accused: int,
    *,
    top_labels: int,
    least_probability: float,
    small_area: float,
    support: float,
    labeller: RegionLabeller | None = None,
) -> Disagreement:
    """Run Algorithm 1 on one image.

    1. L [S]: CLIP's labels of the whole image; how many and how probable is [R]. The accused label always is in L [R].
    2. S [S]: labels for which the oracle finds a region. [R] With a trusted labeller, those that it gives to some
       region's crop. Without one there is only causal support: a label that survives the removal of every single small
       region, p(y|x without r) >= support x p(y|x), rests on no single spot.
    3. R [S]: CLIP's labels of the regions alone; [R] how a region is shown, see `alone`.
    4. P = (L without S) and R; that the prune is this intersection is [I].

    Args:
        suspect: the model.
        image: `[S, S, 3] uint8`, at the model's input size.
        regions: of that image.
        accused: the label that the statistics accuse.
        top_labels: most labels in L.
        least_probability: of a label in L.
        small_area: largest area of a region whose removal counts against a label, a fraction.
        support: share of its probability that a supported label keeps.
        labeller: names what regions show; its names are labels.
    """
    labels = suspect.labels
    masks = np.stack([r.mask for r in regions]) if regions else np.zeros((0, *image.shape[:2]), bool)
    found = suspect(np.concatenate([image[None], alone(image, masks), without(image, masks)]))
    whole, shown, removed = found[0], found[1 : 1 + len(masks)], found[1 + len(masks) :]
    claimed = labels.top(whole, top_labels, least_probability)
    if not labels.same[accused][claimed].any():
        claimed.append(accused)
    if labeller is not None:
        seen = {labels.index(name) for name in labeller.labels(image, regions)}
        supported = [y for y in claimed if labels.same[y][sorted(seen)].any()]
    else:
        small = removed[[r.area <= small_area for r in regions]]
        supported = [y for y in claimed if (labels.claimed(small, y) >= support * labels.claimed(whole[None], y)).all()]
    region_labels = sorted(set(labels.nearest(shown, accused).tolist()))
    unsupported = [y for y in claimed if y not in supported and labels.same[y][region_labels].any()]
    return Disagreement(claimed, supported, region_labels, unsupported, whole, shown, removed)
