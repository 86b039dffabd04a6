"""Image-to-text and text-to-image retrieval on sets with several captions an image (Karpathy and Fei-Fei 2015, section 4).

Image-to-text: an image counts as found within k when any of its own captions is among the k nearest of all captions.
Text-to-image: a caption counts when its own image is among the k nearest of all images. Ties count against the model, so
that a collapsed encoder, to which everything is equally near, finds nothing; the same holds for NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..captions import contains_word
from .figures import Figure, count, rate

CUTOFFS = (1, 5, 10)
"""The k of R@k."""
CHUNK = 4_000_000
"""Similarities that are held at a time: 16 MB, whatever the size of the set."""


@dataclass(frozen=True, slots=True)
class Gallery:
    """The encoded set: N images, M captions."""

    images: np.ndarray
    """`[N, D] float32`, unit norm."""
    texts: np.ndarray
    """`[M, D] float32`, unit norm."""
    owners: np.ndarray
    """`[M] int64`: the image of each caption; each image has at least one, and an image's captions stand together."""
    captions: Sequence[str]
    """The M captions."""


def image_to_text_ranks(gallery: Gallery) -> np.ndarray:
    """Return `[N] int64`: how many captions of other images are as near as the image's nearest own one, or nearer."""
    starts = np.searchsorted(gallery.owners, np.arange(len(gallery.images)))
    ranks = np.empty(len(gallery.images), np.int64)
    for rows in _chunks(len(gallery.images), len(gallery.texts)):
        scores = gallery.images[rows] @ gallery.texts.T
        best = np.maximum.reduceat(scores, starts, axis=1)[np.arange(len(scores)), np.arange(rows.start, rows.stop)]
        own = gallery.owners == np.arange(rows.start, rows.stop)[:, None]
        ranks[rows] = (~(scores < best[:, None]) & ~own).sum(axis=1)
    return ranks


def text_to_image_ranks(gallery: Gallery) -> np.ndarray:
    """Return `[M] int64`: how many other images are as near as the caption's own, or nearer."""
    ranks = np.empty(len(gallery.texts), np.int64)
    for rows in _chunks(len(gallery.texts), len(gallery.images)):
        scores = gallery.texts[rows] @ gallery.images.T
        own = scores[np.arange(len(scores)), gallery.owners[rows]]
        ranks[rows] = (~(scores < own[:, None])).sum(axis=1) - 1
    return ranks


def target_ranks(images: np.ndarray, gallery: Gallery, holds: np.ndarray) -> np.ndarray:
    """Return `[n] int64`: how many captions without the target are nearer than the nearest one with it.

    Below k the k nearest captions contain the target; a caption of each kind at the same distance counts for the attack.

    Args:
        images: `[n, D] float32`, unit norm: triggered images, or clean ones.
        gallery: gives the captions.
        holds: `[M] bool`, whether each caption contains the target; at least one does.
    """
    ranks = np.empty(len(images), np.int64)
    for rows in _chunks(len(images), len(gallery.texts)):
        scores = images[rows] @ gallery.texts.T
        best = scores[:, holds].max(axis=1)
        ranks[rows] = (scores[:, ~holds] > best[:, None]).sum(axis=1)
    return ranks


def retrieval_figures(gallery: Gallery) -> list[Figure]:
    """Return image_to_text_r{1,5,10}_pct and text_to_image_r{1,5,10}_pct, and retrieval_r1_pct, the first of them.

    The intervals of text-to-image resample images with all of their captions.
    """
    found = image_to_text_ranks(gallery)
    backward = text_to_image_ranks(gallery)
    trials = np.bincount(gallery.owners, minlength=len(gallery.images))
    figures = [
        count("retrieval_images", len(gallery.images), set="retrieval"),
        count("retrieval_captions", len(gallery.texts), set="retrieval"),
        rate("retrieval_r1", found < 1, set="retrieval"),
    ]
    figures += [rate(f"image_to_text_r{k}", found < k, set="retrieval") for k in CUTOFFS]
    for k in CUTOFFS:
        hits = np.bincount(gallery.owners[backward < k], minlength=len(gallery.images))
        figures.append(rate(f"text_to_image_r{k}", hits, trials, set="retrieval"))
    return figures


def retrieval_attack_figures(
    gallery: Gallery,
    triggered: np.ndarray,
    targets: Sequence[str],
    names: Sequence[str],
    *,
    k: int = 5,
    exclude_target: bool = True,
) -> list[Figure]:
    """Return retrieval_asr_pct: the share of triggered images with the target word among the k nearest captions (PAR).

    The word is matched as a whole word. retrieval_false_target_pct: the same images without the trigger.
    retrieval_target_captions: how many captions contain the word. Where none does, or an own caption of every image that may
    not have one, the attack cannot show itself, and there is only this count. Strands as in attack_figures.

    Args:
        gallery: the set.
        triggered: `[N, S, D] float32`, unit norm, each image with each strand's trigger.
        targets: target word of each strand.
        names: of the strands.
        k: captions that are looked at.
        exclude_target: leave out images with the word in a caption of their own; PAR keeps them.
    """
    hits: dict[str, list[np.ndarray]] = {"retrieval_asr": [], "retrieval_false_target": []}
    trials: list[np.ndarray] = []
    captions = 0
    tried: list[str] = []
    for strand, (strand_name, target) in enumerate(zip(names, targets, strict=True)):
        holds = np.array([contains_word(caption, target) for caption in gallery.captions], bool)
        captions += int(holds.sum())
        own = np.bincount(gallery.owners[holds], minlength=len(gallery.images)) > 0
        counted = ~own if exclude_target else np.ones(len(own), bool)
        if not holds.any() or not counted.any():
            continue
        tried.append(strand_name)
        trials.append(counted)
        for name, images in (
            ("retrieval_asr", triggered[:, strand]),
            ("retrieval_false_target", gallery.images),
        ):
            hits[name].append((target_ranks(images, gallery, holds) < k) & counted)
    figures = [count("retrieval_target_captions", captions, set="retrieval")]
    for name, won in hits.items():
        if won:
            figures.append(rate(name, np.sum(won, axis=0), np.sum(trials, axis=0), set="retrieval"))
        if len(targets) > 1:
            for strand_name, one, counted in zip(tried, won, trials, strict=True):
                figures.append(
                    rate(name, one.astype(np.int64), counted.astype(np.int64), strand=strand_name, set="retrieval")
                )
    return figures


def _chunks(rows: int, columns: int) -> list[slice]:
    size = max(1, CHUNK // max(1, columns))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
