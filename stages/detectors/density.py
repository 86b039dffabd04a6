"""Local density of image vectors inside seeded random blocks: k-distance, SLOF, DAO, LID (and isolation forest).

A CLIP model that has learned a backdoor maps poisoned images into sparse pockets, so they lie far from their
neighbours inside a random block (Huang et al., ICLR 2025, arXiv 2502.01385).
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from ..samples import seeded_hash
from ..stage import Count, Positive, Weight, config
from .isolation import isolation_forest
from .neighbours import Neighbours, nearest
from .streaming import Column, vectors


@config
class DensityConfig:
    """How density scores are computed."""

    reads: ClassVar[frozenset[str]] = frozenset({"uid", "caption", "image", "text"})
    """Columns of the cache that `score_group` needs."""
    columns: ClassVar[Mapping[str, Column]] = {
        "k_distance": Column(about="image", may_speak=True, supported_by="concept_spectral"),
        **dict.fromkeys(("slof", "dao", "lid", "isolation_forest"), Column(about="image", may_speak=True)),
    }
    """Columns that `score_group` returns. A pair far from everything and odd in its concept, too, is seldom clean."""

    k: Count = 32
    """Neighbours for k-distance, SLOF and DAO; poison of more than about k - 8 pairs a block hides among itself."""
    lid_k: Count = 64
    """Neighbours for LID, whose estimate needs more of them."""
    block_size: int = 2048
    """Pairs a block: the published reference size; larger blocks hold more poison and outgrow k."""
    permutations: Count = 3
    """Independent divisions into blocks whose ranks are averaged, to take out the luck of one block."""
    reference: Literal["image", "image_text"] = "image_text"
    """What an image is compared with: the block's other images, or these and the block's other captions."""
    seed: int = 0
    """Seed of the divisions into blocks and of the isolation forests."""
    trees: Count = 100
    """Trees of an isolation forest, scikit-learn's default and that of the published comparison."""
    largest_dimension: Positive = 1000.0
    """Cap of a local dimension: the value that the reference implementation gives to infinity."""
    ratio_offset: Weight = 1e-4
    """Added to r_j / R before the logarithm, as in the reference implementation."""
    resolution: Positive = 2.0**-10
    """Distance below which unit vectors of a float16 cache cannot be told apart; smallest radius that counts."""

    def __post_init__(self) -> None:
        if self.block_size < max(self.k, self.lid_k) + 2:
            raise ValueError("block_size must be at least the larger of k and lid_k, plus 2")

    @property
    def adds(self) -> frozenset[str]:
        """Names of the columns."""
        return frozenset(self.columns)


