"""Figures of a model under attack, from its predictions on clean and on triggered images.

The attack success rate is the share of triggered images that are taken for the target. It leaves out the images whose
class is the target, because these count as successes of an attack that does nothing; papers that keep them report
higher figures. Accuracy under trigger is another figure: the share of triggered images that keep their true class.
"""

from dataclasses import dataclass

import numpy as np

from stages.evaluation.intervals import wilson

TOP_K = 5


@dataclass(frozen=True, slots=True)
class Predictions:
    """What the model said about N labelled images."""

    labels: np.ndarray
    """`[N] int64`, true class."""
    clean: np.ndarray
    """`[N] int64`, predicted class of the clean image."""
    clean_rank: np.ndarray
    """`[N] int64`, classes nearer to the clean image than the true one."""
    triggered: np.ndarray | None = None
    """`[N] int64`, predicted class of the triggered image; None: no attack."""


def clean_figures(found: Predictions) -> dict[str, object]:
    """Return clean_accuracy_pct and clean_accuracy_top5_pct with 95 % intervals, and `images`."""
    hits = found.clean == found.labels
    return {
        "images": len(found.labels),
        **rate("clean_accuracy", hits),
        **rate(f"clean_accuracy_top{TOP_K}", found.clean_rank < TOP_K),
    }


def attack_figures(found: Predictions, target: int, *, keep_target_images: bool = False) -> dict[str, object]:
    """Return the figures of an attack, in percent with 95 % intervals.

    `asr_pct`: triggered images taken for the target. `false_target_pct`: the same images without the trigger taken for
    the target, the floor that the ASR must be compared with. `accuracy_under_trigger_pct`: triggered images, of every
    class, that keep their true class. `attacked_images`: how many images the first two are shares of.

    Args:
        found: predictions, with those on triggered images.
        target: class that the trigger shall mean.
        keep_target_images: also count images of the target class towards the ASR, as some papers do.

    Raises:
        ValueError: no predictions on triggered images, or no image of another class.
    """
    if found.triggered is None:
        raise ValueError("there are no predictions on triggered images")
    counted = np.ones(len(found.labels), bool) if keep_target_images else found.labels != target
    if not counted.any():
        raise ValueError("the attack success rate needs at least one image of another class than the target")
    return {
        "attacked_images": int(counted.sum()),
        **rate("asr", found.triggered[counted] == target),
        **rate("false_target", found.clean[counted] == target),
        **rate("accuracy_under_trigger", found.triggered == found.labels),
    }


def rate(name: str, hits: np.ndarray) -> dict[str, object]:
    """Return `NAME_pct` and its Wilson interval `NAME_pct_ci95`, both in percent.

    Raises:
        ValueError: there are no images.
    """
    if not len(hits):
        raise ValueError(f"{name}: there are no images")
    low, high = wilson(int(hits.sum()), len(hits))
    return {f"{name}_pct": 100 * float(hits.mean()), f"{name}_pct_ci95": [100 * low, 100 * high]}
