"""What a scan will cost: the sums, and a sample of real tars whose size is known."""

from pathlib import Path

import pytest

from clipsan.pipeline.scan.sizing import (
    EXAMINE_PASSES,
    SCORE_CORE_S,
    SEGMENT_CORE_S,
    Job,
    Rates,
    cost,
    rates_of,
    sample,
    table,
)
from clipsan.stages.embed import EmbedConfig
from clipsan.stages.model.checkpoints import ModelConfig
from clipsan.stages.model.clip import load_clip
from clipsan.stages.sources import WebDataset, list_units
from tests.conftest import write_shards

ROOT = Path(__file__).parents[4]
RATES = Rates(read_core_s=0.004, encode_s=0.001, on_gpu=False, shard_bytes=1e4, cache_bytes=1e3)


def test_the_slower_of_cores_and_gpus_sets_the_pace():
    job = Job(pairs=1_000_000, cores=10, gpus=0, examined=0.01, copies=1)
    alone = cost(job, RATES)
    assert alone.embed_h * 3600 == pytest.approx(1_000_000 * 0.005 / 10)
    assert alone.score_h * 3600 == pytest.approx(1_000_000 * SCORE_CORE_S / 10)
    assert alone.oracle_h * 3600 == pytest.approx(10_000 * (SEGMENT_CORE_S + EXAMINE_PASSES * 0.001) / 10)
    assert alone.hours == pytest.approx(alone.embed_h + alone.score_h + alone.oracle_h + alone.driver_h)
    on_gpu = Rates(read_core_s=0.004, encode_s=0.001, on_gpu=True, shard_bytes=1e4, cache_bytes=1e3)
    for gpus, seconds in ((1, 1000), (8, 400)):
        found = cost(Job(pairs=1_000_000, cores=10, gpus=gpus, examined=0), on_gpu)
        assert found.embed_h * 3600 == pytest.approx(seconds)
    without = cost(Job(pairs=1_000_000, cores=10, gpus=0, examined=0.01), RATES)
    cached = cost(Job(pairs=1_000_000, cores=10, gpus=0, examined=0.01, copies=1, cached=True), RATES)
    assert (cached.embed_h, cached.score_h) == (0, alone.score_h)
    assert alone.disk_bytes - cached.disk_bytes == pytest.approx(1e9)
    assert alone.disk_bytes - without.disk_bytes == pytest.approx(1e10)


def test_time_and_disk_grow_with_the_pairs():
    few, many = (cost(Job(pairs=n, cores=4, gpus=0, examined=0.1), RATES) for n in (1000, 1_000_000))
    assert many.hours == pytest.approx(1000 * few.hours)
    assert many.disk_bytes == pytest.approx(1000 * few.disk_bytes)


def test_a_sample_tells_how_many_pairs_there_are(tmp_path: Path, tiny_checkpoint: Path):
    source = WebDataset(path=str(write_shards(tmp_path / "pairs", shards=5, pairs=40)))
    found = sample(source, list_units(source))
    assert found.total == 200
    assert len(found.pairs) == 96
    size = sum(file.stat().st_size for file in (tmp_path / "pairs").glob("*.tar"))
    assert found.shard_bytes == pytest.approx(size / 200)
    clip = load_clip(ModelConfig(path=str(tiny_checkpoint)))
    rates = rates_of(found, clip, EmbedConfig(), on_gpu=False, threads=1)
    assert rates.read_core_s > 0
    assert rates.encode_s > 0
    assert 100 < rates.cache_bytes < 5000
    reckoned = rates_of(found, clip, EmbedConfig(), on_gpu=True, threads=1)
    assert 0 < reckoned.encode_s < rates.encode_s


def test_the_table_of_the_document_is_the_command_s():
    assert table() in (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
