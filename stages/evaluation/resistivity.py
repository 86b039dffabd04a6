"""Perturbation resistivity: how much of an image's feature survives a small perturbation (RVPT, arXiv 2412.20392).

PR(x, delta) = cos(f(x), f(x + delta)), a mean over images, for each layer. The probes need no trigger: Gaussian noise of
standard deviation .001, a 3x3 blur of variance 5, colour jitter (brightness .5, hue .3), a horizontal flip. Low values mean
that small changes reach far: a health figure for a suspect model. Where an attack is known its trigger is a probe more.

Pixels are perturbed as real numbers in [0, 1] at the model's input size and not rounded to 256 levels, which noise of .001
would not survive. A layer's feature is the mean over its positions (the paper takes the class token, which convolutional
towers do not have), projected as in Clip.encode_images where it is wide.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torchvision.transforms import functional as F

from ..model.clip import Clip
from .figures import Figure, mean_cosine

NOISE_SD = 0.001
BLUR_SIZE, BLUR_VARIANCE = 3, 5.0
BRIGHTNESS, HUE = 0.5, 0.3
"""Factors are drawn from 1 +- BRIGHTNESS, shifts of the hue (in turns) from +- HUE."""

EMBEDDING = "embedding"
"""Where the model's unit vector is meant, beside the names of layers."""


def noise(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return `[3, S, S]` pixels in [0, 1] plus Gaussian noise, not clipped."""
    return pixels + torch.from_numpy(rng.normal(0, NOISE_SD, tuple(pixels.shape)).astype(np.float32))


def blur(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return the pixels under a Gaussian blur; nothing is drawn."""
    blurred: torch.Tensor = F.gaussian_blur(pixels, [BLUR_SIZE, BLUR_SIZE], [BLUR_VARIANCE**0.5] * 2)
    return blurred


def colour_jitter(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return the pixels with another brightness, clipped to [0, 1], and then another hue."""
    brighter = F.adjust_brightness(pixels, float(rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS)))
    shifted: torch.Tensor = F.adjust_hue(brighter, float(rng.uniform(-HUE, HUE)))
    return shifted


def flip(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return the mirrored pixels; nothing is drawn."""
    return pixels.flip(-1)


PROBES: dict[str, Callable[[torch.Tensor, np.random.Generator], torch.Tensor]] = {
    "noise": noise,
    "blur": blur,
    "colour_jitter": colour_jitter,
    "flip": flip,
}
"""The probes that need no trigger."""


def resistivity(
    clip: Clip,
    images: torch.Tensor,
    triggered: Sequence[torch.Tensor],
    draws: Sequence[int],
    layers: Sequence[str],
) -> dict[str, dict[str, np.ndarray]]:
    """Return probe -> layer -> `[B] float64`, the resistivity of each image.

    Args:
        clip: the model.
        images: `[B, 3, S, S] uint8`, from its `preprocess`.
        triggered: the same images with each strand's trigger; probes "trigger.0", "trigger.1", ...
        draws: one seed an image, so that its probes do not depend on the rest of the batch.
        layers: blocks of the image tower, beside EMBEDDING.
    """
    base = _features(clip, images, layers)
    pixels = images.float() / 255
    changed: dict[str, torch.Tensor] = {}
    for number, (name, probe) in enumerate(PROBES.items()):
        rngs = [np.random.default_rng([draw, number]) for draw in draws]
        # encoders take pixels on a scale of 255
        changed[name] = torch.stack([probe(image, rng) for image, rng in zip(pixels, rngs, strict=True)]) * 255
    changed |= {f"trigger.{i}": marked for i, marked in enumerate(triggered)}
    found = {name: _features(clip, perturbed, layers) for name, perturbed in changed.items()}
    return {name: {layer: cosines(base[layer], features[layer]) for layer in base} for name, features in found.items()}


def resistivity_figures(found: dict[str, dict[str, np.ndarray]], triggers: Sequence[str] = ()) -> list[Figure]:
    """Return resistivity_PROBE of every probe and layer (column `set`), and `resistivity`, the mean over PROBES.

    Args:
        found: probe -> layer -> `[N]`, over all images.
        triggers: names of the strands whose probes are called `trigger.0`, `trigger.1`, ...
    """
    figures = []
    for layer in next(iter(found.values())):
        where = "test" if layer == EMBEDDING else layer
        means = np.mean([found[name][layer] for name in PROBES], axis=0)
        figures.append(mean_cosine("resistivity", means, set=where))
        figures += [mean_cosine(f"resistivity_{name}", found[name][layer], set=where) for name in PROBES]
        marked = [found[f"trigger.{i}"][layer] for i in range(len(triggers))]
        if marked:
            figures.append(mean_cosine("resistivity_trigger", np.mean(marked, axis=0), set=where))
        if len(marked) > 1:
            figures += [
                mean_cosine("resistivity_trigger", values, strand=name, set=where)
                for name, values in zip(triggers, marked, strict=True)
            ]
    return figures


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the cosine of each row with its counterpart, `[B] float64`; 0 where a row is zero."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(axis=1)
    return np.asarray(np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0))


def _features(clip: Clip, images: torch.Tensor, layers: Sequence[str]) -> dict[str, np.ndarray]:
    unit, features = clip.encode_images(images, layers)
    return features | {EMBEDDING: unit}
