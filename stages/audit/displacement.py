"""How far a label's text stands from the pictures that the model takes for it.

Contrastive training puts a text near all pictures that come with it. The pictures of a poisoned label are two clouds, the genuine ones
and those with the trigger, and its text stands between them: away from the genuine ones, which are all that is at hand without the
training data. How near a text comes to the middle of its pictures depends also on how alike these are among one another. That
dependence is the same for all labels of a model, and is taken out by a straight line through them. What is left of a label is held
against what is left of the others: no trigger is sought, and of every picture one forward pass is enough.

It shows nothing where few pairs of a label are poisoned, or where the pictures show other things than the labels name.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

LEAST_PICTURES = 8
"""Of a label; the middle of fewer says too little."""
LEAST_LABELS = 8
"""Labels with as many pictures; a line through fewer fits them all."""
TERMS = 2
"""Of the line: its height and its slope."""


@dataclass(frozen=True, slots=True)
class Clouds:
    """The pictures that a model takes for each label, summed up."""

    counts: np.ndarray
    """`[C] int64`."""
    sums: np.ndarray
    """`[C, D] float64`, of unit vectors."""

    @staticmethod
    def of(features: np.ndarray, texts: np.ndarray) -> "Clouds":
        """Return those of pictures `[N, D]` and texts `[C, D]`, unit norm: each picture is of the text that fits it best."""
        said = (features @ texts.T).argmax(axis=1)
        sums = np.zeros((len(texts), features.shape[1]))
        np.add.at(sums, said, features.astype(np.float64))
        return Clouds(np.bincount(said, minlength=len(texts)), sums)

    def plus(self, other: "Clouds") -> "Clouds":
        """Return both together."""
        return Clouds(self.counts + other.counts, self.sums + other.sums)


def displacements(clouds: Clouds, texts: np.ndarray) -> np.ndarray:
    """Return how far each text stands from its pictures, `[C]`, in units of what the other labels scatter; nan: too few pictures.

    It is the studentised deleted residual of the angle between a text and the mean of its pictures, given the length of that mean, and
    has Student's distribution where the residuals of a clean model are normal (`p_values`); cosines are skewed, so that three times as
    many clean models as stated would be accused. Large: farther than others.

    Args:
        clouds: of the pictures.
        texts: `[C, D]`, unit norm.
    """
    found = np.full(len(texts), np.nan)
    seen = np.flatnonzero(clouds.counts >= LEAST_PICTURES)
    if len(seen) < LEAST_LABELS:
        return found
    means = clouds.sums[seen] / clouds.counts[seen, None]
    lengths = np.linalg.norm(means, axis=1)
    near = (means * texts[seen]).sum(axis=1) / np.maximum(lengths, 1e-12)
    found[seen] = _deleted_residuals(lengths, np.arccos(np.clip(near, -1.0, 1.0)))
    return found


def p_values(displaced: np.ndarray) -> np.ndarray:
    """Return the one-sided p value of each of `[C]`; nan where it is not known."""
    freedom = int(np.isfinite(displaced).sum()) - TERMS - 1
    return np.asarray(stats.t.sf(displaced, freedom)) if freedom > 0 else np.full(len(displaced), np.nan)


def _deleted_residuals(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return of each point by how much it misses the line through the others, over that prediction's standard error."""
    design = np.stack([np.ones(len(x)), x], axis=1)
    inverse = np.linalg.pinv(design)
    leverage = np.einsum("ij,ji->i", design, inverse)
    residual = y - design @ (inverse @ y)
    free = np.maximum(1 - leverage, 1e-9)
    others = np.maximum((residual @ residual - residual**2 / free) / (len(x) - TERMS - 1), 0.0)
    # the floor keeps texts that all stand alike from making an outlier of a rounding error
    return np.asarray(residual / np.maximum(np.sqrt(others * free), 1e-6))
