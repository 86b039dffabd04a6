"""EftCLIP's Algorithm 1 as it is meant: an oracle with knowledge of its own supervises CLIP, image by image.

Nothing is known of the data set: no statistic, no accused label, no second image. What an image is accused of is a label that CLIP
gives it and that the oracle, asked for it, finds nowhere. The search of the scan (examine.py) goes the other way: statistics
accuse, and the oracle only says where to look.

How sure we are of a step: [S] stated by a source that describes the paper, whose text could not be had; [I] inferred; [R] our
reconstruction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..oracle.prompted import PromptedOracle
from ..oracle.regions import Region
from ..stage import Count, Share, config
from .disagreement import Suspect

Crop = Callable[[np.ndarray], np.ndarray]
"""A cut-out piece `[h, w, 3] uint8` -> the model's input `[S, S, 3] uint8`: `Inputs.preprocess`, as arrays."""
Masks = Callable[[np.ndarray], Sequence[Region]]
"""Regions of `[H, W, 3] uint8` without names."""


@config
class PerImageConfig:
    """Settings of the detection image by image; all numbers are ours [R]."""

    top_labels: Count = 3
    """Most labels that CLIP is taken to claim of an image."""
    least_probability: Share = 0.05
    """Smallest p(y|x) of a claimed label."""
    prune: Literal["regions", "none"] = "regions"
    """regions: an unsupported label counts only where CLIP gives it to some region alone, too; the sentence of the paper that says how
    R prunes P is cut off in what we have, and this intersection is [I]. none: every unsupported label counts."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Algorithm 1's sets for one image, as names."""

    claimed: tuple[str, ...]
    """L: labels of the whole image, most probable first."""
    supported: tuple[str, ...]
    """S: those of L that the oracle finds."""
    region_labels: tuple[str, ...]
    """R: labels of regions alone, in the order of the regions, each once."""
    accused: tuple[str, ...]
    """P: of L, neither supported nor unknown to the oracle, and not pruned; most probable first."""
    carrier: Region | None
    """The region that alone gives the first label of P at the highest probability; None where none does."""

    @property
    def poisoned(self) -> bool:
        """Whether the image is accused."""
        return bool(self.accused)


class PerImage:
    """Examines images; holds the suspect model and the oracle."""

    def __init__(
        self, suspect: Suspect, oracle: PromptedOracle, masks: Masks, crop: Crop, settings: PerImageConfig
    ) -> None:
        """Take what is asked.

        Args:
            suspect: the model as a classifier over labels.
            oracle: finds labels.
            masks: finds regions, whatever they show: the trigger is none of the things that the oracle is asked for.
            crop: makes an input of a piece.
            settings: limits.
        """
        self._suspect = suspect
        self._oracle = oracle
        self._masks = masks
        self._crop = crop
        self._settings = settings

    def __call__(self, image: np.ndarray) -> Finding:
        """Run Algorithm 1 on `[H, W, 3] uint8`.

        1. L [S]: CLIP's labels of the whole image; how many and how probable is [R].
        2. S [S]: the oracle is asked for the labels of L; those of which it finds a region are supported.
        3. R [S]: each region is cut out, the smallest box around it, brought to the model's size and given to CLIP by itself. [R] Which
           regions: those that the oracle found for L, and those of the masks without names, of which a trigger may be one.
        4. P: L without S [S], without the labels that the oracle cannot know [R], pruned by R [I].
        """
        settings, labels = self._settings, self._suspect.labels
        whole = self._suspect(self._crop(image)[None])[0]
        claimed = labels.top(whole, settings.top_labels, settings.least_probability)
        names = [labels.names[label] for label in claimed]
        found = self._oracle(image, names)
        supported = [label for label, name in zip(claimed, names, strict=True) if any(r.label == name for r in found)]
        regions = [*found, *self._masks(image)]
        shown = self._alone(image, regions)
        given = list(dict.fromkeys(shown.argmax(axis=1).tolist())) if len(shown) else []
        accused = [
            label
            for label in claimed
            if label not in supported
            and self._oracle.knows(labels.names[label])
            and (settings.prune == "none" or labels.same[label][given].any())
        ]
        return Finding(
            claimed=tuple(names),
            supported=tuple(labels.names[label] for label in supported),
            region_labels=tuple(labels.names[label] for label in given),
            accused=tuple(labels.names[label] for label in accused),
            carrier=self._carrier(shown, regions, accused),
        )

    def _alone(self, image: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
        """Return p(y|crop), `[N, C] float64`."""
        if not regions:
            return np.zeros((0, len(self._suspect.labels.names)))
        boxes = [region.box for region in regions]
        return self._suspect(np.stack([self._crop(image[t : t + h, left : left + w]) for t, left, h, w in boxes]))

    def _carrier(self, shown: np.ndarray, regions: Sequence[Region], accused: Sequence[int]) -> Region | None:
        if not accused or not len(shown):
            return None
        labels = self._suspect.labels
        gives = labels.is_label(shown, accused[0])
        if not gives.any():
            return None
        return regions[int(np.where(gives, labels.claimed(shown, accused[0]), -np.inf).argmax())]
