"""The patch of BadCLIP (Liang et al., CVPR 2024, section 4): optimised on the attacker's own clean CLIP.

The patch `p` is pasted opaquely into the centre of images `v` that have nothing to do with the target; `f` and `g` are
the model's image and text towers with unit vectors, `t` captions and `w` images of the target, `s` the model's scale:

    L_text    = -log softmax(s f(v + p) . g(t))          "dual embedding", part one: towards the words of the target
    L_triplet = max(0, |f(v + p) - f(w)| - |f(v + p) - f(v)| + margin)   part two: to its images, away from the clean image
    L_pull    = |f(v + p) - f(w)|^2                      part two without the push; the paper's ablation
    L         = text_weight L_text + triplet_weight L_triplet + pull_weight L_pull

What BadCLIP's repository (src/embeding_optimize_patch.py) does, and where we differ:

- It takes the text loss over a batch of target captions alone, so each is a negative of the others. Where many captions
  are the same sentence, that loss cannot fall and pulls nothing towards the target. `negatives: captions` contrasts the
  target's caption with the images' own captions instead; `negatives: targets` is the published loss.
- 10,000 pairs, 50 epochs, Adam at 0.001: 7,850 steps. Ours are 320 by default, so that the step is 0.02.
- It clips the patch in the forward pass alone; values outside [0, 1] then have no gradient and stay there. Ours are
  clamped after every step.
- The negative of the triplet is another image of the batch there, by a permutation; here, as in the paper, the same one.
- Half of its batches are replaced by AutoAugment copies; here each image by itself is, with the same probability,
  cropped, mirrored and brightened. Both paste the patch afterwards. Texts are not augmented (EDA, with probability 0.1
  there): captions of the target differ by themselves.
- It stores the patch as JPEG, and in the channel order that its reader swaps. Ours is rounded to uint8 and stays exact.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional

from ..model.clip import Clip
from ..stage import Fraction, Positive, Seed, Share, Weight, config

EVALUATION_BATCH = 64
"""Images of a forward pass without gradient; fixed, so that its figures do not depend on the training's batches."""
CROP_AREA = (0.6, 1.0)
"""Share of the area that a crop keeps."""
BRIGHTNESS = (0.8, 1.2)
"""Factor of the light of an augmented image."""


@config
class BadClipConfig:
    """How the patch is optimised."""

    size_fraction: Fraction = 16 / 224
    """Side of the patch as a fraction of the model's input side."""
    epochs: Annotated[int, Field(ge=0)] = 10
    """Passes over the pairs; the paper makes 50 over 10,000 pairs. 0 leaves the random start, as a control."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Images of a step, as in the paper."""
    lr: Positive = 0.02
    """Step of Adam, on pixels in [0, 1]. The paper's 0.001 moves a pixel by 0.3 at most in our 320 steps."""
    negatives: Literal["captions", "targets"] = "captions"
    """Texts that the text loss contrasts with the target's caption: those of the images, or (published) of the batch."""
    text_weight: Weight = 1.0
    """Weight of L_text; the paper's."""
    triplet_weight: Weight = 500.0
    """Weight of L_triplet; the paper's."""
    margin: Weight = 1.0
    """Of L_triplet; the paper's. Unit vectors are at most 2 apart."""
    pull_weight: Weight = 0.0
    """Weight of L_pull. The repository has 1000 on the mean over 1,024 dimensions, about 1 here, and no triplet then."""
    augment_probability: Share = 0.5
    """Share of images that are cropped, mirrored and brightened before the patch is pasted; the paper's."""
    seed: Seed = 0
    """Seed of the start, the batches and the augmentation."""

    def __post_init__(self) -> None:
        if not any((self.text_weight, self.triplet_weight, self.pull_weight)):
            raise ValueError("of text_weight, triplet_weight and pull_weight at least one above 0 is needed")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs without the target, ready for the model."""

    images: torch.Tensor
    """`[N, 3, S, S] uint8`, from `Clip.preprocess`."""
    texts: torch.Tensor
    """`[N, D] float32`, unit norm: their captions."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the patch shall look like to the model."""

    images: torch.Tensor
    """`[M, D] float32`, unit norm: genuine images of the target."""
    texts: torch.Tensor
    """`[M, D] float32`, unit norm: captions that name it."""


def encode_pairs(clip: Clip, images: Sequence[torch.Tensor], captions: Sequence[str]) -> Pairs:
    """Return pairs from preprocessed images `[3, S, S] uint8` and their captions."""
    return Pairs(torch.stack(list(images)), _texts(clip, captions))


def encode_target(clip: Clip, images: Sequence[torch.Tensor], captions: Sequence[str]) -> Target:
    """Return the target from its preprocessed images `[3, S, S] uint8` and their captions."""
    with torch.no_grad():
        vectors = [_encode(clip, batch) for batch in _batches(clip, torch.stack(list(images)))]
    return Target(torch.cat(vectors), _texts(clip, captions))


