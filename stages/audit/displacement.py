"""How far a label's text stands from the pictures that the model takes for it.

Contrastive training puts a text near all pictures that come with it. The pictures of a poisoned label are two clouds, the genuine ones
and those with the trigger, and its text stands between them: away from the genuine ones, which are all that is at hand without the
training data. How near a text comes to the middle of its pictures depends also on how alike these are among one another. That
dependence is the same for all labels of a model, and is taken out by a straight line through them. What is left of a label is held
against what is left of the others: no trigger is sought, and of every picture one forward pass is enough.

With the clean model that the suspect was tuned from, what a picture shows is said by that model, and the line goes through how each label
stands there, too (an analysis of covariance): how far a text naturally stands from its pictures is mostly a property of that model, and
tuning keeps it. A clean model of another training says nothing of the kind. Without that model, clean ones that were tuned from it, too,
say the same: how much farther a text stands than theirs on average is held against how much more alike its pictures are.

It shows nothing where few pairs of a label are poisoned, or where the pictures show other things than the labels name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEAST_PICTURES = 8
"""Of a label; the middle of fewer says too little."""
LEAST_LABELS = 8
"""Labels with as many pictures; a line through fewer fits them all."""


@dataclass(frozen=True, slots=True)
class Clouds:
    """The pictures that a model takes for each label, summed up."""

    counts: np.ndarray
    """`[C] int64`."""
    sums: np.ndarray
    """`[C, D] float64`, of unit vectors."""

    @staticmethod
    def of(features: np.ndarray, said: np.ndarray, labels: int) -> "Clouds":
        """Return those of pictures `[N, D]`, unit norm, and the label `[N]` of each."""
        sums = np.zeros((labels, features.shape[1]))
        np.add.at(sums, said, features.astype(np.float64))
        return Clouds(np.bincount(said, minlength=labels), sums)

    def plus(self, other: "Clouds") -> "Clouds":
        """Return both together."""
        return Clouds(self.counts + other.counts, self.sums + other.sums)


@dataclass(frozen=True, slots=True)
class Displaced:
    """How far each text stands from its pictures; arrays are `[C]`, nan where too few pictures were taken for the label."""

    value: np.ndarray
    """In units of what the other labels scatter. Large: farther than others."""
    p: np.ndarray
    """One-sided."""


def nearest(features: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return for pictures `[N, D]` the text of `[C, D]` that fits each best, `[N] int64`."""
    return np.asarray((features @ texts.T).argmax(axis=1))


def descends(texts: np.ndarray, others: np.ndarray) -> bool:
    """Tell whether a model with these texts `[C, D]` was tuned from one with the others, whose space it then shares.

    It is so where most texts are still nearest to their own; models of different trainings agree on one in C by chance.
    """
    if texts.shape != others.shape:
        return False
    return bool((nearest(texts, others) == np.arange(len(texts))).mean() > 0.5)


def displacements(
    clouds: Clouds,
    texts: np.ndarray,
    parent: tuple[Clouds, np.ndarray] | None = None,
    peers: Sequence[tuple[Clouds, np.ndarray]] = (),
) -> Displaced:
    """Return how far each text stands from its pictures.

    The value is the studentised deleted residual of the angle between a text and the mean of its pictures, given the length of that
    mean, and has Student's distribution where the residuals of a clean model are normal; cosines are skewed, so that three times as
    many clean models as stated would be accused.

    Args:
        clouds: of the pictures.
        texts: `[C, D]`, unit norm.
        parent: both of the same pictures in the model that this one was tuned from; the line then goes through its angles and
            lengths, too.
        peers: both in clean models that were tuned from the same one, where that is not known itself; angles and lengths are then
            those beyond the peers' means.
    """
    value, p = np.full(len(texts), np.nan), np.full(len(texts), np.nan)
    counts = np.min([clouds.counts, *(their.counts for their, _ in peers)], axis=0)
    seen = np.flatnonzero(counts >= LEAST_PICTURES)
    if len(seen) < LEAST_LABELS:
        return Displaced(value, p)
    lengths, angles = _stand(clouds, texts, seen)
    if peers:
        usual = np.mean([_stand(*peer, seen) for peer in peers], axis=0)
        lengths, angles = lengths - usual[0], angles - usual[1]
    known = [np.ones(len(seen)), lengths, *(() if parent is None else _stand(*parent, seen))]
    value[seen], freedom = _deleted_residuals(np.stack(known, axis=1), angles)
    p[seen] = stats.t.sf(value[seen], freedom)
    return Displaced(value, p)


def _stand(clouds: Clouds, texts: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return of some labels the length of their pictures' mean, and the angle between it and their text."""
    means = clouds.sums[seen] / clouds.counts[seen, None]
    lengths = np.linalg.norm(means, axis=1)
    near = (means * texts[seen]).sum(axis=1) / np.maximum(lengths, 1e-12)
    return lengths, np.arccos(np.clip(near, -1.0, 1.0))


def _deleted_residuals(design: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, int]:
    """Return how far each point misses the plane through the others, in that prediction's standard errors, and the degrees of freedom."""
    inverse = np.linalg.pinv(design)
    leverage = np.einsum("ij,ji->i", design, inverse)
    residual = y - design @ (inverse @ y)
    free = np.maximum(1 - leverage, 1e-9)
    freedom = len(y) - design.shape[1] - 1
    others = np.maximum((residual @ residual - residual**2 / free) / freedom, 0.0)
    # the floor keeps texts that all stand alike from making an outlier of a rounding error
    return np.asarray(residual / np.maximum(np.sqrt(others * free), 1e-6)), freedom
