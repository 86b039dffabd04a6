"""What the report computes from a scan's arrays: thumbnails and the layout of the embedding map."""

import io

import numpy as np
from PIL import Image
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

MAP_LIMIT = 2000
"""Most points of a map: t-SNE takes about 10 s for these on one core, and more dots only hide one another."""

JPEG_QUALITY = 90
SMALLEST_TSNE = 12
"""Below this many points neighbourhoods mean nothing, and the map is the plain projection."""


def thumbnail(rgb: np.ndarray, side: int = 160) -> bytes:
    """Return an image file whose longer side is at most `side` pixels, unless the image is that small already.

    A tiny image is enlarged by a whole factor, every pixel a sharp square, and stored as PNG: a trigger of a few
    pixels survives neither smoothing nor JPEG. A larger one is reduced and stored as JPEG without chroma subsampling.

    Args:
        rgb: [H, W, 3] uint8.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise ValueError(f"a thumbnail needs [H, W, 3] uint8, got {list(rgb.shape)} {rgb.dtype}")
    longer = max(rgb.shape[:2])
    file = io.BytesIO()
    if longer <= side:
        enlarged = rgb.repeat(side // longer, axis=0).repeat(side // longer, axis=1)
        Image.fromarray(np.ascontiguousarray(enlarged)).save(file, format="PNG", optimize=True)
        return file.getvalue()
    height, width = (max(1, round(extent * side / longer)) for extent in rgb.shape[:2])
    reduced = Image.fromarray(np.ascontiguousarray(rgb)).resize((width, height), Image.Resampling.LANCZOS)
    reduced.save(file, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def principal_map(vectors: np.ndarray) -> np.ndarray:
    """Return [N, 2] float64: the two principal components, each signed so that its largest loading is positive."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((2, centred.shape[1]))
    plane[: len(directions[:2])] = directions[:2]
    heaviest = np.abs(plane).argmax(axis=1)
    signs = np.where(plane[np.arange(2), heaviest] < 0, -1.0, 1.0)
    projected: np.ndarray = centred @ (plane * signs[:, None]).T
    return projected


def embedding_map(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Return [N, 2] float32: a plane in which neighbours in the embedding stay neighbours (t-SNE from a PCA start).

    A backdoor's images lie close together beside their target concept; on the first two principal components they
    are hidden in the middle, in t-SNE they are an island. Distances between islands mean nothing.

    Single-threaded, because the sum over threads would make the last digits depend on their number. van der Maaten
    and Hinton (2008); start and perplexity as in Kobak and Berens (2019).

    Args:
        vectors: [N, D] float, unit norm, N at most `MAP_LIMIT`.
    """
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise ValueError(f"a map needs finite vectors [N, D], got shape {list(vectors.shape)}")
    count = len(vectors)
    if count > MAP_LIMIT:
        raise ValueError(f"a map takes at most {MAP_LIMIT} points, got {count}: draw a sample first")
    if count < 2:
        return np.zeros((count, 2), dtype=np.float32)
    with threadpool_limits(limits=1):
        start = principal_map(vectors)
        spread = start[:, 0].std()
        if count < SMALLEST_TSNE or spread < 1e-6:
            return start.astype(np.float32)
        layout = TSNE(
            n_components=2,
            perplexity=min(30.0, (count - 1) / 3),
            init=(start / spread * 1e-4).astype(np.float32),
            random_state=seed,
            n_jobs=1,
        ).fit_transform(vectors.astype(np.float32))
    placed: np.ndarray = np.asarray(layout, dtype=np.float32)
    return placed
