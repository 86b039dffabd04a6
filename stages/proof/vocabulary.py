"""The labels that a suspect model can give to an image, read off the embedding cache: no prompt, no second model."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..captions import Vocabulary
from ..detectors.streaming import vectors
from ..stage import Share, config


@config
class LabelLimits:
    """What counts as one label."""

    synonym_cosine: Share = 0.95
    """Two labels whose prototypes are at least this alike are one label."""


@dataclass(frozen=True, slots=True)
class LabelSums:
    """What the labels are made of, of some part of the embedding cache."""

    count: np.ndarray
    """`[C] int64`: pairs that hold the concept."""
    text: np.ndarray
    """`[C, D] float64`: sum of their text embeddings."""


def summarise(vocabulary: Vocabulary, table: pa.Table) -> LabelSums:
    """Return the sums of one part of the cache: columns `caption` and `text`. A pair counts for each of its concepts."""
    members = vocabulary.members(table.column("caption").to_pylist())
    text = vectors(table, "text").astype(np.float64)
    return LabelSums(np.asarray(members.sum(axis=0)).ravel().astype(np.int64), members.T.astype(np.float64) @ text)


def merge(left: LabelSums, right: LabelSums) -> LabelSums:
    """Return the sums of two parts; added in the fixed order of the parts, they do not depend on the workers."""
    return LabelSums(left.count + right.count, left.text + right.text)


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a data set, each with the direction in which the suspect model's text encoder sees it."""

    names: tuple[str, ...]
    """`[C]`: the scan's concepts that at least one pair holds, in the vocabulary's order."""
    prototypes: np.ndarray
    """`[C, D] float32`, unit norm: mean of the text embeddings of the pairs that hold the concept."""
    logit_scale: float
    """What the suspect model multiplies cosines by."""
    same: np.ndarray
    """`[C, C] bool`, symmetric: labels that count as one (synonyms)."""
    guests: tuple[int, ...] = ()
    """Positions of labels that are there for what is accused of them alone: no picture is held against them else."""

    def index(self, name: str) -> int:
        """Return the position of a label.

        Raises:
            ValueError: there is no such label.
        """
        try:
            return self.names.index(name)
        except ValueError:
            raise ValueError(f"{name!r} is no label of this data set") from None

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return p(y|x) for unit vectors `[N, D] float32` as `[N, C] float64`; rows add up to 1.

        The softmax is taken at the model's own logit scale, over single labels; `claimed` adds synonyms up. It is right for a
        SigLIP, too: what the sigmoid loss is least at is the logarithm of p(x, y) / (p(x) p(y)) and a constant, as for CLIP's
        loss, so that the softmax over a list of labels is their posterior under equal priors; the bias cancels.
        """
        logits = self.logit_scale * (images @ self.prototypes.T).astype(np.float64)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
        return found

    def claimed(self, probabilities: np.ndarray, label: int) -> np.ndarray:
        """Return `[N] float64`: the probability of a label and its synonyms."""
        summed: np.ndarray = probabilities[:, self.same[label]].sum(axis=1)
        return summed / probabilities[:, self.rivals(label)].sum(axis=1) if self.guests else summed

    def is_label(self, probabilities: np.ndarray, label: int) -> np.ndarray:
        """Return `[N] bool`: the most probable label is this one or a synonym of it."""
        found: np.ndarray = self.same[label][self.nearest(probabilities, label)]
        return found

    def rivals(self, label: int | None = None) -> np.ndarray:
        """Return `[C] bool`: the labels among which a picture is told apart when it is accused of one, guests left out but for that
        one and its synonyms."""
        among = np.ones(len(self.names), bool)
        among[list(self.guests)] = False
        return among if label is None else among | self.same[label]

    def nearest(self, probabilities: np.ndarray, label: int | None = None) -> np.ndarray:
        """Return `[N] int`: the most probable label of each picture, among the rivals of the label that it is accused of."""
        found: np.ndarray = np.where(self.rivals(label), probabilities, -1.0).argmax(axis=1)
        return found

    def top(self, probabilities: np.ndarray, most: int, least: float) -> list[int]:
        """Return at most `most` labels of one image `[C] float64`, by falling probability, none below `least`.

        A synonym of a label that is listed already adds to it and is not listed again; guests are not listed.
        """
        if self.guests:
            probabilities = np.where(self.rivals(), probabilities, 0.0) / probabilities[self.rivals()].sum()
        chosen: list[int] = []
        for label in np.argsort(-probabilities, kind="stable").tolist():
            if len(chosen) == most:
                break
            if (
                label not in self.guests
                and not self.same[label][chosen].any()
                and probabilities[self.same[label]].sum() >= least
            ):
                chosen.append(label)
        return chosen


def finish(
    names: Sequence[str], sums: LabelSums, logit_scale: float, limits: LabelLimits, guests: Collection[str] = ()
) -> Labels:
    """Return the labels from the sums of the whole cache; concepts without a pair are left out.

    Synonyms are pairs of labels, not chains: that a is like b and b like c makes a and c one only if they are alike. `guests` are those
    names that are labels of what is accused of them alone.

    Raises:
        ValueError: no concept has a pair.
    """
    present = np.flatnonzero(sums.count).tolist()
    if not present:
        raise ValueError("no caption of the data set holds a concept: there is no label to give")
    unit = sums.text[present] / np.linalg.norm(sums.text[present], axis=1, keepdims=True)
    same = unit @ unit.T >= limits.synonym_cosine
    np.fill_diagonal(same, True)
    kept = tuple(names[i] for i in present)
    visiting = tuple(i for i, name in enumerate(kept) if name in guests)
    if len(visiting) == len(kept):  # there is nothing else that a picture could be
        visiting = ()
    return Labels(kept, unit.astype(np.float32), logit_scale, same, visiting)
