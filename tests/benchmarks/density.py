"""Our density scores beside the published reference behaviour, on the embeddings of models that learned a backdoor.

    python -m tests.benchmarks.density                       the finished cells of python -m tests.benchmarks.photos
    python -m tests.benchmarks.density runs/zoo/sig/scan     these runs of `clipsan scan`, which knew the manifest

From the published behaviour to ours one difference after the other is taken away (`VERSIONS`).
`published` was checked against HanxunH/Detect-CLIP-Backdoor-Samples at commit ff2399a on blocks of these embeddings: equal to 1e-12
in float64, but where captions repeat, whose equal distances it sorts in no fixed order.
One thing differs in all versions: the published code reads vectors before they are brought to unit length, the cache holds
unit vectors.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from clipsan.stages.detectors.density import DensityConfig, assign_blocks, block_ranks
from clipsan.stages.detectors.streaming import vectors
from clipsan.stages.evaluation.detection import auroc, average_precision
from tests.benchmarks import photos
from tests.benchmarks.results import Row, record

COMMAND = "python -m tests.benchmarks.density"
SETTINGS = DensityConfig()
KS = (16, 32, 64, 128)
BLOCK_SIZE = 2048
DIVISIONS = 6
"""Random divisions of a set into blocks, each with a seed of its own."""
AVERAGED = (3, 6)
"""Divisions whose scores are averaged, at AVERAGED_K."""
AVERAGED_K = 32
SCORES = ("k_distance", "slof", "dao")
TILE_ROWS = 1024
SAME = 1e-5
"""Distance below which float64 products of float16 vectors cannot tell two of them apart."""


@dataclass(frozen=True, slots=True)
class Version:
    """Which differences from the published code are taken away."""

    name: str
    rows_aligned: bool = False
    """D1: a neighbour's radius is its own; published: of a row one or two before, behind the query."""
    one_radius: bool = False
    """D2: R = r_{k+1} without the point itself everywhere; published: of neighbours r_k, their own caption counted."""
    equal_once: bool = False
    """Equal vectors are one point, radii and dimensions are bounded; published: radius 0 gives 1000."""
    ranks: bool = False
    """A score is its rank in the block; published: scores of all blocks are ranked together."""


PUBLISHED = Version("published")
ROWS = replace(PUBLISHED, name="rows aligned", rows_aligned=True)
RADII = replace(ROWS, name="and one radius", one_radius=True)
DISTINCT = replace(RADII, name="and equal vectors once", equal_once=True)
OURS = replace(DISTINCT, name="ours", ranks=True)
VERSIONS = (PUBLISHED, ROWS, RADII, DISTINCT, OURS)
ENDS = (PUBLISHED, OURS)


@dataclass(frozen=True, slots=True)
class Near:
    """The nearest points of every point, nearest first; `[P, depth]` each."""

    index: np.ndarray
    """Rows of other points that may be neighbours."""
    distance: np.ndarray
    """Their distances, float64."""
    unmasked: np.ndarray
    """Distances where nothing is left out: the point itself, at 0, comes first."""


def near(points: np.ndarray, own: np.ndarray, depth: int) -> Near:
    """Return the `depth` nearest of `points` (`[P, D]`); `own` (`[E, 2]`) are pairs (query, row that it must not have)."""
    exact = points.astype(np.float64)
    squares = np.einsum("ij,ij->i", exact, exact)
    most = 1 + int(np.bincount(own[:, 0]).max(initial=0)) if len(own) else 1
    parts = []
    for start in range(0, len(exact), TILE_ROWS):
        stop = min(start + TILE_ROWS, len(exact))
        tile = squares[start:stop, None] - 2 * (exact[start:stop] @ exact.T) + squares
        candidates = np.argpartition(tile, depth + most - 1, axis=1)[:, : depth + most]
        reached = np.sqrt(np.maximum(np.take_along_axis(tile, candidates, 1), 0))
        reached[reached < SAME] = 0
        forbidden = np.zeros(tile.shape, dtype=bool)
        rows = np.arange(start, stop)
        forbidden[rows - start, rows] = True
        inside = own[(own[:, 0] >= start) & (own[:, 0] < stop)]
        forbidden[inside[:, 0] - start, inside[:, 1]] = True
        masked = np.where(np.take_along_axis(forbidden, candidates, 1), np.inf, reached)
        order = np.lexsort((candidates, masked), axis=1)[:, :depth]
        index = np.take_along_axis(candidates, order, 1)
        parts.append((index, np.take_along_axis(masked, order, 1), np.sort(reached, axis=1)[:, :depth]))
    return Near(*(np.concatenate(part) for part in zip(*parts, strict=True)))


