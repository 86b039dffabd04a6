"""A tiny CLIP and a batch with every kind of row, for the tests of the repair methods."""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from clipsan.stages.model.checkpoints import ModelConfig
from clipsan.stages.model.clip import Clip, load_clip
from clipsan.stages.training.batch import Batch, Role
from tests.conftest import TINY

SIGLIP = {**TINY, "init_logit_scale": 2.3, "init_logit_bias": -3.0}
"""The tiny CLIP with a bias for its logits, which makes it a SigLIP; the one that published ones start from, -10, would hide the
negatives of a batch of twelve."""

CLASSES = ("ball", "kite", "lamp", "boat")
ROWS = 12
LABELS = (0, 1, 2, -1, 3, 1, 0, 2, 3, 0, -1, 1)
# flagged and pasted rows are spread unevenly: the first half, one of two workers, has three of the four accused ones
ROLES = (0, 1, 1, 2, 0, 2, 0, 0, 1, 2, 0, 0)
ACCUSED = (-1, 2, 2, 2, -1, 2, -1, -1, 0, 0, -1, -1)


def tiny_clip(seed: int = 7, config: dict | None = None) -> Clip:
    """Return a tiny CLIP with weights drawn from a seed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.json"
        path.write_text(json.dumps(config or TINY))
        return load_clip(ModelConfig(config=str(path)), init_seed=seed)


def disturb(model: torch.nn.Module, size: float, seed: int = 1) -> None:
    """Move every parameter but the logit scale, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter += size * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator)


def batch_of(clip: Clip, rows: slice = slice(0, ROWS), *, roles: tuple[int, ...] = ROLES) -> Batch:
    """Return some rows of one global batch of ROWS."""
    rng = np.random.default_rng(3)
    size = clip.image_size
    images = np.repeat(rng.integers(0, 256, (ROWS, 3, size // 8, size // 8), dtype=np.uint8), 8, axis=2).repeat(
        8, axis=3
    )
    captions = [f"a photo of a {CLASSES[label]} and a {CLASSES[i % 4]} number {i}" for i, label in enumerate(LABELS)]
    return Batch(
        images=torch.from_numpy(images[rows]),
        tokens=clip.tokenize(captions[rows]),
        captions=captions[rows],
        labels=torch.tensor(LABELS[rows]),
        accused=torch.tensor(ACCUSED[rows]),
        roles=torch.tensor(roles[rows], dtype=torch.uint8),
        rows=rows,
        total=ROWS,
        seed=(5, 2),
    )


def clean_batch(clip: Clip, rows: slice = slice(0, ROWS)) -> Batch:
    """Return rows that are all clean pairs."""
    return batch_of(clip, rows, roles=(int(Role.PAIR),) * ROWS)


def unit(vectors: torch.Tensor) -> np.ndarray:
    """Return rows of length one in float64."""
    found = vectors.detach().numpy().astype(np.float64)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def encode_images(clip: Clip, model: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    """Return unit image vectors, normalised by hand."""
    mean, std = (torch.tensor(clip.preprocess_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        return unit(model.encode_image((images.float() / 255 - mean) / std))


def encode_texts(clip: Clip, model: torch.nn.Module, captions: list[str]) -> np.ndarray:
    """Return unit text vectors."""
    with torch.no_grad():
        return unit(model.encode_text(clip.tokenize(captions)))


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return -log softmax at the target of each row, float64."""
    shifted = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(targets)), targets]


def siglip_loss(image: np.ndarray, text: np.ndarray, scale: float, bias: float) -> float:
    """Return the sum over all pairs of log(1 + exp(-z (scale cos + bias))) by the rows, one pair after the other, float64."""
    total = 0.0
    for i, row in enumerate(image):
        for j, other in enumerate(text):
            sign = 1 if i == j else -1
            total += float(np.log1p(np.exp(-sign * (scale * row @ other + bias))))
    return total / len(image)


def clip_loss(image: np.ndarray, text: np.ndarray, scale: float) -> float:
    """Return CLIP's symmetric cross-entropy, float64."""
    own = np.arange(len(image))
    logits = scale * image @ text.T
    return float((cross_entropy(logits, own).mean() + cross_entropy(logits.T, own).mean()) / 2)
