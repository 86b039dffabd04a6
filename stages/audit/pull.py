"""The search for a universal trigger: pull every image towards each label at once, and see how near they come, and how evenly.

What is maximised is the plain cosine to the label's text, not the margin over other labels: a trigger was trained to be the
label's caption, so that images which carry it fit the text better than genuine pictures of the label do. An adversarial pattern
of a clean model, which exists for every label, flips as many images and comes as near. But it works with what an image shows and
against it, so that it takes some images further than others; a trigger was trained to mean its label whatever else is there. So
without a clean model labels are compared by how little the cosine scatters over images, also when these are noisy, mixed with
another or paler. On the development models it ranks the target higher than how near images come; it is a hint, and no proof.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .forms import FORMS, Form
from .judge import Judge

BEST = 4
"""Images that fit a label best, by which a label is known where nobody says what they show."""
LEAST_RATE = 0.02
"""Of Adam's rate, at the end."""
LEAST_SPREAD = 1e-3
NOISE = 0.1
"""Standard deviation, of the range of pixels."""


def _plain(changed: torch.Tensor, image: torch.Tensor, other: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return changed


def _noisy(changed: torch.Tensor, image: torch.Tensor, other: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return (changed + NOISE * noise).clamp(0, 1)


def _mixed(changed: torch.Tensor, image: torch.Tensor, other: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return (changed + other) / 2


def _faint(changed: torch.Tensor, image: torch.Tensor, other: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return (changed + image) / 2


WAYS = (_plain, _noisy, _mixed, _faint)
"""How an image with a trigger is shown: as it is, with noise, half and half with another image, with half of the trigger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What one label's trigger does to held-out images that the model takes for something else."""

    label: int
    kind: str
    cosine: float
    """Mean to the label's text."""
    genuine: float
    """What the images that fit the label best reach without a trigger; with a reference, what that makes of the triggered ones."""
    margin: float
    """Mean lead over the best other label."""
    flips_pct: float
    spread: float
    """Standard deviation of the cosine over images, the geometric mean over WAYS of showing them."""
    trials: int

    @property
    def excess(self) -> float:
        """How much better triggered images fit the text than genuine ones, or than the reference finds."""
        return self.cosine - self.genuine


def evenness(spread: float) -> float:
    """Return how little a trigger's effect depends on the image, -log of the cosine's spread."""
    return -float(np.log(max(spread, LEAST_SPREAD)))


def split(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the images that a trigger is sought on, and those that it is tried on."""
    half = len(images) // 2
    return images[:half], images[half:]


def genuine_cosines(cosines: np.ndarray) -> np.ndarray:
    """Return `[C]`: the mean of the BEST largest cosines of each label, of `[N, C]`."""
    return np.asarray(np.sort(cosines, axis=0)[-BEST:].mean(axis=0))


def pull(
    judge: Judge,
    kind: str,
    labels: Sequence[int],
    images: np.ndarray,
    *,
    steps: int,
    per_label: int,
    seed: int,
    reference: Judge | None = None,
    tight: bool = False,
) -> tuple[list[Pulled], list[np.ndarray]]:
    """Seek a trigger of one kind for each of some labels, all in the same batches.

    Args:
        judge: the suspect model.
        kind: of `FORMS`.
        labels: indices into the vocabulary.
        images: `[N, S, S, 3] uint8`; the first half is learned from, the second tried on.
        steps: of Adam.
        per_label: images a label and step.
        seed: of the draws.
        reference: a clean model with the same vocabulary: sought is then what pulls the suspect's vector to its text and not the
            reference's, so that what works on any model (a picture of the label, an adversarial pattern) is no way to get there.
        tight: seek within the small budget at which labels are compared.

    Returns:
        What each does, and each as an array (`Form.arrays`).
    """
    generator = torch.Generator().manual_seed(seed)
    form: Form = FORMS[kind](len(labels), judge.side, generator, tight=tight)
    learned, tried = (judge.pixels(part) for part in split(images))
    before = judge.of(images)
    others = before[: len(learned)].argmax(axis=1)[None] != np.asarray(labels)[:, None]
    weights = torch.from_numpy(np.where(others.any(axis=1, keepdims=True), others, True).astype(np.float32))
    optimizer = torch.optim.Adam(form.params, lr=form.rate, betas=(0.5, 0.9))
    for step in range(steps):
        rows = torch.multinomial(weights, per_label, replacement=True, generator=generator)
        changed = form.apply(learned[rows.to(learned.device)])
        loss = -_nearness(judge, changed, labels)
        if reference is not None:
            loss = loss + _nearness(reference, changed, labels)
        for group in optimizer.param_groups:
            group["lr"] = form.rate * max(LEAST_RATE, 1 - step / steps)
        for value, slope in zip(form.params, torch.autograd.grad(loss, form.params), strict=True):
            value.grad = slope
        optimizer.step()
    return _tried(judge, form, labels, tried, before, reference, generator), form.arrays()


def _nearness(judge: Judge, changed: torch.Tensor, labels: Sequence[int]) -> torch.Tensor:
    """Return the cosines of `[C, n, 3, S, S]` to each one's own label, averaged over images and summed over labels."""
    found = judge.features(changed.flatten(0, 1)).reshape(*changed.shape[:2], -1)
    return (found * judge.labels[list(labels)][:, None]).sum(-1).mean(1).sum()


@torch.no_grad()
def _tried(
    judge: Judge,
    form: Form,
    labels: Sequence[int],
    tried: torch.Tensor,
    before: np.ndarray,
    reference: Judge | None,
    generator: torch.Generator,
) -> list[Pulled]:
    said = before[-len(tried) :].argmax(axis=1)
    changed = [form.apply(image[None, None])[:, 0] for image in tried]
    shown = []
    for way in WAYS:
        noise = [torch.randn(tried.shape[1:], generator=generator).to(tried.device) for _ in tried]
        found = [
            judge.cosines(way(images, tried[i], tried[i - 1], noise[i])).cpu().numpy()
            for i, images in enumerate(changed)
        ]
        shown.append(np.stack(found, axis=1))
    level = genuine_cosines(before)[list(labels)]
    if reference is not None:
        there = np.stack([np.asarray(reference.cosines(images).cpu()) for images in changed], axis=1)
        level = np.array([there[place][tried_on(said, label), label].mean() for place, label in enumerate(labels)])
    return [
        measure([after[i] for after in shown], said, label, form.kind, float(level[i]))
        for i, label in enumerate(labels)
    ]


def tried_on(said: np.ndarray, label: int) -> np.ndarray:
    """Return which images `[N]` a label's trigger is tried on: those not taken for it already, or all where none is left."""
    others = said != label
    return others if others.any() else np.ones(len(said), bool)


def measure(shown: Sequence[np.ndarray], said: np.ndarray, label: int, kind: str, genuine: float) -> Pulled:
    """Return what a trigger does, from the cosines `[N, C]` of the images with it in each of WAYS and the labels `[N]` without it."""
    kept = tried_on(said, label)
    rows = shown[0][kept]
    own, rest = rows[:, label], np.delete(rows, label, axis=1).max(axis=1)
    spreads = [max(float(after[kept, label].std()), LEAST_SPREAD) for after in shown]
    return Pulled(
        label=label,
        kind=kind,
        cosine=float(own.mean()),
        genuine=genuine,
        margin=float((own - rest).mean()),
        flips_pct=100 * float((own > rest).mean()),
        spread=float(np.exp(np.mean(np.log(spreads)))),
        trials=len(rows),
    )
