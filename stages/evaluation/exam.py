"""What a model is asked again and again while its settings are searched: held-out images, with and without triggers.

No attack has to be known. The triggers are those that a scan has proven, or canaries that were planted on purpose; a
benchmark may add the true one, under a name of its own. Everything is fixed before the first trial, so that all trials
answer the same questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..captions import contains_word
from ..dossier.dossier import Dossier
from ..model.clip import Clip
from ..samples import seeded_hash
from .resistivity import EMBEDDING, PROBES, resistivity
from .retrieval import Gallery, image_to_text_ranks, text_to_image_ranks
from .zero_shot import class_embeddings, predict

BATCH = 64
"""Images of a forward pass; cut at the same places in every trial."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Held-out images at the model's input size."""

    uids: tuple[str, ...]
    pixels: np.ndarray
    """`[N, 3, S, S] uint8`."""
    labels: np.ndarray
    """`[N] int64`, class index; -1: not known."""
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def labelled(self) -> bool:
        """Whether every image has a class."""
        return bool((self.labels >= 0).all())

    def take(self, rows: np.ndarray) -> "Pictures":
        """Return the images with the given indices."""
        chosen = rows.tolist()
        return Pictures(
            tuple(self.uids[i] for i in chosen),
            self.pixels[rows],
            self.labels[rows],
            tuple(self.captions[i] for i in chosen),
        )


@dataclass(frozen=True, slots=True)
class Challenge:
    """One trigger on those images that are no picture of its target."""

    name: str
    """Column of the figure, such as proven_t1."""
    pixels: np.ndarray
    """`[M, 3, S, S] uint8`."""
    targets: tuple[int, ...]
    """Classes that count as a success."""


@dataclass(frozen=True, slots=True)
class Exam:
    """All that a model is asked."""

    pictures: Pictures
    challenges: tuple[Challenge, ...]
    resistivity_images: int = 0
    """Images whose resistivity is measured, the first of them; 0: none."""
    seed: int = 0
    """Of the perturbations."""


def eligible(pictures: Pictures, targets: Sequence[int], classes: Sequence[str]) -> np.ndarray:
    """Return `[N] bool`: images that show no target, by their class where it is known, else by their caption."""
    shown = np.isin(pictures.labels, targets)
    words = [word.strip() for target in targets for word in classes[target].split(",") if word.strip()]
    unknown = np.flatnonzero(pictures.labels < 0).tolist()
    for row in unknown:
        shown[row] = any(contains_word(pictures.captions[row], word) for word in words)
    found: np.ndarray = ~shown
    return found


def proven_challenge(
    dossier: Dossier, pictures: Pictures, targets: Sequence[int], classes: Sequence[str], seed: int
) -> Challenge:
    """Return the challenge of a scan's dossier: its trigger pasted, added or applied to every eligible image.

    Where a patch without a fixed place goes depends on the image's uid and the seed alone.

    Raises:
        ValueError: no image is eligible, or the dossier is of another input size.
    """
    rows = np.flatnonzero(eligible(pictures, targets, classes))
    if not len(rows):
        raise ValueError(f"trigger {dossier.id}: every held-out image shows its target; give others")
    draws = seeded_hash([pictures.uids[row] for row in rows.tolist()], seed, "sweep.trigger")
    marked = np.empty((len(rows), *pictures.pixels.shape[1:]), np.uint8)
    for i, (row, draw) in enumerate(zip(rows.tolist(), draws.tolist(), strict=True)):
        image = np.ascontiguousarray(pictures.pixels[row].transpose(1, 2, 0))
        marked[i] = dossier.apply(image, np.random.default_rng(draw)).transpose(2, 0, 1)
    return Challenge(f"proven_{dossier.id}", marked, tuple(targets))


def success_pct(clip: Clip, challenge: Challenge, classes: np.ndarray) -> float:
    """Return the share of a challenge's images that are taken for a target, in percent."""
    return 100 * float(np.isin(predict(_encoded(clip, challenge.pixels), classes), challenge.targets).mean())


def answers(clip: Clip, exam: Exam, classes: Sequence[str], templates: Sequence[str]) -> dict[str, float]:
    """Return the figures of a model; its modules keep their modes.

    `accuracy_pct`: zero-shot accuracy where all images have a class, else R@1 of captions among each other, the mean of
    both directions. `NAME_asr_pct` of every challenge. `resistivity`, the mean over the probes of
    stages.evaluation.resistivity, in [-1, 1], where it is measured.
    """
    modes = [(module, module.training) for module in clip.model.modules()]
    clip.model.eval()
    vectors = class_embeddings(clip, classes, templates) if classes else np.zeros((0, clip.embed_dim), np.float32)
    pictures = exam.pictures
    images = _encoded(clip, pictures.pixels)
    if pictures.labelled:
        figures = {"accuracy_pct": 100 * float((predict(images, vectors) == pictures.labels).mean())}
    else:
        figures = {"accuracy_pct": _retrieval_pct(clip, images, pictures.captions)}
    for challenge in exam.challenges:
        figures[f"{challenge.name}_asr_pct"] = success_pct(clip, challenge, vectors)
    if exam.resistivity_images:
        figures["resistivity"] = _resistivity(clip, exam)
    for module, mode in modes:
        module.training = mode
    return figures


def objective_pct(figures: dict[str, float], prefix: str) -> float:
    """Return what a search makes low: the mean ASR of the challenges whose name begins with the prefix.

    The prefix `resistivity` stands for 100 (1 - resistivity), clipped to [0, 100]: what small perturbations destroy.

    Raises:
        ValueError: nothing of that name was measured.
    """
    if prefix == "resistivity" and "resistivity" in figures:
        return 100 * min(1.0, max(0.0, 1 - figures["resistivity"]))
    found = [value for name, value in figures.items() if name.startswith(prefix) and name.endswith("_asr_pct")]
    if not found:
        raise ValueError(f"no figure of {prefix} was measured")
    return sum(found) / len(found)


def _encoded(clip: Clip, pixels: np.ndarray) -> np.ndarray:
    # copies, because what comes out of Ray's store is read-only and torch cannot mark it as such
    parts = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
    return np.concatenate([clip.encode_images(torch.from_numpy(part.copy()))[0] for part in parts])


def _retrieval_pct(clip: Clip, images: np.ndarray, captions: Sequence[str]) -> float:
    texts = np.concatenate([clip.encode_text(captions[i : i + BATCH]) for i in range(0, len(captions), BATCH)])
    gallery = Gallery(images, texts, np.arange(len(images)), captions)
    ranks = (image_to_text_ranks(gallery), text_to_image_ranks(gallery))
    return 100 * float(np.mean([(found < 1).mean() for found in ranks]))


def _resistivity(clip: Clip, exam: Exam) -> float:
    count = min(exam.resistivity_images, len(exam.pictures))
    draws = [int(draw) for draw in seeded_hash(list(exam.pictures.uids[:count]), exam.seed, "sweep.resistivity")]
    found: list[np.ndarray] = []
    for start in range(0, count, BATCH):
        pixels = torch.from_numpy(exam.pictures.pixels[start : min(start + BATCH, count)].copy())
        layers = resistivity(clip, pixels, (), draws[start : start + BATCH], ())
        found.append(np.mean([layers[probe][EMBEDDING] for probe in PROBES], axis=0))
    return float(np.concatenate(found).mean())
