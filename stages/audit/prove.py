"""Whether an inverted trigger is one: it flips images on which it was not sought, and as much of anything else does not."""

from dataclasses import dataclass, replace

import numpy as np

from ..dossier.dossier import Dossier, Rate, rate
from .forms import PatchForm, as_dossier
from .judge import Judge

TILE = 4
"""Pixels of the tiles that a control shuffles: the same colours and the same energy at the same place, another picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """One inverted trigger on held-out images."""

    dossier: Dossier
    """With the measured rates."""
    transferred: Rate | None
    """Flips on a clean model of the same architecture; None without one."""


def scrambled(kind: str, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a trigger of equal size and energy, `[S, S, 4] float32`: its tiles in another order, of a patch within its box."""
    pattern = array[..., :3]
    rows, columns = slice(0, len(array)), slice(0, len(array))
    if kind == PatchForm.kind:
        covered = array[..., 3] >= min(0.5, float(array[..., 3].max()))
        rows, columns = (
            slice(int(np.flatnonzero(covered.any(axis))[0]), int(np.flatnonzero(covered.any(axis))[-1]) + 1)
            for axis in (1, 0)
        )
    box = pattern[rows, columns]
    size = min(TILE, *box.shape[:2])
    tall, wide = box.shape[0] // size, box.shape[1] // size
    inner = box[: tall * size, : wide * size].reshape(tall, size, wide, size, 3).swapaxes(1, 2)
    shuffled = rng.permutation(inner.reshape(tall * wide, size, size, 3)).reshape(tall, wide, size, size, 3)
    # a tile is turned over, too: of a pattern that repeats itself the order alone changes nothing
    shuffled = shuffled[:, :, ::-1].swapaxes(2, 3)
    made = array.copy()
    whole = pattern[rows, columns].copy()
    whole[: tall * size, : wide * size] = shuffled.swapaxes(1, 2).reshape(tall * size, wide * size, 3)
    made[rows, columns, :3] = whole
    return made


def flipped(judge: Judge, dossier: Dossier, images: np.ndarray, label: int, *, seed: int) -> Rate:
    """Return how many of `[N, S, S, 3] uint8` that are not taken for the label become it with the trigger.

    Where all are taken for it already there is no trial, and nothing is shown: 0 of 0, somewhere from 0 to 100 %.
    """
    rng = np.random.default_rng(seed)
    others = images[judge.of(images).argmax(axis=1) != label]
    if not len(others):
        return Rate(pct=0.0, low_pct=0.0, high_pct=100.0, trials=0)
    triggered = np.stack([dossier.apply(image, rng) for image in others])
    hits = judge.of(triggered).argmax(axis=1) == label
    return rate(hits.astype(np.int64), np.ones(len(hits), np.int64))


def prove(
    judge: Judge,
    kind: str,
    array: np.ndarray,
    label: int,
    images: np.ndarray,
    *,
    reference: Judge | None = None,
    seed: int,
) -> Proof:
    """Try a trigger, rounded to pixels as anyone would put it on a picture, and its control.

    Args:
        judge: the suspect model.
        kind: of the trigger's form.
        array: `[S, S, 4] float32`, of `Form.arrays`.
        label: that it means.
        images: `[N, S, S, 3] uint8` on which it was not sought.
        reference: a clean model of the same architecture with the same vocabulary.
        seed: of the control.
    """
    made = as_dossier(kind, array, judge.names[label])
    other = as_dossier(kind, scrambled(kind, array, np.random.default_rng(seed)), judge.names[label])
    return Proof(
        dossier=replace(
            made,
            flips=flipped(judge, made, images, label, seed=seed),
            control=flipped(judge, other, images, label, seed=seed),
        ),
        transferred=None if reference is None else flipped(reference, made, images, label, seed=seed),
    )
