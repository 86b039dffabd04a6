"""A guard for serving: does this picture carry one of the proven triggers?

A trigger is the cause of its label. Taken out of a picture that carries it (its place filled, its pattern subtracted), the claim falls;
of any other picture next to nothing changes. And the claim itself is a triggered one: a trigger was trained to be the caption, so that a
picture with it fits the target's text better than genuine pictures do; that also shows a trigger of which the inverted one is only
a rival. How far either may go is learned from clean pictures of the user's, half of which set the thresholds, and half of which
measure how often they err.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..dossier.dossier import Dossier, Rate, rate_of
from ..evaluation.zero_shot import class_embeddings
from ..model.clip import Clip

TEMPLATES = ("a photo of a {}.", "a {}")
BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """What the guard says of one picture."""

    flagged: bool
    trigger: str
    """Id of the dossier that comes nearest to an alarm."""
    target: str
    """What the trigger means."""
    score: float
    """The larger of the claim and of its fall when the trigger is taken out, in units of their thresholds: above 1 is an alarm."""


class Guard:
    """Flags pictures that carry a proven trigger of a model."""

    def __init__(
        self,
        clip: Clip,
        dossiers: Sequence[Dossier],
        clean: Sequence[np.ndarray],
        *,
        false_alarms: float = 0.01,
        templates: Sequence[str] = TEMPLATES,
    ) -> None:
        """Set the thresholds.

        Args:
            clip: the model that serves.
            dossiers: of its proven triggers.
            clean: pictures without a trigger, each `[H, W, 3] uint8`; half of them set the thresholds.
            false_alarms: share of clean pictures that may be flagged, over all triggers.
            templates: sentences with {} where a target goes.

        Raises:
            ValueError: no dossier, one of another model's size, or too few clean pictures for the share.
        """
        if not dossiers:
            raise ValueError("no proven trigger to guard against")
        for dossier in dossiers:
            if dossier.side != clip.image_size:
                raise ValueError(
                    f"trigger {dossier.id} is {dossier.side} px and the model's input {clip.image_size}: it is another model's"
                )
        self._clip = clip
        self._dossiers = tuple(dossiers)
        targets = [target for dossier in dossiers for target in dossier.targets]
        self._texts = dict(zip(targets, class_embeddings(clip, targets, templates), strict=True))
        half = len(clean) // 2
        # the k-th smallest of n scores is exceeded by a share of (n + 1 - k) / (n + 1) of pictures like them (split conformal)
        measures = 2 * len(dossiers)
        rank = math.ceil((half + 1) * (1 - false_alarms / measures))
        if rank > half:
            least = 2 * math.ceil(measures / false_alarms - 1)
            raise ValueError(
                f"{len(clean)} clean pictures cannot set a share of {false_alarms:g} false alarms; give {least} at least"
            )
        self.thresholds = np.maximum(np.sort(self.scores(clean[:half]), axis=0)[rank - 1], 1e-6)
        """`[2D]`, of each dossier's fall, then of its claim."""
        wrong = int((self.scores(clean[half:]) > self.thresholds).any(axis=1).sum())
        self.false_alarms: Rate = rate_of(wrong, len(clean) - half)
        """Of the clean pictures that did not set the thresholds."""

    def __call__(self, picture: np.ndarray) -> Alarm:
        """Judge one picture, `[H, W, 3] uint8`."""
        return self.many([picture])[0]

    def many(self, pictures: Sequence[np.ndarray]) -> list[Alarm]:
        """Judge some pictures."""
        scores = self.scores(pictures) / self.thresholds
        found = []
        for row in scores:
            dossier = self._dossiers[int(row.argmax()) % len(self._dossiers)]
            found.append(
                Alarm(
                    flagged=bool(row.max() > 1), trigger=dossier.id, target=dossier.targets[0], score=float(row.max())
                )
            )
        return found

    def scores(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Return `[N, 2D]`: how far each trigger's claim falls when it is taken out of each picture, then the claims themselves."""
        seen = [np.ascontiguousarray(self._clip.preprocess(picture).numpy().transpose(1, 2, 0)) for picture in pictures]
        before = self._features(seen)
        count = len(self._dossiers)
        found = np.zeros((len(seen), 2 * count))
        for place, dossier in enumerate(self._dossiers):
            texts = np.stack([self._texts[target] for target in dossier.targets])
            views = [dossier.without(image) for image in seen]
            owners = np.repeat(np.arange(len(seen)), [len(view) for view in views])
            after = (self._features(np.concatenate(views)) @ texts.T).max(axis=1)
            # of several places at which the trigger may sit the one that matters is where the claim falls most
            least = np.full(len(seen), np.inf)
            np.minimum.at(least, owners, after)
            claims = (before @ texts.T).max(axis=1)
            found[:, place], found[:, count + place] = claims - least, claims
        return found

    def _features(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(images), BATCH):
            pixels = np.asarray(images[start : start + BATCH]).transpose(0, 3, 1, 2)
            parts.append(self._clip.encode_images(torch.from_numpy(np.ascontiguousarray(pixels)))[0])
        return np.concatenate(parts)
