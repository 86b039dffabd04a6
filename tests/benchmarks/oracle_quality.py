"""How well each segmentation oracle sees real photos: COCO photos with panoptic masks.

    python -m tests.benchmarks.oracle_quality                                   superpixels, litert, ground truth
    python -m tests.benchmarks.oracle_quality sam=sam_vit_b_01ec64.pth          others by the path of their weights
    python -m tests.benchmarks.oracle_quality deeplab=W.pth mobile_sam=mobile_sam.pt

The scale of the superpixels' segments was chosen on 25 of these 100 photos. The figures go to
tests/benchmarks/results/oracle.json. The photos are no part of the project: CLIPSAN_ASSETS names their folder.
"""

import argparse
import io
import json
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydantic
import torch
from PIL import Image

from clipsan.stages.oracle import OracleConfig, SuperpixelsConfig
from clipsan.stages.oracle.label_maps import VOC_NAMES
from clipsan.stages.oracle.litert import LiteRtConfig
from clipsan.stages.oracle.regions import Oracle, Region, RegionLimits
from tests.benchmarks.figures import ORACLE_COMMANDS
from tests.benchmarks.ground_truth import GroundTruth
from tests.benchmarks.photos import assets
from tests.benchmarks.results import Row, record

COMMAND = "python -m tests.benchmarks.oracle_quality"
SET = "coco-val128"
TFLITE = "deeplabv3_mnv2_pascal_quant.tflite"
LIMITS = RegionLimits()
FOUND_IOU = 0.5
"""A true segment counts as found from this intersection over union on."""


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo and its truth."""

    rgb: np.ndarray
    """`[H, W, 3] uint8`."""
    labels: np.ndarray
    """`[H, W] int64`: 0 nothing, k the k-th segment."""
    names: dict[int, str]
    """Segment -> its COCO category."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What an oracle made of one photo."""

    ious: list[float]
    """Of each true segment within the limits: the best region's intersection over union, 0 where there is none."""
    regions: int
    """Regions within the limits."""
    labels: frozenset[str]
    """Names that it gave to a region above the smallest area."""
    true_labels: frozenset[str]
    """Names of the true segments above the smallest area, of those that the oracles know."""
    shared: np.ndarray
    """`[21] int64`: pixels that oracle and truth give to each class."""
    either: np.ndarray
    """`[21] int64`: pixels that one of the two gives to it."""


def photos(path: Path, limit: int | None = None) -> Iterator[Photo]:
    """Yield the photos of a WebDataset file that have masks, in its order, at most `limit`."""
    members: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            stream = tar.extractfile(member)
            if stream is not None:
                members.setdefault(key, {})[kind] = stream.read()
    masked = [parts for parts in members.values() if "mask.png" in parts]
    for parts in masked[:limit]:
        segments = json.loads(parts["json"])["segments"]
        rgb = np.asarray(Image.open(io.BytesIO(parts["jpg"])).convert("RGB"))
        labels = np.asarray(Image.open(io.BytesIO(parts["mask.png"]))).astype(np.int64)
        yield Photo(rgb, labels, {segment["value"]: segment["category"] for segment in segments})


def look(found: Sequence[Region], photo: Photo) -> Seen:
    """Compare an oracle's regions with the truth."""
    area = np.bincount(photo.labels.ravel(), minlength=max(photo.names, default=0) + 1)
    share = area / photo.labels.size
    true = [k for k in photo.names if LIMITS.min_area <= share[k] <= LIMITS.max_area]
    kept = [region for region in found if LIMITS.min_area <= region.area <= LIMITS.max_area]
    best = np.zeros(len(area))
    for region in kept:
        shared = np.bincount(photo.labels[region.mask], minlength=len(area))
        best = np.maximum(best, shared / (int(region.mask.sum()) + area - shared))
    known = {name: number for number, name in enumerate(VOC_NAMES) if name}
    said, is_so = np.zeros((2, *photo.labels.shape), dtype=np.int64)
    for region in sorted(found, key=lambda region: region.quality):
        said[region.mask] = known.get(region.label or "", 0)
    for segment, name in photo.names.items():
        is_so[photo.labels == segment] = known.get(name, 0)
    judged = photo.labels > 0  # COCO's 0 means that nobody has said what is there
    size = len(VOC_NAMES)
    both = np.bincount(is_so[judged & (said == is_so)], minlength=size)
    union = np.bincount(said[judged], minlength=size) + np.bincount(is_so[judged], minlength=size) - both
    return Seen(
        ious=[float(best[k]) for k in true],
        regions=len(kept),
        labels=frozenset(r.label for r in found if r.label in known and r.area >= LIMITS.min_area),
        true_labels=frozenset(n for k, n in photo.names.items() if n in known and share[k] >= LIMITS.min_area),
        shared=both,
        either=union,
    )