@dataclass(frozen=True, slots=True)
class Points:
    """The points of a block, with what the images among them are compared to."""

    near: Near
    images: int
    """Points that are images; the others are captions."""
    where: np.ndarray
    """`[n]`, the point of each pair's image."""


def all_points(image: np.ndarray, text: np.ndarray | None, depth: int) -> Points:
    """Return every vector as a point of its own, as the published code does; without `text` images alone."""
    n = len(image)
    rows = np.arange(n)
    own = np.empty((0, 2), np.int64) if text is None else np.stack([rows, rows + n], axis=1)
    points = image if text is None else np.concatenate([image, text])
    return Points(near(points, own, depth), n, rows)


def distinct_points(image: np.ndarray, text: np.ndarray | None, depth: int) -> Points:
    """Return equal vectors as one point."""
    images, where = np.unique(image, axis=0, return_inverse=True)
    if text is None:
        return Points(near(images, np.empty((0, 2), np.int64), depth), len(images), where)
    captions, caption = np.unique(text, axis=0, return_inverse=True)
    own = np.unique(np.stack([where, caption + len(images)], axis=1), axis=0)
    return Points(near(np.concatenate([images, captions]), own, depth), len(images), where)


def density(points: Points, k: int, version: Version) -> dict[str, np.ndarray]:
    """Return `[n] float64` k_distance, slof and dao of the pairs' images; `version.ranks` is not applied.

    The formulas are those of `clipsan.stages.detectors.density.score_block`.
    """
    found, images = points.near, points.images
    rows = found.index[:images, :k]
    if not version.rows_aligned:
        query = np.arange(images)[:, None]
        rows = rows - np.where(rows < images, rows > query, 1 + (rows - images > query))
    neighbours = found.distance if version.one_radius else found.unmasked
    floor = SETTINGS.resolution if version.equal_once else 0.0
    own_radius = np.maximum(found.distance[:images, k], floor)
    radius = np.maximum(neighbours[:, k], floor)
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = neighbours[:, :k] / radius[:, None] + SETTINGS.ratio_offset
        if version.equal_once:
            logs = np.log(np.minimum(inner, 1.0)).sum(axis=1)
            dimension = k / np.maximum(-logs, k / SETTINGS.largest_dimension)
        else:
            dimension = -k / np.log(inner).sum(axis=1)
        ratio = own_radius[:, None] / radius[rows]
        scores = {
            "k_distance": found.distance[:images, k],
            "slof": ratio.mean(axis=1),
            "dao": (dimension[rows] * np.log(ratio)).mean(axis=1),
        }
    return {
        name: np.nan_to_num(values, nan=SETTINGS.largest_dimension, posinf=SETTINGS.largest_dimension, neginf=0.0)[
            points.where
        ]
        for name, values in scores.items()
    }


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What a scan cached, and the truth."""

    uids: list[str]
    image: np.ndarray
    text: np.ndarray
    """As `image` `[N, D] float32`, unit norm; equal captions have equal vectors."""
    poisoned: np.ndarray


@dataclass(frozen=True, slots=True)
class Scan:
    """One finished run of `clipsan scan`."""

    folder: Path
    data: str
    attack: str
    model: str
    seed: int

    def missing(self) -> str | None:
        """Return what is not there, or None."""
        if not (self.folder / "summary.json").is_file():
            return f"{self.folder} has no finished scan"
        manifest = self.manifest()
        return None if manifest.is_file() else f"{self.folder}: no manifest at {manifest}"

    def manifest(self) -> Path:
        """Return the manifest that the scan was given, or that of the poison run beside it."""
        given = yaml.safe_load((self.folder / "run.yaml").read_text(encoding="utf-8"))["config"].get("manifest")
        return photos.ROOT / given if given else self.folder.parent / "poison" / "manifest.parquet"

    def read(self) -> Embeddings:
        """Return the cached embeddings with the truth."""
        parts = sorted((self.folder / "embeddings").glob("part-*.parquet"))
        table = pa.concat_tables([pq.read_table(part, columns=["uid", "caption", "image", "text"]) for part in parts])
        uids = table.column("uid").to_pylist()
        # The same caption encoded in batches of different sizes can differ in the last bit.
        _, first, inverse = np.unique(table.column("caption").to_pylist(), return_index=True, return_inverse=True)
        truth = set(pq.read_table(self.manifest(), columns=["uid"]).column("uid").to_pylist())
        poisoned = np.array([uid in truth for uid in uids])
        return Embeddings(uids, vectors(table, "image"), vectors(table, "text")[first][inverse], poisoned)

    def asr_pct(self) -> float | None:
        """Return the attack's success as `clipsan evaluate` measured it beside the scan, or None."""
        path = self.folder.parent / "evaluate" / "summary.json"
        measured = json.loads(path.read_text(encoding="utf-8"))["evaluation"].get("asr_pct") if path.is_file() else None
        return None if measured is None else round(measured, 2)


