"""What a GPU does for clipsan, beside what the card and the cores do alone; one call of less than eight minutes.

    python -m tests.benchmarks.gpu             ViT-B/32 and 49,152 pictures of 256 px where there is a card; else tiny sizes
    python -m tests.benchmarks.gpu --tiny      tiny sizes anywhere: that the script runs is then all that it shows
    python -m tests.benchmarks.gpu --only embed train    some parts of it

Everything is measured in this order, on the machine that the call runs on: the model alone on pixels that are there, three decoders of
JPEG, reading and decoding alone, the embed pass of `clipsan scan` (cluster=gpu), density scores, the steps of `clipsan train` beside a
plain loop, and a step of PAR beside one of fine-tuning. Lines are `name  value`; the last one is the same as JSON.
"""

import argparse
import io
import json
import multiprocessing
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torchvision.io import decode_jpeg

from clipsan.pipeline.core.cluster import ClusterConfig, PoolConfig, ray_session
from clipsan.pipeline.core.cpus import cpus
from clipsan.pipeline.core.pass_ import Pass
from clipsan.pipeline.core.run_folder import RunFolder
from clipsan.pipeline.scan.work import EmbedWork
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.pipeline.train import verb as training
from clipsan.pipeline.train.feed import Share
from clipsan.pipeline.train.plan import TrainConfig
from clipsan.pipeline.train.task import Task
from clipsan.stages.detectors.density import DensityConfig, score_group
from clipsan.stages.embed import EmbedConfig, Preparer
from clipsan.stages.model.clip import Clip, Inputs, ModelConfig, load_clip, resolve_model, save_clip
from clipsan.stages.repair.finetune import FineTune
from clipsan.stages.repair.par import Par
from clipsan.stages.sources import ParquetSource, list_pieces, read_unit
from clipsan.stages.training.batch import Batch
from tests.benchmarks.plain_loop import MAX_PIXELS

COMMAND = "python -m tests.benchmarks.gpu"
PARTS = ("jpeg", "embed", "density", "train")
"""What `--only` chooses from; forward and decode rates belong to `embed`."""
STEADY = (0.25, 0.9)
"""Shares of the pieces of the embed pass between which its steady rate is measured: workers start before, and idle after."""
Value = float | int | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much of everything."""

    model: ModelConfig
    """An architecture; its weights are drawn."""
    pairs: int
    side: int
    """Of a picture, in pixels."""
    pictures: int
    """Different ones; the pairs share them, with a caption each."""
    batches: tuple[int, ...]
    """Of the forward pass."""
    density_pairs: int
    width: int
    """Of the vectors of the density scores."""
    batch: int
    """Of a training step."""
    steps: int
    repeats: int
    """Forward passes and steps that are timed."""


LARGE = Sizes(
    model=ModelConfig(name="ViT-B-32"),
    pairs=49_152,
    side=256,
    pictures=1024,
    batches=(64, 256, 1024),
    density_pairs=65_536,
    width=512,
    batch=256,
    steps=60,
    repeats=20,
)


def tiny(model: ModelConfig) -> Sizes:
    """Return sizes that two cores do in seconds."""
    return replace(
        LARGE,
        model=model,
        pairs=192,
        side=48,
        pictures=32,
        batches=(8,),
        density_pairs=256,
        width=32,
        batch=16,
        steps=3,
        repeats=2,
    )


def write_pairs(folder: Path, sizes: Sizes) -> ParquetSource:
    """Write pictures that take about as long to decode as photos do, each pair with a caption of its own."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(sizes.pictures):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
        smooth = np.asarray(coarse.resize((sizes.side, sizes.side), Image.Resampling.BICUBIC)).astype(np.int16)
        grained = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(grained).save(file, "JPEG", quality=85)
        pictures.append(file.getvalue())
    rows = range(sizes.pairs)
    table = pa.table(
        {
            "image": pa.array([pictures[row % len(pictures)] for row in rows], pa.large_binary()),
            "caption": [f"picture {row % 97} of a thing that was seen on day {row}" for row in rows],
        }
    )
    pq.write_table(table, folder / "pairs.parquet", row_group_size=256)
    return ParquetSource(path=str(folder / "pairs.parquet"))


