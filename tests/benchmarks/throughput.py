"""Throughput of the embed pass of `clipsan scan` on Ray Data, against plain PyTorch loops that compute the same.

    python -m tests.benchmarks.throughput                    30,000 photos, three runs of every method, in turn
    python -m tests.benchmarks.throughput --limit 500 --runs 1 --no-store
    python -m tests.benchmarks.throughput --plain "plain loop, 2 processes of 1 thread"    beside one of the loops; nothing is stored

Every method gets the same photos, model, decoder and two cores, and every run is a process of its own. Two rates are taken:
from the moment when the first worker has its model to the last pair, and over the whole process, imports and Ray's start
included. The ratio is to the fastest plain loop, whichever that is.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipsan.pipeline.core.cluster import ClusterConfig, ray_session, start_ray
from clipsan.pipeline.core.config import conf_folder, load
from clipsan.pipeline.core.pass_ import Done, Pass
from clipsan.pipeline.core.run_folder import RunFolder
from clipsan.pipeline.scan.work import EmbedWork
from clipsan.stages.embed import EmbedConfig, Embedder
from clipsan.stages.model.clip import ModelConfig, load_clip, save_clip
from clipsan.stages.samples import Unit
from clipsan.stages.sources import ParquetSource, list_pieces
from clipsan.stages.stage import config
from tests.benchmarks import plain_loop
from tests.benchmarks.photos import ROOT, assets, found_assets
from tests.benchmarks.plain_loop import Piece, Task, Timing
from tests.benchmarks.results import Row, record

COMMAND = "python -m tests.benchmarks.throughput"
WORKERS = 2
SEED = 0
DATA = "tiny-imagenet"
RAY = "clipsan scan (Ray Data, 2 workers)"
PLAIN = {
    "plain loop, 1 process of 2 threads": lambda task: plain_loop.one_process(task, 2),
    "DataLoader, 2 workers, 1 thread": lambda task: plain_loop.data_loader(task, 2, 1),
    "DataLoader, 2 workers, 2 threads": lambda task: plain_loop.data_loader(task, 2, 2),
    "plain loop, 2 processes of 1 thread": lambda task: plain_loop.processes(task, 2),
}
METHODS = (RAY, *PLAIN)
TOLERANCE = 2e-3
"""Most that two methods may differ in a coordinate of a float16 unit vector: batches are cut elsewhere."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one method."""

    pairs: int
    seconds: float
    """From the first worker with a model to the last pair."""
    process_s: float
    """The whole process, imports and Ray's start included."""
    cpu_s: float
    """Processor time of the workers in `seconds`."""


@config
class DataSection:
    """What the benchmark reads of a verb's configuration: the section `data`."""

    data: ParquetSource


def source(folder: Path) -> ParquetSource:
    """Return the labelled photos as `clipsan scan data=labelled-parquet` would read them."""
    file = tempfile.NamedTemporaryFile("w", suffix=".yaml")  # noqa: SIM115 - closed below
    with file:
        path = folder / "tiny-imagenet-train-*.parquet"
        return load(DataSection, file.name, ["data=labelled-parquet", f"data.path={path}"], verb="scan").data


def first_units(found: ParquetSource, limit: int | None) -> list[Unit]:
    """Return the first `limit` rows, cut as a scan cuts the whole, rounded up to whole pieces."""
    units: list[Unit] = []
    rows = 0
    for unit in list_pieces(found):
        if limit is not None and rows >= limit:
            break
        stop = unit.stop if unit.stop >= 0 else pq.read_metadata(unit.path).num_rows
        units.append(unit)
        rows += stop - unit.start
    return units


def pieces_of(units: Sequence[Unit]) -> list[Piece]:
    """Return the same rows by file: a plain loop reads a file through, once."""
    stops: dict[tuple[str, str], int] = {}
    for unit in units:
        stop = unit.stop if unit.stop >= 0 else pq.read_metadata(unit.path).num_rows
        stops[unit.path, unit.shard] = max(stop, stops.get((unit.path, unit.shard), 0))
    return [Piece(path, shard, 0, stop) for (path, shard), stop in stops.items()]


