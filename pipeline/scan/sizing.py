"""What a scan will cost: hours, cores, GPUs, disk and memory, before any worker starts.

    clipsan scan ... --dry-run                  of your own data, model and machine: what is dear is measured on a sample of the pairs
    python -m clipsan.pipeline.scan.sizing      of 3 million, 400 million and 5 billion photos, with ViT-B/32 on GPUs

What depends on the data and the model (reading, decoding, encoding, bytes a pair) is measured on some pairs of the user's own, in
the dry run. What does not, or cannot be tried in seconds, stands in this file with the command that measured it.
"""

import io
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from threadpoolctl import threadpool_limits

from clipsan.stages.embed import Block, EmbedConfig, Encoder, Preparer
from clipsan.stages.model.clip import Clip, load_clip
from clipsan.stages.samples import RawPair, Unit
from clipsan.stages.sources import SourceConfig, read_unit

from .plan import Plan

SCORE_CORE_S = 2.6e-3
"""Core seconds a pair of all that is done with the cached vectors. Of `python -m tests.benchmarks.scoring`: 0.55e-3 for vectors and
layers 128 wide; those of a ViT-B are 512 and 768 wide, for which this reckons five times as much."""
EXAMINE_PASSES = 90
"""Pictures that the model sees for each examined pair, about: its regions taken out and pasted. Of `make demo`: 0.25 core seconds a
pair where one picture takes 2.75 ms."""
SEGMENT_CORE_S = 0.02
"""Core seconds that superpixels take for a picture: `python -m tests.benchmarks.oracle_quality`, seconds_per_1000."""
TABLE_BYTES = 400
"""Bytes a pair of all parts but the embeddings: scores, verdicts, lists, ranks of two permutations. Of
`python -m tests.benchmarks.scale --oracle null`."""
DRIVER_BYTES, DRIVER_BASE_BYTES = 64, 2250 * 2**20
"""Memory of the driver: a pair's uid, scores and place in a few arrays, beside what a scan takes whose samples of concepts have grown
to their bound: about 1,100 MiB of 10,000 pairs, 2,300 of a million. Of the same benchmark."""
GPU_FLOPS = 1.9e14
"""Floating-point operations a second of a GPU in bf16: an H200 embeds 13,300 pairs/s of ViT-B/32, 14.6e9 operations each
(`python -m tests.benchmarks.gpu`)."""
DRIVER_CORE_S = 5.2e-6
"""Seconds a pair that the driver alone takes, on one core: uid lists, counts, cuts, the report's columns. Of
`python -m tests.benchmarks.scale --driver`."""
SAMPLED_UNITS, SAMPLED_PAIRS = 3, 96
CAPTIONS = 64
"""Captions whose operations are counted."""
BLOCK = 8
"""Of them that are encoded at once."""
READ_S, ENCODE_S = 6.0, 6.0
"""Seconds that a dry run reads, and encodes, at the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a pair costs."""

    read_core_s: float
    """To read, decode and scale."""
    encode_s: float
    """To encode: seconds of a GPU, or core seconds."""
    on_gpu: bool
    shard_bytes: float
    """In the data set."""
    cache_bytes: float
    """In embeddings/."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How much is scanned, and with what."""

    pairs: int
    cores: int
    gpus: float
    examined: float
    """Share of the pairs that the oracle looks at; 0 without one."""
    copies: int = 0
    """Copies of the data set that are written."""
    cached: bool = False
    """Whether an earlier run has embedded the pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a scan takes."""

    embed_h: float
    score_h: float
    oracle_h: float
    driver_h: float
    """By the driver alone, whatever the number of workers."""
    disk_bytes: float
    driver_bytes: float

    @property
    def hours(self) -> float:
        return self.embed_h + self.score_h + self.oracle_h + self.driver_h


