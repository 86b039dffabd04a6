"""What the report computes from a scan's arrays: thumbnails, heat maps and the layout of the embedding map."""

import io

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation
from threadpoolctl import threadpool_limits

MAP_LIMIT = 2000
"""Most points of a map: t-SNE takes about 5 s for these on one core, and more dots only hide one another."""
MAP_STEPS = 500
"""Of t-SNE, half of them with early exaggeration: islands stand by then, and only drift apart with more."""

JPEG_QUALITY = 90
RIM = (226, 40, 40)
"""Colour of the line around a region."""
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
    if longer <= side:
        enlarged = rgb.repeat(side // longer, axis=0).repeat(side // longer, axis=1)
        return _png(np.ascontiguousarray(enlarged))
    height, width = (max(1, round(extent * side / longer)) for extent in rgb.shape[:2])
    file = io.BytesIO()
    reduced = Image.fromarray(np.ascontiguousarray(rgb)).resize((width, height), Image.Resampling.LANCZOS)
    reduced.save(file, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def overlay(rgb: np.ndarray, heat: np.ndarray, side: int = 160) -> bytes:
    """Return a PNG of an image in which what carries the claim keeps its colours under a red rim, and all else is grey.

    Args:
        rgb: [S, S, 3] uint8, as the model sees it.
        heat: [S, S] bool or float in [0, 1]; the rim runs where it falls below half of its largest value.
        side: the image is enlarged by a whole factor up to this many pixels.
    """
    if heat.shape != rgb.shape[:2]:
        raise ValueError(f"a heat map of {list(heat.shape)} is none of an image of {list(rgb.shape)}")
    strength = heat.astype(np.float64)[..., None]
    faded = 0.55 * rgb.mean(axis=2, keepdims=True) + 90
    mixed = np.clip(strength * rgb + (1 - strength) * faded, 0, 255).round().astype(np.uint8)
    factor = max(1, side // max(rgb.shape[:2]))
    large = np.ascontiguousarray(mixed.repeat(factor, axis=0).repeat(factor, axis=1))
    inside = (heat >= max(float(heat.max()) / 2, 1e-9)).repeat(factor, axis=0).repeat(factor, axis=1)
    rim = binary_dilation(inside, iterations=2) & ~inside
    large[rim] = RIM
    return _png(large)


def heat_map(heat: np.ndarray, side: int = 160) -> bytes:
    """Return a PNG of shares `[S, S] float` in [0, 1]: dark where 0, through red, to light yellow where 1."""
    stops = np.array([[24, 22, 36], [120, 28, 70], [214, 64, 48], [252, 168, 76], [255, 244, 196]], np.float64)
    at = np.linspace(0, 1, len(stops))
    colours = np.stack([np.interp(heat, at, stops[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)
    factor = max(1, side // max(heat.shape))
    return _png(np.ascontiguousarray(colours.repeat(factor, axis=0).repeat(factor, axis=1)))


def _png(rgb: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="PNG", optimize=True)
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
        # seconds to import, and the workers that prove draw pictures too
        from sklearn.manifold import TSNE

        layout = TSNE(
            n_components=2,
            perplexity=min(30.0, (count - 1) / 3),
            init=(start / spread * 1e-4).astype(np.float32),
            random_state=seed,
            max_iter=MAP_STEPS,
            n_jobs=1,
        ).fit_transform(vectors.astype(np.float32))
    placed: np.ndarray = np.asarray(layout, dtype=np.float32)
    return placed