def figures(seen: Sequence[Seen], *, labelled: bool) -> Row:
    """Return the figures over all photos; those of labels are None for an oracle that gives none."""
    ious = np.array([value for one in seen for value in one.ious])
    row: Row = {
        "images": len(seen),
        "segments": len(ious),
        "mean_iou": round(float(ious.mean()), 4),
        "covered_pct": round(100 * float((ious >= FOUND_IOU).mean()), 2),
        "regions": round(float(np.mean([one.regions for one in seen])), 1),
        **dict.fromkeys(("label_precision_pct", "label_recall_pct", "class_iou")),
    }
    if labelled:
        right = sum(len(one.labels & one.true_labels) for one in seen)
        said, true = (sum(len(getattr(one, field)) for one in seen) for field in ("labels", "true_labels"))
        shared, either = (np.sum([getattr(one, field) for one in seen], axis=0)[1:] for field in ("shared", "either"))
        row["label_precision_pct"] = round(100 * right / said, 2) if said else None
        row["label_recall_pct"] = round(100 * right / true, 2) if true else None
        row["class_iou"] = round(float((shared[either > 0] / either[either > 0]).mean()), 4)
    return row


def measure(name: str, oracle: Oracle, known: Sequence[Photo]) -> Row:
    """Return the row of one oracle; the seconds are those of the processor, of the oracle alone."""
    oracle(known[0].rgb)
    seen, seconds, labelled = [], 0.0, False
    for photo in known:
        started = time.process_time()
        found = oracle(photo.rgb)
        seconds += time.process_time() - started
        labelled |= any(region.label is not None for region in found)
        seen.append(look(found, photo))
    key: Row = {"set": SET, "oracle": name, "attack": None, "seed": None}
    return {**key, **figures(seen, labelled=labelled), "seconds_per_image": round(seconds / len(known), 4)}


def oracles(folder: Path, weights: Sequence[str], known: Sequence[Photo]) -> Iterator[tuple[str, Oracle]]:
    """Yield what can run here: the truth, superpixels, the TFLite file of the assets, and `kind=path` of the caller.

    Raises:
        ModelError: weights that cannot be read.
        pydantic.ValidationError: no such kind.
    """
    yield "ground_truth", GroundTruth.of_maps((photo.rgb, photo.labels, photo.names) for photo in known)
    yield "superpixels", SuperpixelsConfig().build()
    given = dict(one.split("=", 1) for one in weights)
    if "litert" not in given and (folder / TFLITE).is_file():
        yield "litert", LiteRtConfig(path=str(folder / TFLITE)).build()
    for kind, path in given.items():
        settings: OracleConfig = pydantic.TypeAdapter(OracleConfig).validate_python({"kind": kind, "path": path})
        yield kind, settings.build()


def main() -> int:
    """Measure each oracle and store its row."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs="*", metavar="KIND=PATH", help="an oracle with weights of the caller")
    weights = parser.parse_args().weights
    folder = assets()
    if folder is None:
        sys.stderr.write("the photos are not here; CLIPSAN_ASSETS names their folder\n")
        return 1
    torch.set_num_threads(1)
    known = list(photos(folder / f"{SET}.tar"))
    for name, oracle in oracles(folder, weights, known):
        row = measure(name, oracle, known)
        record("oracle", [row], command=ORACLE_COMMANDS)
        sys.stdout.write(" ".join(f"{field}={value}" for field, value in row.items()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
