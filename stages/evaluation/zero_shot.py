"""Zero-shot classification: class names through templates become a classifier (Radford et al. 2021, section 3.1.4)."""

from collections.abc import Sequence

import numpy as np

from ..model.clip import Clip

TEXT_BATCH = 256
"""Prompts of one forward pass."""


def synonyms(name: str) -> list[str]:
    """Return the names of one class from a comma-separated list, stripped, without empty ones and repetitions."""
    return list(dict.fromkeys(part.strip() for part in name.split(",") if part.strip()))


def class_prompts(names: Sequence[str], templates: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the prompts of some classes, every synonym in every template, and the class that each prompt is of.

    A class's vector is the mean of its prompts' unit vectors, brought back to unit norm. Whoever makes class vectors takes the
    prompts from here: the evaluation and the labeller (class_embeddings), and the objectives (Objective.class_features), which
    need gradients.

    Args:
        names: a class each, synonyms separated by commas.
        templates: sentences with {} where the name goes.

    Raises:
        ValueError: no class, a class without a name, no template, or a template without {}.
    """
    check_templates(templates)
    if not names:
        raise ValueError("there must be at least one class")
    prompts: list[str] = []
    owners: list[int] = []
    for index, name in enumerate(names):
        words = synonyms(name)
        if not words:
            raise ValueError(f"class {index} has no name")
        prompts += [template.replace("{}", word) for word in words for template in templates]
        owners += [index] * (len(words) * len(templates))
    return prompts, owners


def class_embeddings(clip: Clip, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """Return one unit vector a class, `[C, D] float32`.

    The mean of the unit vectors of every synonym in every template, brought back to unit norm, as OpenAI's notebook
    does it for templates; a class with more synonyms weighs no more.

    Raises:
        ValueError: of class_prompts.
    """
    prompts, owners = class_prompts(names, templates)
    # every template gives other texts, so batches are cut over all prompts at once
    vectors = np.concatenate(
        [clip.encode_text(prompts[start : start + TEXT_BATCH]) for start in range(0, len(prompts), TEXT_BATCH)]
    )
    sums = np.zeros((len(names), vectors.shape[1]), np.float64)
    np.add.at(sums, owners, vectors)
    return np.asarray(sums / np.linalg.norm(sums, axis=1, keepdims=True), np.float32)


def check_templates(templates: Sequence[str]) -> None:
    """Raise ValueError unless there is a template and each has {} in it."""
    if not templates or not all("{}" in template for template in templates):
        raise ValueError("templates needs at least one sentence, each with {} where the class name goes")


def find_class(names: Sequence[str], target: str) -> int:
    """Return the index of the class that has `target` among its synonyms, or is given as that list of them, in any case.

    Raises:
        ValueError: no class or several have it.
    """
    wanted = target.strip().casefold()
    found = [
        i for i, name in enumerate(names) if wanted in (word.strip().casefold() for word in (*synonyms(name), name))
    ]
    if len(found) != 1:
        raise ValueError(f"target {target!r} names {len(found)} of the {len(names)} classes; it must name one")
    return found[0]


def predict(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the index of the nearest class, `[N] int64`.

    Args:
        image: `[N, D] float32`, unit norm.
        classes: `[C, D] float32`, unit norm.
    """
    return np.asarray((image @ classes.T).argmax(axis=1))


def label_ranks(image: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how many classes are nearer than the true one, `[N] int64`; below k means a top-k hit.

    Ties count against the model, so a collapsed encoder, to which all classes are equally near, scores 0, and so does
    one that gives NaN.

    Args:
        image: `[N, D] float32`, unit norm.
        classes: `[C, D] float32`, unit norm.
        labels: `[N]` class indices.
    """
    scores = image @ classes.T
    own = scores[np.arange(len(labels)), labels][:, None]
    return np.asarray((~(scores < own)).sum(axis=1) - 1)
