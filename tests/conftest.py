"""Shared by all tests: pinned threads, a tiny model, small data sets, and one Ray a session."""

import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# Ray starts its workers at the lowest priority; beside anything else on the machine the tests would crawl.
os.environ.setdefault("RAY_worker_niceness", "0")

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

from clipsan.pipeline.core.cluster import ClusterConfig, ray_session, start_ray
from clipsan.stages.model.checkpoints import ModelConfig
from clipsan.stages.model.clip import load_clip, save_clip

torch.set_num_threads(1)

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 4, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
"""A ViT of 0.4 million parameters beside its word embeddings."""

NOUNS = ("ball", "kite", "lamp", "boat", "pear")


def assets() -> Path:
    """Return the folder of real photos, or skip: a user does not have it."""
    folder = Path(os.environ.get("CLIPSAN_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets"))
    if not folder.is_dir():
        pytest.skip(f"real photos are not on this machine ({folder}; CLIPSAN_ASSETS names another place)")
    return folder


_BEGAN = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run with a time limit say how long drills may begin."""
    parser.addoption(
        "--drills-within",
        type=float,
        metavar="MINUTES",
        help="skip the drills (slow) whose turn comes later than this after the start",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the drills last: what takes seconds tells of a fault first."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a drill for which no time is left, before anything is set up for it."""
    limit = item.config.getoption("--drills-within")
    if limit is not None and item.get_closest_marker("slow") and time.monotonic() - _BEGAN > 60 * limit:
        pytest.skip(f"no time left for this drill (--drills-within {limit:g})")


@pytest.fixture(scope="session")
def ray_cluster():
    """One private Ray for the whole session; verbs that start Ray join it."""
    with ray_session(ClusterConfig(workers=2, object_store_mb=256)):
        start_ray()
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint folder of the tiny model, weights drawn from a fixed seed."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def make_tiny(home: Path) -> Path:
    """Write the tiny model below a folder; return its checkpoint."""
    (home / "tiny.json").write_text(json.dumps(TINY))
    clip = load_clip(ModelConfig(config=str(home / "tiny.json")), init_seed=7)
    save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, home / "checkpoint")
    return home / "checkpoint"


@pytest.fixture
def mlflow_address() -> Iterator[None]:
    """For tests that call mlflow.set_tracking_uri: it also sets the variable, which later tests would obey."""
    yield
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def picture(seed: int, side: int = 32) -> bytes:
    """Return a small random PNG: a coloured disc on a gradient, different for every seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    low, high, disc = rng.integers(0, 256, (3, 3))
    rgb = low + (high - low) * (x * rng.random() + y * rng.random())[..., None] / 2
    centre, radius = rng.random(2), rng.uniform(0.1, 0.4)
    rgb[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2] = disc
    rgb += rng.normal(0, 6, rgb.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def caption(seed: int) -> str:
    """Return a caption whose noun follows from the seed."""
    return f"a photo of a {NOUNS[seed % len(NOUNS)]} number {seed}"


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Put one file into a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_shards(folder: Path, *, shards: int, pairs: int) -> Path:
    """Write WebDataset tars of good pairs; pair `i` of shard `s` has seed `s * pairs + i`."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(pairs):
                seed = shard * pairs + i
                add_member(tar, f"{i:06d}.png", picture(seed))
                add_member(tar, f"{i:06d}.txt", caption(seed).encode())
    return folder
