"""Figures of a model under attack, from its predictions on clean and on triggered images.

The attack success rate is the share of triggered images that are taken for the target. By default it leaves out the
images whose class is the target, because these count as successes of an attack that does nothing. Accuracy under trigger
is another figure: the share of triggered images that keep their true class (CleanCLIP's zero-shot code returns it in
place of the ASR).

An attack may have several strands, each a trigger with its target. Every image is then tried with each of them; the
figures of the attack pool all trials, and those of a strand are listed beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .figures import Figure, count, rate

TOP_K = 5

Convention = Literal["exclude_target", "keep_target"]


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
    """`[N, S] int64`, predicted class of the image with each strand's trigger (and the text key); None: no attack."""
    image_key: np.ndarray | None = None
    """`[N, S] int64`, the same without the text key; None: the attack has none."""
    text_key: np.ndarray | None = None
    """`[N] int64`, predicted class of the clean image with the text key; None: the attack has none."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What the attack wants, in classes."""

    targets: Sequence[int]
    """Target class of each strand."""
    names: Sequence[str]
    """Name of each strand, for the table; all different."""
    convention: Convention = "exclude_target"
    """Whether images of a strand's target class count towards its ASR."""
    victim: int | None = None
    """Only images of this class count towards the ASR; None: of any."""

    def counted(self, labels: np.ndarray) -> np.ndarray:
        """Return `[N, S] bool`: the images that count towards each strand's ASR.

        Raises:
            ValueError: a strand is left without an image.
        """
        targets = np.asarray(self.targets)
        keep = np.ones((len(labels), len(targets)), bool)
        if self.victim is not None:
            keep &= (labels == self.victim)[:, None]
        if self.convention == "exclude_target":
            keep &= labels[:, None] != targets
        if not keep.any(axis=0).all():
            whose = "of another class than the target" if self.victim is None else "of the victim's class"
            raise ValueError(f"the attack success rate needs at least one image {whose}")
        return keep


def clean_figures(found: Predictions, *, prefix: str = "", set: str = "test") -> list[Figure]:
    """Return `images`, clean_accuracy_pct and clean_accuracy_top5_pct; `prefix` goes before each name."""
    return [
        count(f"{prefix}images", len(found.labels), set=set),
        rate(f"{prefix}clean_accuracy", found.clean == found.labels, set=set),
        rate(f"{prefix}clean_accuracy_top{TOP_K}", found.clean_rank < TOP_K, set=set),
    ]


def attack_figures(found: Predictions, aim: Aim, *, prefix: str = "", set: str = "test") -> list[Figure]:
    """Return the figures of an attack, in percent with 95 % intervals.

    asr_pct: triggered images taken for the target. false_target_pct: the same images without trigger and key taken for
    it, the floor that the ASR must be compared with. accuracy_under_trigger_pct: triggered images, of every class, that
    keep their true class. attacked_images: how many images the first two are shares of. With a text key also
    asr_image_key_pct and asr_text_key_pct: the ASR of either key alone. With several strands each figure comes once for
    all and once a strand.

    Raises:
        ValueError: no predictions on triggered images, or no image that counts.
    """
    if found.triggered is None:
        raise ValueError("there are no predictions on triggered images")
    counted = aim.counted(found.labels)
    targets = np.asarray(aim.targets)
    hits = {"asr": found.triggered == targets, "false_target": found.clean[:, None] == targets}
    if found.image_key is not None:
        hits["asr_image_key"] = found.image_key == targets
    if found.text_key is not None:
        hits["asr_text_key"] = found.text_key[:, None] == targets
    kept = found.triggered == found.labels[:, None]
    columns: list[tuple[str, slice]] = [("", slice(None))]
    if len(targets) > 1:
        columns += [(name, slice(i, i + 1)) for i, name in enumerate(aim.names)]
    figures: list[Figure] = []
    for strand, part in columns:
        trials = counted[:, part].sum(axis=1)
        figures.append(count(f"{prefix}attacked_images", int((trials > 0).sum()), strand=strand, set=set))
        for name, table in hits.items():
            won = (table & counted)[:, part].sum(axis=1)
            figures.append(rate(f"{prefix}{name}", won, trials, strand=strand, set=set))
        every = np.full(len(kept), kept[:, part].shape[1])
        own = kept[:, part].sum(axis=1)
        figures.append(rate(f"{prefix}accuracy_under_trigger", own, every, strand=strand, set=set))
    return figures