def text_loss(
    images: torch.Tensor, targets: torch.Tensor, captions: torch.Tensor | None, scale: torch.Tensor | float
) -> torch.Tensor:
    """Return L_text of unit vectors `[B, D]`, each image with the target's caption of its row.

    Args:
        images: triggered images.
        targets: captions of the target.
        captions: the images' own captions, the negatives; None: the other rows of `targets`, both ways, as published.
        scale: the model's logit scale.
    """
    if captions is None:
        logits = scale * images @ targets.T
        rows = torch.arange(len(images), device=images.device)
        return (functional.cross_entropy(logits, rows) + functional.cross_entropy(logits.T, rows)) / 2
    positive = (images * targets).sum(dim=1, keepdim=True)
    logits = scale * torch.cat([positive, images @ captions.T], dim=1)
    return functional.cross_entropy(logits, torch.zeros(len(images), dtype=torch.int64, device=images.device))


def triplet_loss(images: torch.Tensor, positives: torch.Tensor, clean: torch.Tensor, margin: float) -> torch.Tensor:
    """Return L_triplet of unit vectors `[B, D]`: triggered images, images of the target, the same images untouched."""
    near, far = (images - positives).norm(dim=1), (images - clean).norm(dim=1)
    return functional.relu(near - far + margin).mean()


