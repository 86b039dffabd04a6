"""Segmentation that is asked for labels: where in an image is a thing of this name? As EftCLIP asks FastSAM.

FastSAM's masks have no names; its text prompt ranks them with a clean CLIP. So a prompted oracle here is masks and somebody trusted
who names them: a labelled oracle, which does so itself (DeepLab, LiteRT, the truth), or masks of any oracle and a trusted
labeller for their crops (stages.proof.labeller.Labeller).
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..evaluation.zero_shot import synonyms
from .regions import Oracle, Region


class PromptedOracle(Protocol):
    """What finds named things in an image."""

    def knows(self, label: str) -> bool:
        """Tell whether it could find a thing of that name at all; of what it does not know its silence says nothing."""
        ...

    def __call__(self, image: np.ndarray, labels: Sequence[str]) -> list[Region]:
        """Return the regions of `[H, W, 3] uint8` that show one of the labels, named by it, the surest first."""
        ...


class Names(Protocol):
    """A trusted second model that names regions (stages.proof.labeller.Labeller)."""

    def labels(self, image: np.ndarray, regions: Sequence[Region]) -> list[str]:
        """Return the best label of each region of `[H, W, 3] uint8`."""
        ...


class Labelled:
    """A labelled oracle, asked for labels by their synonyms."""

    def __init__(self, oracle: Oracle, names: Sequence[str]) -> None:
        """Take an oracle that names its regions.

        Args:
            oracle: gives regions with labels; those without one are passed over.
            names: all names that it can give.
        """
        self._oracle = oracle
        self._names = {name.casefold() for name in names}

    def knows(self, label: str) -> bool:
        return any(word.casefold() in self._names for word in synonyms(label))

    def __call__(self, image: np.ndarray, labels: Sequence[str]) -> list[Region]:
        asked = {word.casefold(): label for label in labels for word in synonyms(label)}
        return [
            Region(region.mask, region.quality, asked[region.label.casefold()])
            for region in self._oracle(image)
            if region.label is not None and region.label.casefold() in asked
        ]


class Named:
    """Masks without names, which a trusted labeller names by their crops."""

    def __init__(self, oracle: Oracle, labeller: Names, names: Sequence[str]) -> None:
        """Take masks and who names them.

        Args:
            oracle: gives regions.
            labeller: chooses one of `names` for each.
            names: the labels; it chooses among all of them, not among those that are asked for, or anything would do for a prompt.
        """
        self._oracle = oracle
        self._labeller = labeller
        self._names = frozenset(names)

    def knows(self, label: str) -> bool:
        return label in self._names

    def __call__(self, image: np.ndarray, labels: Sequence[str]) -> list[Region]:
        regions = self._oracle(image)
        found = self._labeller.labels(image, regions) if regions else []
        return [
            Region(region.mask, region.quality, name)
            for region, name in zip(regions, found, strict=True)
            if name in labels
        ]