@dataclass(frozen=True)
class TimedEmbedWork(EmbedWork):
    """The scan's own embed pass, with a note of the time: (process, ready, done, CPU seconds)."""

    def open(self) -> tuple[Embedder, float, float]:
        embedder = EmbedWork.open(self)
        return embedder, time.time(), time.process_time()

    def do(self, piece: Unit, tools: tuple[Embedder, float, float]) -> Done:
        embedder, ready, cpu = tools
        done = EmbedWork.do(self, piece, embedder)
        return replace(done, record=(os.getpid(), ready, time.time(), time.process_time() - cpu))


def embed_on_ray(found: ParquetSource, units: list[Unit], model: ModelConfig, out: Path) -> list[Timing]:
    """Run the embed pass as `clipsan scan` does."""
    cluster = ClusterConfig(workers=WORKERS)
    embed = Pass(
        name="embed",
        cluster=cluster,
        run=RunFolder(out),
        folder="embeddings",
        rejected="rejected",
        fingerprint="throughput",
        loads_model=True,
    )
    work = TimedEmbedWork(found, model, EmbedConfig(), "cpu")
    last: dict[int, tuple[float, float, float]] = {}
    pairs: dict[int, int] = {}
    with ray_session(cluster):
        start_ray()
        for done in embed.each({unit.index: unit for unit in units}, work):
            worker, *times = done.record
            pairs[worker] = pairs.get(worker, 0) + done.pairs
            last[worker] = max(last.get(worker, tuple(times)), tuple(times), key=lambda spent: spent[1])
    return [Timing(*times, pairs[worker]) for worker, times in last.items()]


def run_once(method: str, limit: int | None, checkpoint: Path, out: Path) -> None:
    """Run one method in this process and leave its timings in OUT/timings.json."""
    folder = _assets()
    found = source(folder)
    units = first_units(found, limit)
    model = ModelConfig(path=str(checkpoint))
    if method == RAY:
        timings = embed_on_ray(found, units, model, out)
    else:
        if found.captions_from_labels is None:
            raise ValueError("conf/data/labelled-parquet.yaml makes no captions")
        timings = PLAIN[method](Task(pieces_of(units), model, found.captions_from_labels, out))
    (out / "timings.json").write_text(json.dumps([asdict(t) for t in timings]), encoding="utf-8")