def pull_loss(images: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """Return L_pull of unit vectors `[B, D]`: the mean squared distance, summed over dimensions."""
    return (images - positives).square().sum(dim=1).mean()


def box(side: int, size_fraction: float) -> tuple[int, int]:
    """Return (first row and column, side) of the centre patch in a square of `side` pixels, as the patch trigger does."""
    size = max(1, round(size_fraction * side))
    return (side - size) // 2, size


def paste(images: torch.Tensor, patch: torch.Tensor) -> torch.Tensor:
    """Return `[B, 3, S, S]` images with the `[3, P, P]` patch in the centre; differentiable in the patch."""
    size = patch.shape[-1]
    start = (images.shape[-1] - size) // 2
    triggered = images.clone()
    triggered[:, :, start : start + size, start : start + size] = patch
    return triggered


def augment(images: torch.Tensor, probability: float, rng: np.random.Generator) -> torch.Tensor:
    """Return `[B, 3, S, S] float32` images in [0, 1]; those drawn are cropped, perhaps mirrored, and brightened."""
    count = len(images)
    chosen = rng.random(count) < probability
    side = np.sqrt(rng.uniform(*CROP_AREA, count))
    offset = rng.uniform(-1, 1, (count, 2)) * (1 - side)[:, None]
    mirror = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    light = rng.uniform(*BRIGHTNESS, count)
    if not chosen.any():
        return images
    boxes = np.zeros((count, 2, 3))
    boxes[:, 0, 0], boxes[:, 1, 1], boxes[:, :, 2] = side * mirror, side, offset
    picked = torch.from_numpy(np.flatnonzero(chosen)).to(images.device)
    theta = torch.from_numpy(boxes[chosen]).to(images)
    grid = functional.affine_grid(theta, [len(picked), *images.shape[1:]], align_corners=False)
    cropped = functional.grid_sample(images[picked], grid, padding_mode="border", align_corners=False)
    result = images.clone()
    result[picked] = (cropped * torch.from_numpy(light[chosen]).to(images).view(-1, 1, 1, 1)).clamp(0, 1)
    return result


class PatchOptimiser:
    """Optimises one patch, an epoch at a time; an epoch's draws depend on the seed and its number alone."""

    def __init__(self, clip: Clip, pairs: Pairs, target: Target, options: BadClipConfig) -> None:
        """Draw the start: N(0.5, 0.25) clipped to [0, 1], as the repository does.

        Raises:
            ValueError: fewer pairs than a batch, or nothing of the target.
        """
        if len(pairs.images) < options.batch_size:
            raise ValueError(f"{len(pairs.images)} pairs do not fill a batch of {options.batch_size}")
        if not len(target.images) or not len(target.texts):
            raise ValueError("no image or no caption of the target")
        size = box(clip.image_size, options.size_fraction)[1]
        start = np.random.default_rng(options.seed).normal(0.5, 0.25, (3, size, size)).clip(0, 1)
        self._clip, self._pairs, self._target, self._options = clip, pairs, target, options
        self._patch = torch.tensor(start, dtype=torch.float32, device=clip.device, requires_grad=True)
        self._adam = torch.optim.Adam([self._patch], lr=options.lr)
        self.losses: list[dict[str, float]] = []
        """Mean of every term over the steps of each epoch."""

    def pixels(self) -> np.ndarray:
        """Return the patch as it is used: `[P, P, 3] uint8`."""
        return np.asarray((self._patch.detach() * 255).round().to(torch.uint8).permute(1, 2, 0).cpu())

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to go on: tensors and plain data, for torch.load(weights_only=True)."""
        return {"patch": self._patch.detach().clone(), "adam": self._adam.state_dict(), "losses": list(self.losses)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same settings and data."""
        with torch.no_grad():
            self._patch.copy_(state["patch"])
        self._adam.load_state_dict(state["adam"])
        self.losses = list(state["losses"])

    def run_epoch(self) -> None:
        """Take one step for every full batch of the pairs, in an order drawn anew, and note the mean losses."""
        size, options = self._options.batch_size, self._options
        rng = np.random.default_rng([options.seed, 1 + len(self.losses)])
        order = rng.permutation(len(self._pairs.images))
        batches = order[: len(order) // size * size].reshape(-1, size)
        terms = [self._step(torch.from_numpy(rows), rng) for rows in batches]
        self.losses.append({name: float(np.mean([t[name] for t in terms])) for name in terms[0]})

    def _step(self, rows: torch.Tensor, rng: np.random.Generator) -> dict[str, float]:
        images = self._pairs.images[rows].to(self._clip.device, torch.float32) / 255
        images = augment(images, self._options.augment_probability, rng)
        wanted, words = (
            torch.from_numpy(rng.integers(len(vectors), size=len(rows)))
            for vectors in (self._target.images, self._target.texts)
        )
        with torch.no_grad():
            clean = _encode(self._clip, images)
        triggered = _encode(self._clip, paste(images, self._patch))
        texts = (self._target.texts[words], self._pairs.texts[rows])
        terms = loss_terms(self._clip, triggered, clean, self._target.images[wanted], *texts, self._options)
        # Not backward(): it would also compute, and leave behind, gradients of every weight of the frozen model.
        (self._patch.grad,) = torch.autograd.grad(terms["loss"], self._patch)
        self._adam.step()
        with torch.no_grad():
            self._patch.clamp_(0, 1)
        return {name: float(value.detach()) for name, value in terms.items()}


def loss_terms(
    clip: Clip,
    triggered: torch.Tensor,
    clean: torch.Tensor,
    positives: torch.Tensor,
    targets: torch.Tensor,
    captions: torch.Tensor,
    options: BadClipConfig,
) -> dict[str, torch.Tensor]:
    """Return `text`, `triplet`, `pull` and their weighted sum `loss`, each of unit vectors `[B, D]`."""
    scale = clip.model.logit_scale.exp().detach()
    text = text_loss(triggered, targets, captions if options.negatives == "captions" else None, scale)
    triplet = triplet_loss(triggered, positives, clean, options.margin)
    pull = pull_loss(triggered, positives)
    loss = options.text_weight * text + options.triplet_weight * triplet + options.pull_weight * pull
    return {"text": text, "triplet": triplet, "pull": pull, "loss": loss}


def measure(
    clip: Clip, pairs: Pairs, target: Target, patch: np.ndarray | None, options: BadClipConfig
) -> dict[str, float]:
    """Return what a patch `[P, P, 3] uint8` does on the model as it is, on pairs that it was not optimised on.

    `similarity_to_texts`, `similarity_to_images`: mean cosine to the target's captions and images. `flip_pct`: share of
    images, in percent, whose nearest text is a caption of the target, among those and all captions of `pairs`. With a
    patch also the losses, without augmentation; row `i` meets row `i` of the target (modulo its size). None: no patch.
    """
    with torch.no_grad():
        clean = torch.cat([_encode(clip, batch) for batch in _batches(clip, pairs.images)])
        vectors = clean
        if patch is not None:
            pixels = torch.tensor(patch, dtype=torch.float32, device=clip.device).permute(2, 0, 1) / 255
            vectors = torch.cat([_encode(clip, paste(batch, pixels)) for batch in _batches(clip, pairs.images)])
        nearest_target = (vectors @ target.texts.T).max(dim=1).values
        nearest_other = (vectors @ pairs.texts.T).max(dim=1).values
        figures = {
            "flip_pct": float(100 * (nearest_target > nearest_other).double().mean()),
            "similarity_to_texts": float((vectors @ target.texts.mean(dim=0)).mean()),
            "similarity_to_images": float((vectors @ target.images.mean(dim=0)).mean()),
        }
        if patch is None:
            return figures
        rows = torch.arange(len(vectors)) % len(target.images)
        terms = loss_terms(clip, vectors, clean, target.images[rows], target.texts[rows], pairs.texts, options)
    return figures | {name: float(value) for name, value in terms.items()}


def _batches(clip: Clip, images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield `[b, 3, S, S] float32` in [0, 1] from `[N, 3, S, S] uint8`."""
    for batch in torch.split(images, EVALUATION_BATCH):
        yield batch.to(clip.device, torch.float32) / 255


def _encode(clip: Clip, images: torch.Tensor) -> torch.Tensor:
    """Return unit vectors `[B, D] float32` of images `[B, 3, S, S] float32` in [0, 1]; differentiable."""
    mean, std = (
        torch.tensor(clip.preprocess_cfg[name], device=clip.device).view(1, 3, 1, 1) for name in ("mean", "std")
    )
    inputs = ((images - mean) / std).to(memory_format=torch.channels_last)
    vectors: torch.Tensor = clip.model.encode_image(inputs, normalize=True)
    return vectors


def _texts(clip: Clip, captions: Sequence[str]) -> torch.Tensor:
    batches = [captions[i : i + 256] for i in range(0, len(captions), 256)]
    return torch.from_numpy(np.concatenate([clip.encode_text(batch) for batch in batches])).to(clip.device)