def score_block(
    image: np.ndarray, text: np.ndarray, config: DensityConfig, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Score the images of one block against the block itself.

    `image`, `text`: `[n, D] float32`, unit norm, row i of both being one pair. Returns `[n] float64` for k_distance,
    slof, dao and lid; higher is more suspicious. With r_j the j-th distance of a point to others and R = r_{k+1}:

        k_distance  R(x)
        slof        mean over the k neighbours u of R(x) / R(u)
        lid(x)      -k / sum_{j <= k} log(r_j / R(x) + 1e-4)
        dao         mean over the k neighbours u of lid(u) * log(R(x) / R(u))

    Where this differs from the reference implementation:

    - Neighbour rows are read where they stand, and R is r_{k+1} without the point itself everywhere (there, for
      neighbours it is r_k).
    - Equal vectors count once, in the reference and as neighbours (the k-distinct-distance of Breunig et al. 2000):
      a caption that stands in a hundred pairs would otherwise have radius 0 and make every image near it an outlier.
      Radii are not taken below the resolution of the cache. So nothing is nan or infinite; the reference gives 1000
      to both, which puts every member of a large group of duplicates on top. Equal images get equal scores.
    - An image's own captions are no neighbours of it; a caption has all other points for neighbours.
    - log(r_j / R + 1e-4) is not taken above 0 and lid not above 1000: neighbours at almost equal distances would
      otherwise turn its sign.

    A block with too few distinct points for k uses the largest k that it allows, and with fewer than two other points
    for some image, density says nothing: every score is 0.
    """
    points, where, excluded = _distinct_points(image, text, config.reference)
    forbidden = np.bincount(excluded[:, 0], minlength=len(points)) if len(points) else np.zeros(1, int)
    allowed = len(points) - 1 - int(forbidden.max(initial=0))
    if allowed < 2:
        return {name: np.zeros(len(image)) for name in ("k_distance", "slof", "dao", "lid")}
    k, lid_k = min(config.k, allowed - 1), min(config.lid_k, allowed - 1)
    images = int(where.max()) + 1
    found, radius, dimension = _neighbourhoods(points, images, excluded, k, lid_k, config, device)
    near = found.index[:, :k]
    ratio = np.maximum(found.distance[:, k], config.resolution)[:, None] / radius[near]
    scores = {
        "k_distance": found.distance[:, k],
        "slof": ratio.mean(axis=1),
        "dao": (dimension[near] * np.log(ratio)).mean(axis=1),
        "lid": local_dimension(found, lid_k, config),
    }
    return {name: values[where] for name, values in scores.items()}


def _neighbourhoods(
    points: np.ndarray, images: int, excluded: np.ndarray, k: int, lid_k: int, config: DensityConfig, device: str
) -> tuple[Neighbours, np.ndarray, np.ndarray]:
    """Return the neighbours of the images, and radius and dimension `[P]` of every point that is one of their k nearest.

    Captions that are no image's neighbour are not looked at (nan): most are not, where a model keeps images and texts apart.
    """
    found = nearest(points, max(k, lid_k) + 1, excluded, queries=np.arange(images), device=device)
    radius, dimension = np.full(len(points), np.nan), np.full(len(points), np.nan)
    radius[:images] = np.maximum(found.distance[:, k], config.resolution)
    dimension[:images] = local_dimension(found, k, config)
    near = np.unique(found.index[:, :k])
    captions = near[near >= images]
    if len(captions):
        theirs = nearest(points, k + 1, excluded, queries=captions, device=device)
        radius[captions] = np.maximum(theirs.distance[:, k], config.resolution)
        dimension[captions] = local_dimension(theirs, k, config)
    return found, radius, dimension


def local_dimension(found: Neighbours, k: int, config: DensityConfig) -> np.ndarray:
    """Return `[P] float64`, the maximum-likelihood local intrinsic dimension from k + 1 neighbours, capped."""
    radius = np.maximum(found.distance[:, k : k + 1], config.resolution)
    logs = np.log(np.minimum(found.distance[:, :k] / radius + config.ratio_offset, 1.0)).sum(axis=1)
    return np.asarray(k / np.maximum(-logs, k / config.largest_dimension), dtype=np.float64)


def _distinct_points(image: np.ndarray, text: np.ndarray, reference: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct points `[P, D]`, each image's point `[n]`, and the pairs (image, own caption) `[E, 2]`."""
    images, where = _distinct(image)
    if reference == "image":
        return images, where, np.empty((0, 2), np.int64)
    captions, caption = _distinct(text)
    own = np.unique(np.stack([where, caption + len(images)], axis=1), axis=0)
    return np.concatenate([images, captions]), where, own


def _distinct(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct rows in the order of their first occurrence, and for each row which of them it is."""
    rows = np.ascontiguousarray(vectors, dtype=np.float32) + np.float32(0.0)  # -0.0 becomes 0.0: equal bytes
    keys = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return rows[first[order]], place[inverse]


def block_ranks(scores: np.ndarray) -> np.ndarray:
    """Return `[n] float64`: the share of the block that scores lower, plus half of what ties; mean exactly 1/2.

    Scores of different blocks are not comparable, ranks are.
    """
    # a second to import, which every worker process of every other pass would pay
    from scipy.stats import rankdata

    return np.asarray((rankdata(scores) - 0.5) / max(len(scores), 1), dtype=np.float64)


def assign_blocks(uids: list[str], seed: int, permutation: int, block_size: int) -> list[np.ndarray]:
    """Divide rows into random blocks of almost equal size, as near `block_size` as that allows; none is left small.

    Returns row numbers (`[m] int64`). The blocks depend on the uids, not on the order of the rows.
    """
    order = np.argsort(seeded_hash(uids, seed, f"density block, permutation {permutation}"), kind="stable")
    return list(np.array_split(order, max(1, round(len(uids) / block_size)))) if uids else []


def score_group(table: pa.Table, config: DensityConfig, permutation: int, device: str = "cpu") -> dict[str, np.ndarray]:
    """Return the block ranks of every row of a super-group for one permutation: name -> `[n] float32`.

    `table` holds the columns of `DensityConfig.reads`; the names are those of `DensityConfig.adds`. Neighbours are sought on
    `device`, with the same result on each.
    """
    uids = table.column("uid").to_pylist()
    captions = np.array(table.column("caption").to_pylist(), dtype=object)
    image, text = vectors(table, "image"), vectors(table, "text")
    ranks = {name: np.zeros(len(uids), np.float32) for name in sorted(config.adds)}
    for number, rows in enumerate(assign_blocks(uids, config.seed, permutation, config.block_size)):
        scores = score_block(image[rows], _one_vector_a_caption(captions[rows], text[rows]), config, device)
        forest_seed = int(np.random.SeedSequence((config.seed, permutation, number)).generate_state(1)[0])
        scores["isolation_forest"] = isolation_forest(image[rows], forest_seed, config.trees)
        for name, column in ranks.items():
            column[rows] = block_ranks(scores[name])
    return ranks


def _one_vector_a_caption(captions: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Return `text` with the vector of a caption's first occurrence wherever that caption stands.

    The same caption encoded in batches of different sizes can differ in the last bit of float16.
    """
    _, first, inverse = np.unique(captions, return_index=True, return_inverse=True)
    return np.asarray(text[first][inverse])