def forward(clip: Clip, sizes: Sizes, batch: int) -> float:
    """Return the pairs a second of both towers, on inputs that are on the device."""
    pixels = torch.randint(0, 256, (batch, 3, clip.image_size, clip.image_size), dtype=torch.uint8, device=clip.device)
    tokens = clip.tokenize([f"a picture of thing {row}" for row in range(batch)]).to(clip.device)

    def step() -> None:
        clip.image_features(pixels)
        clip.text_features(tokens)

    return batch / seconds(step, sizes.repeats, clip.device)


def seconds(step: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Return the mean seconds of a step, after two that are not counted."""
    for _ in range(2):
        step()
    settle(device)
    started = time.perf_counter()
    for _ in range(repeats):
        step()
    settle(device)
    return (time.perf_counter() - started) / repeats


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def decode_rate(source: ParquetSource, model: ModelConfig) -> float:
    """Return the pairs a second that all cores read, decode and tokenise, a process each."""
    units = list_pieces(source)
    count = min(cpus(), len(units))
    with multiprocessing.get_context("spawn").Pool(count, _open, (source, model)) as pool:
        pool.map(_decode, units[:count], chunksize=1)  # every process has loaded what it needs
        started = time.perf_counter()
        pairs = sum(pool.imap_unordered(_decode, units, chunksize=1))
        return pairs / (time.perf_counter() - started)


_OPENED: dict[str, Any] = {}


def _open(source: ParquetSource, model: ModelConfig) -> None:
    torch.set_num_threads(1)
    settings = EmbedConfig(max_pixels=MAX_PIXELS)
    _OPENED.update(source=source, prepare=Preparer(Inputs(resolve_model(model)), settings, "cuda"))


def _decode(unit: Any) -> int:
    return sum(len(block.pixels) for block in _OPENED["prepare"](read_unit(_OPENED["source"], unit)))


def jpeg_rates(source: ParquetSource) -> dict[str, Value]:
    """Return the pictures a second of each decoder of JPEG, one thread, and by how much their pixels differ from Pillow's.

    Pillow decodes what `clipsan scan` embeds. torchvision has its own copy of libjpeg-turbo and, with a card, nvJPEG.
    """
    pictures = pq.read_table(source.path, columns=["image"]).column("image").slice(0, 256).to_pylist()
    raw = [torch.frombuffer(bytearray(picture), dtype=torch.uint8) for picture in pictures]
    started = time.perf_counter()
    pillow = [np.asarray(Image.open(io.BytesIO(picture), formats=["JPEG"])) for picture in pictures]
    found: dict[str, Value] = {"jpeg_pillow_per_s": round(len(raw) / (time.perf_counter() - started), 1)}
    for name in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        decode_jpeg(raw[:4], device=name)
        settle(torch.device(name))
        started = time.perf_counter()
        decoded = decode_jpeg(raw, device=name)
        settle(torch.device(name))
        found[f"jpeg_torchvision_{name}_per_s"] = round(len(raw) / (time.perf_counter() - started), 1)
        gaps = [
            np.abs(mine.cpu().permute(1, 2, 0).numpy().astype(np.int16) - theirs.astype(np.int16))
            for mine, theirs in zip(decoded, pillow, strict=True)
        ]
        found[f"jpeg_torchvision_{name}_values_that_differ_pct"] = round(
            100 * float(np.mean([(gap > 0).mean() for gap in gaps])), 3
        )
        found[f"jpeg_torchvision_{name}_largest_difference"] = int(max(gap.max() for gap in gaps))
    return found


def embed_pass(source: ParquetSource, model: ModelConfig, out: Path, device: str) -> dict[str, Value]:
    """Run the embed pass as `clipsan scan` does, and return its steady rate and what the card did meanwhile."""
    on_gpu = device == "cuda"
    cluster = ClusterConfig(
        workers=None if on_gpu else 2,
        gpus_per_worker=0.5 if on_gpu else 0.0,
        encoders=PoolConfig(workers=2 if on_gpu else 1),
        object_store_mb=16_384 if on_gpu else 256,
        alone_below_pairs=0,
    )
    embed = Pass(
        name="embed",
        cluster=cluster,
        run=RunFolder(out),
        folder="embeddings",
        rejected="rejected",
        fingerprint="gpu",
        encoders=cluster.apart,
    )
    units = {unit.index: unit for unit in list_pieces(source)}
    began = time.perf_counter()
    moments: list[tuple[float, int]] = []
    with utilisation() as seen, ray_session(cluster):
        for done in embed.each(units, EmbedWork(source, model, EmbedConfig(), device)):
            moments.append((time.perf_counter(), done.pairs))
    ended, pairs = moments[-1][0], sum(count for _, count in moments)
    first, last = max(1, int(STEADY[0] * len(moments))), max(2, int(STEADY[1] * len(moments)))
    since, until = moments[first - 1][0], moments[last - 1][0]
    steady = sum(count for _, count in moments[first:last]) / max(until - since, 1e-9)
    busy = [share for at, share in seen if since <= at <= until]
    return {
        "embed_pairs_per_s": round(pairs / (ended - began), 1),
        "embed_steady_pairs_per_s": round(steady, 1),
        "embed_first_piece_s": round(moments[0][0] - began, 1),
        "gpu_utilisation_pct": round(mean(busy), 1) if busy else None,
    }


@contextmanager
def utilisation() -> Iterator[list[tuple[float, float]]]:
    """Give a list that fills with (time, GPU utilisation in percent) while the block runs; it stays empty without a card."""
    seen: list[tuple[float, float]] = []
    if not torch.cuda.is_available():
        yield seen
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)

    def listen() -> None:
        for line in process.stdout or ():
            if line.strip().isdigit():
                seen.append((time.perf_counter(), float(line)))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield seen
    finally:
        process.terminate()
        process.wait()
        listener.join()


def density_seconds(sizes: Sizes, device: str) -> float:
    """Return the seconds that the density scores of one division into blocks take."""
    rng = np.random.default_rng(1)
    columns: dict[str, Any] = {"uid": [f"{row:09d}" for row in range(sizes.density_pairs)]}
    columns["caption"] = [f"caption {row}" for row in range(sizes.density_pairs)]
    for name in ("image", "text"):
        drawn = rng.standard_normal((sizes.density_pairs, sizes.width)).astype(np.float32)
        half = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1), pa.float16()), sizes.width)
    table = pa.table(columns)
    started = time.perf_counter()
    score_group(table, DensityConfig(), 0, device)
    return time.perf_counter() - started


def batch_of(clip: Clip, size: int, number: int = 0) -> Batch:
    """Return random pairs on the device."""
    captions = [f"a picture of thing {size * number + row}" for row in range(size)]
    shape = (size, 3, clip.image_size, clip.image_size)
    none = torch.full((size,), -1, device=clip.device)
    return Batch(
        images=torch.randint(0, 256, shape, dtype=torch.uint8, device=clip.device),
        tokens=clip.tokenize(captions).to(clip.device),
        captions=captions,
        labels=none,
        accused=none,
        roles=torch.zeros(size, dtype=torch.uint8, device=clip.device),
        rows=slice(0, size),
        total=size,
        seed=(0, number),
    )


def step_seconds(method: FineTune | Par, model: ModelConfig, sizes: Sizes, device: torch.device) -> float:
    """Return the seconds of one optimiser step of a repair on pairs that are on the device: the plain loop of training, too."""
    task = Task(model=model, method=method, bf16=True, seed=0)
    course = task.begin(device, Share(0, 1, sizes.batch))
    batch = batch_of(course.clip, sizes.batch)
    return seconds(lambda: course.step([batch], 10, 1000), sizes.repeats, device)


def train_rate(source: ParquetSource, model: ModelConfig, sizes: Sizes, out: Path, device: torch.device) -> float:
    """Return the pairs a second of the last epoch of `clipsan train`: its workers stand, and what is cached is cached."""
    epochs = 1 + -(-sizes.steps * sizes.batch // sizes.pairs)
    precision: Literal["bf16"] = "bf16"
    summary = training.VERB.start(
        TrainConfig(
            data=source,
            model=model,
            out=str(out),
            epochs=epochs,
            batch_size=sizes.batch,
            lr=1e-5,
            precision=precision,
            memory_mb=8192,
            cluster=ClusterConfig(
                workers=1,
                gpus_per_worker=1.0 if device.type == "cuda" else 0.0,
                object_store_mb=8192 if device.type == "cuda" else 256,
            ),
            tracking=TrackingConfig(enabled=False),
        )
    )
    return float(summary["history"][-1]["pairs_per_s"])


def measure(sizes: Sizes, home: Path, parts: Sequence[str], tell: Callable[[str, Value], None]) -> None:
    """Measure some parts, and tell each figure as soon as it is there."""
    name: Literal["cuda", "cpu"] = "cuda" if torch.cuda.is_available() else "cpu"
    tell("card", torch.cuda.get_device_name() if name == "cuda" else "absent: these figures are of the processor")
    tell("cores", cpus())
    fresh = load_clip(sizes.model, init_seed=0)
    save_clip(fresh.model, fresh.model_cfg, fresh.preprocess_cfg, home / "model")
    model = ModelConfig(path=str(home / "model"))
    source = write_pairs(home, sizes)

    if "jpeg" in parts:
        for key, value in jpeg_rates(source).items():
            tell(key, value)
    if "embed" in parts:
        measure_embed(source, model, sizes, home, tell)
    if "density" in parts:
        for where in ("cpu", "cuda") if name == "cuda" else ("cpu",):
            tell(f"density_{where}_s", round(density_seconds(sizes, where), 2))
    if "train" in parts:
        measure_train(source, model, sizes, home, tell)


def measure_embed(
    source: ParquetSource, model: ModelConfig, sizes: Sizes, home: Path, tell: Callable[[str, Value], None]
) -> None:
    """Measure the embed pass beside what bounds it: the model alone, and decoding alone."""
    name = "cuda" if torch.cuda.is_available() else "cpu"
    bare = 0.0
    for precision in ("f32", "bf16"):
        clip = load_clip(model, name, precision=precision)
        for batch in sizes.batches:
            rate = forward(clip, sizes, batch)
            tell(f"forward_{precision}_batch_{batch}_pairs_per_s", round(rate, 1))
            bare = max(bare, rate) if precision == "bf16" else bare
        del clip
    decoded = decode_rate(source, model)
    tell("decode_pairs_per_s", round(decoded, 1))
    tell("cores_that_a_gpu_needs", round(bare / (decoded / cpus()), 1))
    found = embed_pass(source, model, home / "embed", name)
    for key, value in found.items():
        tell(key, value)
    steady = float(found["embed_steady_pairs_per_s"] or 0)
    tell("embed_ratio_to_smaller_of_forward_and_decode", round(steady / min(bare, decoded), 3))


def measure_train(
    source: ParquetSource, model: ModelConfig, sizes: Sizes, home: Path, tell: Callable[[str, Value], None]
) -> None:
    """Measure a step of two methods, and training from files beside the steps alone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    finetune = step_seconds(FineTune(batch_size=sizes.batch), model, sizes, device)
    par = step_seconds(Par(batch_size=sizes.batch), model, sizes, device)
    tell("finetune_step_s", round(finetune, 4))
    tell("par_step_s", round(par, 4))
    tell("par_step_ratio", round(par / finetune, 2))
    trained = train_rate(source, model, sizes, home / "train", device)
    tell("train_pairs_per_s", round(trained, 1))
    tell("train_ratio_to_plain_loop", round(trained * finetune / sizes.batch, 3))


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="sizes that two cores do in a minute")
    parser.add_argument("--model", type=Path, help="architecture of the tiny sizes: a JSON file")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="the parts to measure")
    options = parser.parse_args(arguments)
    figures: dict[str, Value] = {}

    def tell(name: str, value: Value) -> None:
        figures[name] = value
        sys.stdout.write(f"{name:<48}{value}\n")
        sys.stdout.flush()

    large = torch.cuda.is_available() and not options.tiny
    default = Path(__file__).resolve().parents[2] / "conf" / "model" / "demo.json"
    sizes = LARGE if large else tiny(ModelConfig(config=str(options.model or default)))
    with tempfile.TemporaryDirectory(prefix="clipsan-gpu-") as folder:
        started = time.perf_counter()
        measure(sizes, Path(folder), options.only, tell)
        tell("seconds", round(time.perf_counter() - started, 1))
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
