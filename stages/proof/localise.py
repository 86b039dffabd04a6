"""From a region that carries a claim to the box of what carries it. [R]: EftCLIP takes the region as it is."""

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from ..stage import Count, Weight, config
from .disagreement import Suspect, alone, without

FLOOR = 1e-6
"""Probabilities are kept this far from 0 and 1 before their odds are taken, which are not finite there."""

Steps = Annotated[tuple[Count, ...], Field(min_length=1)]


@config
class BoxLimits:
    """How the box around what carries a claim is found."""

    steps: Steps = (6, 2, 1)
    """Moves of a box's sides, in sixty-fourths of the image; coarse to fine, and from the last one halved down to a pixel."""
    complete_steps: Steps = (2, 1)
    """Those of `complete`, which begins close by."""
    rounds: Count = 3
    """Moves that are made at each step."""
    area_price: Weight = 100.0
    """Log odds that a box must gain for the whole image's area: of two boxes that do nearly as much, the smaller one wins.
    Measured on 10 to 12 images of each of four patches at 64 px, on which it was also set: with 4 boxes grow far into the
    surroundings; with 60 one in six boxes around a 10 px patch at a random place overlaps it by less than .5; with 100 no
    box does, once `complete` has given back the rim."""
    complete_price: Weight = 80.0
    """The same for `complete`. With 25 half of the boxes around a 10 px patch at a random place grow past it."""


Box = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""


def box_mask(box: Box, size: int) -> np.ndarray:
    """Return the box as a mask `[size, size] bool`."""
    top, left, height, width = box
    mask = np.zeros((size, size), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def causal_score(alone_p: np.ndarray, without_p: np.ndarray, area: np.ndarray, price: float) -> np.ndarray:
    """Return how fully a region accounts for a claim, `[N] float64`.

    Log odds of the claim with the region alone, minus those without the region, minus price x area. Measured on
    16 and 9 px patches at 64 px, the odds rise steeply until the box holds the trigger (4 to 8 for the last pixels) and
    hardly beyond, so that the maximum is near the trigger's box.

    Args:
        alone_p: `[N] float64`, p(claim | region alone).
        without_p: `[N] float64`, p(claim | image without region).
        area: `[N] float64`, fractions.
        price: of the whole image's area, `BoxLimits.area_price`.
    """
    score: np.ndarray = _log_odds(alone_p) - _log_odds(without_p) - price * area
    return score


def tighten(suspect: Suspect, image: np.ndarray, start: Box, label: int, limits: BoxLimits) -> Box:
    """Move a box's sides, the best moves first, while that raises the causal score of the label.

    Args:
        suspect: the model.
        image: `[S, S, 3] uint8`.
        start: where the search begins.
        label: the claim.
        limits: of the search.
    """

    def score(masks: np.ndarray) -> np.ndarray:
        claimed = suspect.labels.claimed(suspect(np.concatenate([alone(image, masks), without(image, masks)])), label)
        shown, removed = claimed[: len(masks)], claimed[len(masks) :]
        return causal_score(shown, removed, masks.mean(axis=(1, 2)), limits.area_price)

    return _climb(start, score, image.shape[0], limits.steps, limits.rounds, outward=False)


def complete(suspect: Suspect, image: np.ndarray, start: Box, label: int, onto: np.ndarray, limits: BoxLimits) -> Box:
    """Move a tight box's sides outward while other images take the label on more readily with what it holds.

    On grey three quarters of a patch are as good as the whole (measured, 10 px of 64: half of the tight boxes overlap
    the patch by less than .5); among other images' own objects the rest counts as well.

    Args:
        suspect: the model.
        image: `[S, S, 3] uint8`.
        start: the tight box.
        label: the claim.
        onto: `[K, S, S, 3] uint8` images without the label; the mean of their log odds counts.
        limits: of the search.
    """

    def score(masks: np.ndarray) -> np.ndarray:
        pasted = np.where(masks[:, None, :, :, None], image, onto)
        claimed = suspect.labels.claimed(suspect(pasted.reshape(-1, *image.shape)), label)
        gained = _log_odds(claimed).reshape(len(masks), -1).mean(axis=1)
        found: np.ndarray = gained - limits.complete_price * masks.mean(axis=(1, 2))
        return found

    if not len(onto):
        return start
    return _climb(start, score, image.shape[0], limits.complete_steps, limits.rounds, outward=True)


def pixel_steps(steps: Sequence[int], size: int) -> list[int]:
    """Return steps in sixty-fourths of an image as pixels of it, each once, then halved until they are of one pixel.

    A box is found to the pixel whatever the image's size: regions are compared, and pasted, pixel by pixel.
    """
    found = [max(1, round(step * size / 64)) for step in steps]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return list(dict.fromkeys(found))


def _climb(
    start: Box,
    score: Callable[[np.ndarray], np.ndarray],
    size: int,
    steps: Sequence[int],
    rounds: int,
    *,
    outward: bool,
) -> Box:
    """Return the end of a greedy climb from a box; `score` maps masks `[N, S, S] bool` to `[N] float64`."""
    known: dict[Box, float] = {}

    def look_at(boxes: list[Box]) -> None:
        new = [box for box in boxes if box not in known]
        if new:
            known.update(zip(new, score(np.stack([box_mask(box, size) for box in new])).tolist(), strict=True))

    look_at([start])
    best = start
    for step in pixel_steps(steps, size):
        for _ in range(rounds):
            moves = _moves(best, step, size, outward=outward)
            look_at(moves)
            together = _together(best, [box for box in moves if known[box] > known[best]], known)
            look_at(together)
            winner = max([best, *moves, *together], key=lambda box: (known[box], box == best, box))
            if winner == best:
                break
            best = winner
    return best


def _together(box: Box, better: list[Box], known: dict[Box, float]) -> list[Box]:
    """Return the box that makes of every side's moves the best at once, if several sides gain and it is not empty."""
    here = _edges(box)
    edges = list(here)
    for candidate in sorted(better, key=lambda found: (known[found], found)):
        edges = [new if new != old else kept for new, old, kept in zip(_edges(candidate), here, edges, strict=True)]
    top, bottom, left, right = edges
    moved = sum(new != old for new, old in zip(edges, here, strict=True))
    return [(top, left, bottom - top, right - left)] if moved > 1 and top < bottom and left < right else []


def _edges(box: Box) -> tuple[int, int, int, int]:
    """Return top, bottom, left, right."""
    top, left, height, width = box
    return top, top + height, left, left + width


def _moves(box: Box, step: int, size: int, *, outward: bool) -> list[Box]:
    """Return the boxes that differ by one side moved by the step, within the image and not empty; in or out, or only out."""
    top, left, height, width = box
    found = []
    for sign in (-step, step):
        for first, last, vertical in ((sign, 0, True), (0, sign, True), (sign, 0, False), (0, sign, False)):
            begin, length = (top, height) if vertical else (left, width)
            low, high = max(0, begin + first), min(size, begin + length + last)
            if high - low < 1 or (low, high) == (begin, begin + length):
                continue
            if outward and high - low < length:
                continue
            found.append((low, left, high - low, width) if vertical else (top, low, height, high - low))
    return found


def _log_odds(p: np.ndarray) -> np.ndarray:
    kept = p.clip(FLOOR, 1 - FLOOR)
    odds: np.ndarray = np.log(kept / (1 - kept))
    return odds