def measure(method: str, limit: int | None, checkpoint: Path, out: Path) -> Run:
    """Run one method in a fresh process.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    out.mkdir(parents=True)
    arguments = ["--one", method, "--checkpoint", str(checkpoint), "--out", str(out)]
    arguments += ["--limit", str(limit)] if limit is not None else []
    # Threads of OpenMP that wait for each other cost the plain loops half their speed; clipsan pins those of its workers too.
    threads = "2" if method.endswith("2 threads") else "1"
    pinned = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    command = [sys.executable, "-m", "tests.benchmarks.throughput", *arguments]
    started = time.time()
    subprocess.run(command, cwd=ROOT, env=os.environ | pinned, check=True)
    whole = time.time() - started
    timings = [Timing(**t) for t in json.loads((out / "timings.json").read_text(encoding="utf-8"))]
    return Run(
        pairs=sum(t.pairs for t in timings),
        seconds=max(t.done for t in timings) - min(t.ready for t in timings),
        process_s=whole,
        cpu_s=sum(t.cpu_s for t in timings),
    )


def check_same(ray_out: Path, plain_out: Path) -> None:
    """Compare what two methods wrote.

    Raises:
        ValueError: they did not embed the same pairs to the same vectors.
    """
    names = ["uid", "caption", "image_sha256", "dhash"]
    vectors = ["image", "text"]
    ray, plain = (
        pa.concat_tables(
            [pq.ParquetFile(path).read(names + vectors) for path in sorted(folder.glob("*.parquet"))],
            promote_options="permissive",
        ).sort_by("uid")
        for folder in (ray_out / "embeddings", plain_out)
    )
    for name in names:
        if ray.column(name).to_pylist() != plain.column(name).to_pylist():
            raise ValueError(f"the methods differ in {name}: they did not do the same work")
    for name in vectors:
        left, right = (
            np.asarray(t.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False), np.float32)
            for t in (ray, plain)
        )
        if np.abs(left - right).max() > TOLERANCE:
            raise ValueError(f"the methods differ in {name} by {np.abs(left - right).max():.4f}")


def rows_of(runs: dict[str, list[Run]], model: str) -> list[Row]:
    """Return the rows of throughput.json: medians over the runs, ratios to the fastest plain loop."""
    steady = {method: median(r.pairs / r.seconds for r in found) for method, found in runs.items()}
    whole = {method: median(r.pairs / r.process_s for r in found) for method, found in runs.items()}
    cpu = {method: median(1000 * r.cpu_s / r.pairs for r in found) for method, found in runs.items()}
    plain = [method for method in runs if method != RAY]
    best, best_whole = max(steady[m] for m in plain), max(whole[m] for m in plain)
    return [
        {
            "method": method,
            "data": DATA,
            "model": model,
            "seed": SEED,
            "pairs": found[0].pairs,
            "runs": len(found),
            "pairs_per_s": round(steady[method], 1),
            "pairs_per_s_min": round(min(r.pairs / r.seconds for r in found), 1),
            "pairs_per_s_max": round(max(r.pairs / r.seconds for r in found), 1),
            "pairs_per_s_with_startup": round(whole[method], 1),
            "startup_s": round(median(r.process_s - r.seconds for r in found), 1),
            "cpu_ms_per_pair": round(cpu[method], 3),
            "ratio_to_plain_loop": round(steady[method] / best, 3),
            "ratio_to_plain_loop_with_startup": round(whole[method] / best_whole, 3),
        }
        for method, found in runs.items()
    ]


def compare(config_file: Path, limit: int | None, count: int, methods: Sequence[str]) -> list[Row]:
    """Run every method `count` times, in turn, so that a slow spell of the machine meets them all; the first is that on Ray."""
    runs: dict[str, list[Run]] = {method: [] for method in methods}
    with tempfile.TemporaryDirectory(prefix="clipsan-throughput-") as folder:
        home = Path(folder)
        clip = load_clip(ModelConfig(config=str(config_file)), init_seed=SEED)
        save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, home / "model")
        for number in range(count):
            order = [*methods[number % len(methods) :], *methods[: number % len(methods)]]
            for method in order:
                run = measure(method, limit, home / "model", home / f"{number}-{methods.index(method)}")
                runs[method].append(run)
                sys.stdout.write(
                    f"run {number + 1}  {method:<36}{run.pairs / run.seconds:8.1f} pairs/s"
                    f"{run.pairs / run.process_s:8.1f} with start-up{1000 * run.cpu_s / run.pairs:8.2f} CPU ms a pair\n"
                )
                sys.stdout.flush()
            for index in range(1, len(methods)):
                check_same(home / f"{number}-0", home / f"{number}-{index}")
    return rows_of(runs, config_file.stem)


def main() -> int:
    """Measure, print and store; `--one` is one run of one method, in a process of its own."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=conf_folder() / "model" / "resnet10t-64.json", help="JSON file")
    parser.add_argument("--limit", type=int, help="only the first photos")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--plain", choices=PLAIN, help="beside this loop alone, and store nothing")
    parser.add_argument("--no-store", action="store_true", help="print the figures and keep the stored ones")
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_once(options.one, options.limit, options.checkpoint, options.out)
        return 0
    if found_assets() is None:
        return 0
    methods = METHODS if options.plain is None else (RAY, options.plain)
    rows = compare(options.model, options.limit, options.runs, methods)
    for row in rows:
        sys.stdout.write(
            f"{row['method']:<36}{row['pairs_per_s']:>9} pairs/s, {row['ratio_to_plain_loop']} of the best plain loop; "
            f"with start-up {row['pairs_per_s_with_startup']}, {row['ratio_to_plain_loop_with_startup']}\n"
        )
    if not options.no_store and methods == METHODS:
        record("throughput", rows, command=COMMAND)
    return 0


def _assets() -> Path:
    folder = assets()
    if folder is None:
        raise ValueError("the photos are not on this machine; CLIPSAN_ASSETS names their folder")
    return folder


if __name__ == "__main__":
    sys.exit(main())
