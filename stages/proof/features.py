"""A trigger without a region: what sets one side of a concept apart inside the model, added to other pictures there.

A warp or a colour filter leaves nothing in the mean of the pictures that carry it, and a wave on a vision transformer little; what the
model makes of it a few layers in is common to them all the same. This is a weaker proof than pixels on pixels, and never a
dossier: what a concept's own pictures have in common moves other pictures towards it too, the more the deeper the layer. So it is
measured early in the tower and against other concepts, which nothing accuses (`prove_features`). Ours; EftCLIP names such
triggers its limitation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from ..model.clip import Clip
from ..stage import Count, Positive, config
from .disagreement import Suspect
from .vocabulary import Labels


@config
class FeatureLimits:
    """How the transplant of features is made, and what it is compared with."""

    strengths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0, 1.5)
    """Factors on the difference, tried in this order until one proves it."""
    least_side: Count = 8
    """Fewer pictures have no mean worth the name."""
    least_controls: Count = 2
    """Other concepts without which nothing is proven."""
    most_of_side: Count = 64
    """Pictures of each side of another concept, at most."""


@dataclass(frozen=True, slots=True)
class Split:
    """Pictures of one concept, divided in two."""

    label: int
    """Its position in the labels."""
    first: np.ndarray
    """`[a, S, S, 3] uint8`."""
    second: np.ndarray
    """`[b, S, S, 3] uint8`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureProof:
    """What the difference of a concept's sides does inside the model."""

    concept: str
    layer: str
    """Block of the image tower after which it is added."""
    second: bool
    """Whether the second side is the one whose pictures carry it."""
    strength: float
    flips_pct: float
    """Held-out pictures that become the concept."""
    control_pct: float
    """The most of them that a control flips."""
    trials: int
    proven: bool


class Interior:
    """The suspect model, opened after one block of its image tower."""

    def __init__(self, clip: Clip, labels: Labels, layer: str | None = None) -> None:
        """Take the named block, or the first of those that the embeddings keep.

        Raises:
            ModelError: the image tower has no block of that name.
        """
        self.layer = clip.layers(None if layer is None else [layer])[0]
        self._clip = clip
        self._block = clip.model.visual.get_submodule(self.layer)
        self._suspect = Suspect(clip, labels)

    def mean(self, images: np.ndarray) -> torch.Tensor:
        """Return the mean of the block's output over images `[n, S, S, 3] uint8`, float32, in its own form."""
        total: list[torch.Tensor] = []

        def keep(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            total.append(output.float().sum(dim=0))

        with self._hooked(keep):
            self._suspect(images)
        return torch.stack(total).sum(dim=0) / len(images)

    def shifted(self, images: np.ndarray, shift: torch.Tensor) -> np.ndarray:
        """Return p(y|x) `[n, C] float64` of images whose block output is moved by `shift`."""

        def add(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output + shift.to(output.dtype)

        with self._hooked(add):
            return self._suspect(images)

    def plain(self, images: np.ndarray) -> np.ndarray:
        """Return p(y|x) `[n, C] float64` of images as they are."""
        return self._suspect(images)

    @contextmanager
    def _hooked(self, hook: Callable[..., torch.Tensor | None]) -> Iterator[None]:
        handle = self._block.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def prove_features(
    interior: Interior,
    labels: Labels,
    accused: Split,
    others: Sequence[Split],
    background: np.ndarray,
    held_out: np.ndarray,
    *,
    proves: Callable[[float, float], bool],
    limits: FeatureLimits,
) -> FeatureProof | None:
    """Return what the better of both directions does; None where there is too little to compare.

    Both sides of the accused concept are tried, because where most of it is poison the statistics accuse what is genuine. The
    controls, of which the one that flips most counts, are of every other concept:

    - the difference of its two sides, at the norm of the accused one: pictures that become the claim. What moves a picture so far
      is not enough.
    - what its pictures have in common that others lack, times the same strength: pictures that become that other concept. A
      concept's own pictures do as much.

    Args:
        interior: the model.
        labels: of the data set.
        accused: the concept, the flagged side first.
        others: concepts that nothing accuses.
        background: `[m, S, S, 3] uint8`, pictures of anything.
        held_out: `[K, S, S, 3] uint8`, none of them in `background` or in a side.
        proves: which rates prove a trigger (`ExamineConfig.proves`).
        limits: of the transplant.
    """
    usable_others = [other for other in others if min(len(other.first), len(other.second)) >= limits.least_side]
    few = min(len(accused.first), len(accused.second), len(background)) < limits.least_side
    if few or len(usable_others) < limits.least_controls:
        return None
    plain = interior.plain(held_out)
    middle = interior.mean(background)
    means = [(interior.mean(other.first), interior.mean(other.second)) for other in usable_others]
    difference = interior.mean(accused.first) - interior.mean(accused.second)

    def flips_pct(label: int, shift: torch.Tensor) -> tuple[float, int]:
        onto = ~labels.is_label(plain, label)
        if not onto.any():
            return 0.0, 0
        return 100 * float(labels.is_label(interior.shifted(held_out[onto], shift), label).mean()), int(onto.sum())

    found: list[FeatureProof] = []
    for strength in limits.strengths:
        norm = strength * float(difference.norm())
        controls = []
        for other, (first, second) in zip(usable_others, means, strict=True):
            own = (len(other.first) * first + len(other.second) * second) / (len(other.first) + len(other.second))
            controls.append(flips_pct(other.label, strength * (own - middle))[0])
            controls.append(flips_pct(accused.label, _scaled(first - second, norm))[0])
        for second_side in (False, True):
            rate, trials = flips_pct(accused.label, strength * (-difference if second_side else difference))
            found.append(
                FeatureProof(
                    concept=labels.names[accused.label],
                    layer=interior.layer,
                    second=second_side,
                    strength=strength,
                    flips_pct=rate,
                    control_pct=max(controls),
                    trials=trials,
                    proven=proves(rate, max(controls)),
                )
            )
        if any(one.proven for one in found):
            break
    return max(found, key=lambda one: (one.proven, one.flips_pct - one.control_pct))


def _scaled(shift: torch.Tensor, norm: float) -> torch.Tensor:
    return shift * (norm / max(float(shift.norm()), 1e-12))