def cost(job: Job, rates: Rates) -> Cost:
    """Return what a job takes; on GPUs, cores decode while they encode."""
    n, cores, gpus = job.pairs, max(1, job.cores), job.gpus
    read, encode = n * rates.read_core_s, n * rates.encode_s
    looked_at = n * job.examined
    passes = looked_at * EXAMINE_PASSES * rates.encode_s
    if rates.on_gpu:
        embed, oracle = max(read / cores, encode / gpus), max(looked_at * SEGMENT_CORE_S / cores, passes / gpus)
    else:
        embed, oracle = (read + encode) / cores, (looked_at * SEGMENT_CORE_S + passes) / cores
    return Cost(
        embed_h=0.0 if job.cached else embed / 3600,
        score_h=n * SCORE_CORE_S / cores / 3600,
        oracle_h=oracle / 3600,
        driver_h=n * DRIVER_CORE_S / 3600,
        disk_bytes=n * ((0 if job.cached else rates.cache_bytes) + TABLE_BYTES + job.copies * rates.shard_bytes),
        driver_bytes=DRIVER_BASE_BYTES + n * DRIVER_BYTES,
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """Some pairs of a data set, as they were read."""

    pairs: list[RawPair]
    total: int
    """Pairs of the whole data set, about."""
    shard_bytes: float
    """A pair in the shards."""
    read_core_s: float
    """To read a pair, undecoded."""


def sample(source: SourceConfig, units: Sequence[Unit]) -> Sample:
    """Read some units of a data set, spread over it, for a few seconds at the most."""
    in_shard = Counter(unit.shard for unit in units)
    sizes = {unit.shard: unit.size_bytes for unit in units}
    chosen = [units[len(units) * (2 * i + 1) // (2 * SAMPLED_UNITS)] for i in range(min(SAMPLED_UNITS, len(units)))]
    chosen = list({unit.index: unit for unit in chosen}.values())
    kept: list[RawPair] = []
    seen = content = 0
    whole = 0.0
    stop, started = time.monotonic() + READ_S, time.process_time()
    for unit in chosen:
        own, left = 0, SAMPLED_PAIRS // len(chosen)
        for pair in read_unit(source, unit):
            own += 1
            content += len(pair.image or b"") + len((pair.caption or "").encode("utf-8", "replace"))
            if pair.reject is None and pair.image is not None and left:
                kept.append(pair)
                left -= 1
            if time.monotonic() > stop:
                # what is left of this unit is reckoned from the pairs so far
                whole += min(1.0, content / max(1, seen + own) * own * in_shard[unit.shard] / max(1, unit.size_bytes))
                break
        else:
            whole += 1.0
        seen += own
        if time.monotonic() > stop:
            break
    total = round(seen / whole * len(units)) if whole else 0
    core_s = (time.process_time() - started) / max(1, seen)
    return Sample(kept, total, sum(sizes.values()) / max(1, total), core_s)


def rates_of(found: Sample, clip: Clip, settings: EmbedConfig, *, on_gpu: bool, threads: int) -> Rates:
    """Measure on a sample what a pair costs; where a GPU is meant and none is here, its time is reckoned from the operations."""
    before = torch.get_num_threads()
    try:
        with threadpool_limits(threads):
            torch.set_num_threads(threads)
            started = time.process_time()
            prepare = Preparer(clip.inputs, settings, "cpu")
            few = [found.pairs[start : start + BLOCK] for start in range(0, len(found.pairs), BLOCK)]
            blocks = [block for pairs in few for block in prepare(pairs)]
            decode = (time.process_time() - started) / len(found.pairs)
            encode, cache = _encoding(Encoder(clip, settings), blocks)
    finally:
        torch.set_num_threads(before)
    return Rates(
        read_core_s=found.read_core_s + decode,
        encode_s=_operations(clip, found.pairs) / GPU_FLOPS if on_gpu else encode,
        on_gpu=on_gpu,
        shard_bytes=found.shard_bytes,
        cache_bytes=cache,
    )


def _encoding(encoder: Encoder, blocks: Sequence[Block]) -> tuple[float, float]:
    """Return core seconds and stored bytes a pair; the first block, on which everything is made ready, is not timed."""
    tables = [encoder(blocks[0])]
    stop, started = time.monotonic() + ENCODE_S, time.process_time()
    for block in blocks[1:]:
        tables.append(encoder(block))
        if time.monotonic() > stop:
            break
    timed = sum(table.num_rows for table in tables[1:])
    seconds = (time.process_time() - started) / max(1, timed)
    file = io.BytesIO()
    made = pa.concat_tables(tables)
    pq.write_table(made, file, compression="zstd")
    return seconds, file.tell() / max(1, made.num_rows)


def _operations(clip: Clip, pairs: Sequence[RawPair]) -> float:
    """Return the floating-point operations of encoding a pair, its caption in a batch of some of these."""
    from torch.utils.flop_counter import FlopCounterMode

    size = clip.image_size
    pictures, texts = FlopCounterMode(display=False), FlopCounterMode(display=False)
    captions = [pair.caption for pair in pairs[:CAPTIONS] if pair.caption] or [""]
    with torch.inference_mode():
        with pictures:
            clip.image_features(torch.zeros(1, 3, size, size, dtype=torch.uint8), [])
        with texts:
            clip.text_features(clip.shorten(clip.tokenize(captions)))
    return float(pictures.get_total_flops() + texts.get_total_flops() / len(captions))


def forecast(plan: Plan) -> str:
    """Return what a scan will take, as lines for --dry-run; what is measured on the pairs takes some seconds."""
    settings = plan.config
    found = sample(settings.data, plan.pairs.units)
    if len(found.pairs) <= BLOCK:
        return f"estimate   none: of the first pairs {len(found.pairs)} can be read\n"
    cluster = settings.cluster
    on_gpu = cluster.device != "cpu"
    rates = rates_of(
        found, load_clip(settings.model, "cpu"), plan.embed, on_gpu=on_gpu, threads=cluster.threads_per_worker
    )
    workers, pool = cluster.worker_count(), cluster.apart
    gpus = (pool.workers if pool is not None and pool.workers else 1) if on_gpu else 0
    job = Job(
        pairs=found.total,
        cores=workers * cluster.threads_per_worker,
        gpus=gpus,
        examined=settings.proof.budget if settings.oracle is not None else 0.0,
        copies=len(settings.write),
        cached=settings.embeddings is not None,
    )
    it = cost(job, rates)
    how = "reckoned for a GPU" if on_gpu else "on a core"
    return (
        f"sample     {len(found.pairs)} pairs: {1e3 * rates.read_core_s:.2g} core ms to read and decode, "
        f"{1e3 * rates.encode_s:.2g} ms to encode ({how}), {_size(rates.shard_bytes)} in the shards, {_size(rates.cache_bytes)} in "
        "embeddings/\n"
        f"estimate   about {found.total:,} pairs on {job.cores} cores"
        + (f" and {gpus} GPUs" if gpus else "")
        + f": {_hours(it.hours)} (embed {_hours(it.embed_h)}, score {_hours(it.score_h)}, oracle {_hours(it.oracle_h)}, "
        f"driver {_hours(it.driver_h)}), "
        f"{_size(it.disk_bytes)} of disk, {_size(it.driver_bytes)} of memory for the driver\n"
    )


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"


def _hours(hours: float) -> str:
    seconds = 3600 * hours
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 2 * 3600 else f"{hours:,.3g} h"


PHOTOS = Rates(read_core_s=3.6e-3, encode_s=1 / 13_300, on_gpu=True, shard_bytes=20e3, cache_bytes=10.5e3)
"""Photos of 256 px and ViT-B/32 in bf16: 16 cores decode 4,470 pairs/s, an H200 encodes 13,300 (`python -m tests.benchmarks.gpu`);
two vectors of 512 and four of 768 numbers in float16, less what zstd finds, and the facts of a pair."""
JOBS = (
    Job(pairs=3_000_000, cores=32, gpus=1, examined=0.05),
    Job(pairs=400_000_000, cores=512, gpus=8, examined=0.005),
    Job(pairs=5_000_000_000, cores=4096, gpus=64, examined=0.0005),
)


def table() -> str:
    """Return the table of deploy/README.md."""
    lines = [
        "| pairs | cores | GPUs | examined | embed | score | oracle | driver alone | disk | driver's memory |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for job in JOBS:
        it = cost(job, PHOTOS)
        lines.append(
            f"| {job.pairs:,} | {job.cores:,} | {job.gpus:g} | {100 * job.examined:g} % | {_hours(it.embed_h)} | {_hours(it.score_h)} | "
            f"{_hours(it.oracle_h)} | {_hours(it.driver_h)} | {_size(it.disk_bytes)} | {_size(it.driver_bytes)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