def score_divisions(found: Embeddings, size: int, divisions: int, text: bool, versions: Sequence[Version]) -> "Scored":
    """Return (version, k, score) -> one column `[N]` a division; the seed of a division is its number."""
    wanted = [(version, k) for version in versions for k in KS]
    columns = {(v.name, k, s): np.zeros((divisions, len(found.uids))) for v, k in wanted for s in SCORES}
    for division in range(divisions):
        for rows in assign_blocks(found.uids, division, 0, size):
            image, captions = found.image[rows], found.text[rows] if text else None
            apart = {False: all_points(image, captions, max(KS) + 1)}
            if any(version.equal_once for version in versions):
                apart[True] = distinct_points(image, captions, max(KS) + 1)
            for version, k in wanted:
                for name, values in density(apart[version.equal_once], k, version).items():
                    columns[version.name, k, name][division, rows] = block_ranks(values) if version.ranks else values
    return columns


Scored = dict[tuple[str, int, str], np.ndarray]


def figures(columns: np.ndarray, poisoned: np.ndarray, name: str) -> Row:
    """Return mean and standard deviation over `columns` (`[divisions, N]`) of a score's AUROC and average precision."""
    row: Row = {}
    for measure, function in (("auroc", auroc), ("average_precision", average_precision)):
        values = [function(column, poisoned) for column in columns]
        row[f"{name}_{measure}"] = round(float(np.mean(values)), 4)
        row[f"{name}_{measure}_sd"] = round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None
    return row


def rows_of(scan: Scan) -> Iterator[Row]:
    """Yield the rows of one scan: every version at every k, whole set and blocks, images alone and with captions."""
    found = scan.read()
    count, poisoned = len(found.uids), int(found.poisoned.sum())
    cell: Row = {
        "data": scan.data,
        "attack": scan.attack,
        "rate_pct": round(100 * poisoned / count, 2),
        "model": scan.model,
        "seed": scan.seed,
        "asr_pct": scan.asr_pct(),
    }
    for reference in ("image_text", "image"):
        for size, divisions, versions in ((BLOCK_SIZE, DIVISIONS, VERSIONS), (count, 1, ENDS)):
            if size == count and reference == "image":
                continue
            scored = score_divisions(found, size, divisions, reference == "image_text", versions)
            blocks = max(1, round(count / size))
            here = {**cell, "reference": reference, "block_pairs": round(count / blocks), "divisions": divisions}
            here["poisoned_per_block"] = round(poisoned / blocks, 1)
            for version in versions:
                for k in KS:
                    row = {**here, "k": k, "averaged": 1, "version": version.name}
                    for name in SCORES:
                        row |= figures(scored[version.name, k, name], found.poisoned, name)
                    yield row
            if divisions == DIVISIONS and reference == "image_text":
                yield from averages(scored, found.poisoned, here)


def averages(scored: Scored, poisoned: np.ndarray, here: Row) -> Iterator[Row]:
    """Yield rows of scores averaged over several divisions; groups of divisions do not overlap."""
    for version in ENDS:
        for many in AVERAGED:
            row = {**here, "k": AVERAGED_K, "averaged": many, "version": version.name}
            for name in SCORES:
                columns = scored[version.name, AVERAGED_K, name]
                grouped = columns.reshape(-1, many, columns.shape[1]).mean(axis=1)
                row |= figures(grouped, poisoned, name)
            yield row


def main() -> int:
    """Measure the given scans, or those of the photo benchmark."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scans", nargs="*", type=Path, metavar="SCAN", help="run folders; default: the photo cells'")
    parser.add_argument("--data", default=photos.DATA, help="name of their data in the table")
    parser.add_argument("--model", default=photos.MODEL, help="name of their model in the table")
    parser.add_argument("--seed", type=int, default=photos.SEED, help="seed of their training")
    options = parser.parse_args()
    named = (options.data, options.model, options.seed)
    chosen = [(path, path.resolve().parent.name) for path in options.scans] or [
        (photos.ROOT / cell.home / "scan", cell.attack) for cell in photos.CELLS if cell.attack
    ]
    for folder, attack in chosen:
        scan = Scan(folder, named[0], attack, named[1], named[2])
        lacking = scan.missing()
        if lacking:
            sys.stdout.write(f"skipped: {lacking}\n")
            continue
        record("density", rows_of(scan), command=COMMAND)
        sys.stdout.write(f"measured: {folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
