"""A proven trigger is looked for in the whole embedding cache; whom it finds is then checked pair by pair on pixels.

What a trigger does to features is learned from held-out images with and without it, so the search needs no pixels of the
data set, no flagged pairs and no budget. What it finds are candidates; a pair is confirmed only when its claim falls with
the trigger. (EftCLIP, as we reconstruct it, looks among nearest neighbours instead.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from ..captions import Vocabulary
from ..detectors.streaming import vectors
from ..model.clip import Clip
from ..proof.disagreement import BATCH
from ..stage import Positive, Share, config
from .dossier import Dossier

IMAGE = "image"

Likely = list[tuple[str, float]]
"""Triggers that a pair looks as if it carried, and how far it lies beyond their thresholds; the farthest first."""


@config
class CarrierLimits:
    """How the direction of a trigger is learned, and who lies far along it."""

    shrinkage: Positive = 1e-2
    """Share of the mean variance that is added to the covariance before it is inverted. Held-out images are few."""
    missed: Share = 0.02
    """Share of triggered held-out images below the threshold, where those overlap with clean ones."""
    clean_quantile: Share = 0.99
    """Of the clean images' scores, above which a score is one of a triggered image."""
    least_images: Annotated[int, Field(ge=2)] = 32
    """Fewer held-out images teach no direction."""


@dataclass(frozen=True, slots=True)
class Direction:
    """Where a trigger moves features, column by column of the embedding cache."""

    columns: tuple[str, ...]
    """"image" and the "layer.*" columns that were given."""
    weights: tuple[np.ndarray, ...]
    """`[P] float64` each: features times these, less `centres`, are clean standard deviations along the trigger's shift."""
    centres: tuple[float, ...]
    threshold: float
    """A pair at or above it is a candidate."""
    separation: float
    """Share of triggered held-out images above the quantile of the clean ones, a fraction."""


def fit_direction(
    clip: Clip, held_out: np.ndarray, dossier: Dossier, layers: Sequence[str], *, seed: int, limits: CarrierLimits
) -> Direction:
    """Learn what a trigger does to features.

    In each layer the mean shift is divided by the pooled covariance of the images about their two means (Fisher's
    discriminant), and the projection is put on the robust scale of the clean images; a pair's score is the mean over
    layers. Even images teach the direction, odd ones place the threshold: halfway between the `clean_quantile` of the clean
    scores and the `missed` quantile of the triggered ones, or the latter where they overlap.

    Args:
        clip: the suspect model.
        held_out: `[K, S, S, 3] uint8` without the trigger; some hundreds.
        dossier: the trigger.
        layers: blocks in the cache, as `Clip.layers` names them.
        seed: of the places and pictures of a trigger that varies.
        limits: of the search.

    Raises:
        ValueError: fewer than `least_images` images.
    """
    if len(held_out) < limits.least_images:
        raise ValueError(
            f"a search for carriers needs at least {limits.least_images} held-out images, not {len(held_out)}"
        )
    rng = np.random.default_rng(seed)
    triggered = np.stack([dossier.apply(image, rng) for image in held_out])
    clean, moved = features(clip, held_out, layers), features(clip, triggered, layers)
    weights, centres = [], []
    for before, after in zip(clean.values(), moved.values(), strict=True):
        weight, centre = discriminant(before[::2], after[::2], limits.shrinkage)
        weights.append(weight)
        centres.append(centre)
    found = Direction(tuple(clean), tuple(weights), tuple(centres), 0.0, 0.0)
    low = _score(found, [values[1::2] for values in clean.values()])
    high = _score(found, [values[1::2] for values in moved.values()])
    ceiling, floor = float(np.quantile(low, limits.clean_quantile)), float(np.quantile(high, limits.missed))
    threshold = (ceiling + floor) / 2 if floor > ceiling else floor
    return Direction(found.columns, found.weights, found.centres, threshold, float((high > ceiling).mean()))


def features(clip: Clip, images: np.ndarray, layers: Sequence[str]) -> dict[str, np.ndarray]:
    """Return cache column -> `[N, P] float64` of images `[N, S, S, 3] uint8`, rounded to float16 as the cache is."""
    found: dict[str, list[np.ndarray]] = {}
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    for batch in torch.split(pixels, BATCH):
        image, pooled = clip.encode_images(batch, layers)
        for name, values in {IMAGE: image, **{f"layer.{name}": part for name, part in pooled.items()}}.items():
            found.setdefault(name, []).append(values.astype(np.float16).astype(np.float64))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def discriminant(before: np.ndarray, after: np.ndarray, shrinkage: float) -> tuple[np.ndarray, float]:
    """Return the direction `[P] float64` that tells `[n, P]` features apart best, and its centre.

    `before @ direction - centre` has median 0 and, by its median absolute deviation, standard deviation 1.
    """
    middle, shifted = before.mean(axis=0), after.mean(axis=0)
    about = np.concatenate([before - middle, after - shifted])
    covariance = about.T @ about / len(about)
    width = len(covariance)
    covariance += (shrinkage * np.trace(covariance) / width + np.finfo(np.float64).tiny) * np.eye(width)
    direction = np.linalg.solve(covariance, shifted - middle)
    along = before @ direction
    centre = float(np.median(along))
    scale = 1.4826 * float(np.median(np.abs(along - centre)))
    if scale == 0:
        return np.zeros(width), 0.0
    return direction / scale, centre / scale


def score_table(direction: Direction, table: pa.Table) -> np.ndarray:
    """Return how far each row of a part of the embedding cache lies along a trigger's shift, `[N] float32`.

    In standard deviations of clean images, mean over layers; a row's score depends on that row alone.
    """
    return _score(direction, [vectors(table, name).astype(np.float64) for name in direction.columns])


def _score(direction: Direction, columns: Sequence[np.ndarray]) -> np.ndarray:
    parts = zip(columns, direction.weights, direction.centres, strict=True)
    # a sum along each row, not a matrix product, whose last bits may depend on the number of rows
    along = [(values * weight).sum(axis=1) - centre for values, weight, centre in parts]
    return np.asarray(np.mean(along, axis=0), dtype=np.float32)


def likely_carriers(
    triggers: Sequence[tuple[Dossier, Direction]], vocabulary: Vocabulary, table: pa.Table
) -> dict[str, Likely]:
    """Return uid -> the triggers that a pair looks as if it carried, of those pairs that claim a target of theirs.

    Args:
        triggers: each with its direction.
        vocabulary: of the data set; the targets are among its names.
        table: a part of the embedding cache: `uid`, `caption` and the directions' columns.
    """
    members = vocabulary.members(table.column("caption").to_pylist()).tocsc()
    uids = table.column("uid").to_pylist()
    found: dict[str, Likely] = {}
    for dossier, direction in triggers:
        claims = np.zeros(table.num_rows, bool)
        for target in dossier.targets:
            claims[members[:, vocabulary.names.index(target)].indices] = True
        score = score_table(direction, table) - direction.threshold
        for row in np.flatnonzero(claims & (score >= 0)):
            found.setdefault(uids[row], []).append((dossier.id, float(score[row])))
    for likely in found.values():
        likely.sort(key=lambda one: -one[1])
    return found
