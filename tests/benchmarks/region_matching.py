"""How often two regions with one patch are found alike, by the size of image and patch, and how often two without are.

    python -m tests.benchmarks.region_matching               on rendered scenes
    python -m tests.benchmarks.region_matching PHOTOS.tar    on the photos of a tar

Each patch is pasted at any pixel of the image, each box is off by up to a sixty-fourth of the side on every side, in or out.
`strided`: the same regions with every n-th row and column, as they were compared when no more than 64 px counted. Figures go to
tests/benchmarks/results/.
"""

import argparse
import io
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from clipsan.stages.attack.poisoning import ImagePath
from clipsan.stages.dossier.find_patches import PatchLimits
from clipsan.stages.dossier.sightings import Sighting, likeness
from clipsan.stages.proof.localise import Box, box_mask
from clipsan.stages.scenes.scene import SceneConfig, render
from tests.benchmarks.results import Row, record

COMMAND = "python -m tests.benchmarks.region_matching"
SIDES = (64, 128, 224)
SIZES = (8, 16, 24, 32)
IMAGES = 40
LIMITS = PatchLimits()

Draw = Callable[[int, np.random.Generator], np.ndarray]
PATCHES: Mapping[str, Draw] = {
    "noise": lambda size, rng: rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
    "stripes": lambda size, rng: 255 * rng.integers(0, 2, (1, size, 3), dtype=np.uint8).repeat(size, 0),
    "checker": lambda size, _: (
        np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((size // 4, size // 4)))[..., None]
        .repeat(3, -1)
        .astype(np.uint8)
        * 255
    ),
    "yellow": lambda size, _: np.tile(np.array([255, 255, 0], np.uint8), (size, size, 1)),
}


def images_of(tar: Path | None, side: int) -> list[np.ndarray]:
    """Return `[side, side, 3] uint8` images: photos of a tar, or scenes."""
    if tar is None:
        return [render(i, SceneConfig(count=IMAGES, side_px=side, seed=0)).rgb for i in range(IMAGES)]
    path, found = ImagePath(resize_px=side), []
    with tarfile.open(tar) as members:
        for member in members:
            if member.name.endswith(".jpg") and (file := members.extractfile(member)) is not None:
                found.append(path.resize(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))))
            if len(found) == IMAGES:
                break
    return found


def sighting(image: np.ndarray, box: Box, stride: int) -> Sighting:
    """Return the region, of every `stride`-th row and column."""
    mask = box_mask(box, len(image))
    shown = np.where(mask[..., None], image, np.uint8(0))
    mask, shown = mask[::stride, ::stride], shown[::stride, ::stride]
    return Sighting(uid="", claim="", mask=mask, picture=shown, flips=1, control_flips=0, trials=1)


def regions(images: Sequence[np.ndarray], size: int, draw: Draw | None, *, strided: bool) -> list[Sighting]:
    """Return one region an image, with one patch in all of them or none."""
    rng, side = np.random.default_rng(size), len(images[0])
    patch, off = None if draw is None else draw(size, rng), side // 64
    found = []
    for image in images:
        pasted = image.copy()
        top, left = (int(v) for v in rng.integers(0, side - size + 1, 2))
        if patch is not None:
            pasted[top : top + size, left : left + size] = patch
        out = [int(v) for v in rng.integers(-min(off, size // 4), off + 1, 4)]
        first, start = max(0, top - out[0]), max(0, left - out[2])
        box = first, start, min(side, top + size + out[1]) - first, min(side, left + size + out[3]) - start
        found.append(sighting(pasted, box, side // 64 if strided else 1))
    return found


def match_pct(found: Sequence[Sighting]) -> float:
    """Return the share of neighbours that are alike."""
    return 100 * float(np.mean([likeness(a, b, LIMITS.likeness)[0] >= LIMITS.min_likeness for a, b in pairwise(found)]))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tar", nargs="?", type=Path, help="photos as a WebDataset; rendered scenes without")
    tar = parser.parse_args().tar
    named = " | ".join(f"{name}, % (strided)" for name in PATCHES)
    sys.stdout.write(f"| image, px | patch, px | {named} | no patch, % | ms a pair |\n")
    sys.stdout.write("|" + "---|" * (len(PATCHES) + 4) + "\n")
    for side in SIDES:
        images = images_of(tar, side)
        for size in SIZES:
            draws = {**PATCHES, "none": None}
            found = {
                name: [match_pct(regions(images, size, draw, strided=strided)) for strided in (False, True)]
                for name, draw in draws.items()
            }
            key: Row = {"images": tar.name if tar else "scenes", "side_px": side, "patch_px": size}
            rows = [
                key | {"patch": name, "alike_pct": round(full, 2), "strided_pct": round(strided, 2)}
                for name, (full, strided) in found.items()
            ]
            record("matching", rows, command=COMMAND)
            cells = [f"{full:.0f} ({strided:.0f})" for full, strided in (found[name] for name in PATCHES)]
            plain = regions(images, size, None, strided=False)
            began, alone = time.perf_counter(), match_pct(plain)
            cost = 1000 * (time.perf_counter() - began) / (len(plain) - 1)
            sys.stdout.write(f"| {side} | {size} | {' | '.join(cells)} | {alone:.1f} | {cost:.1f} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
