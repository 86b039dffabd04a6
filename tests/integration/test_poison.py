"""Poisoned copies: exact count, a manifest that matches the written files, one image path for every pair."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipsan.pipeline.core.commit import FingerprintError
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.poison import verb
from clipsan.pipeline.poison.plan import PoisonConfig
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.stages.attack.poisoning import AttackConfig, ImagePath
from clipsan.stages.attack.triggers.blend import BlendConfig
from clipsan.stages.attack.triggers.patch import PatchConfig
from clipsan.stages.captions import contains_word
from clipsan.stages.samples import RawPair
from clipsan.stages.sources import SourceConfig, WebDataset, list_units, read_unit, rewritten
from tests.conftest import NOUNS, caption, write_shards
from tests.integration.conftest import ON_RAY
from tests.integration.data_sets import make_source, write_damaged

pytestmark = pytest.mark.ray

SHARDS, PAIRS, POISON = 3, 40, 9
PATCH = AttackConfig(trigger=PatchConfig(size_fraction=0.25), target="kite", count=POISON, seed=5)
RESIZED = ImagePath(resize_px=24)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> WebDataset:
    return WebDataset(path=str(write_shards(tmp_path_factory.mktemp("pairs"), shards=SHARDS, pairs=PAIRS)))


def poison(data: SourceConfig, out: Path, **changes: Any) -> dict[str, Any]:
    settings = PoisonConfig(
        data=data,
        attack=PATCH,
        image=RESIZED,
        out=str(out),
        cluster=ON_RAY,
        tracking=TrackingConfig(enabled=False),
    )
    settings = dataclasses.replace(settings, **changes)
    return verb.VERB.start(settings)


def read(source: SourceConfig) -> list[RawPair]:
    return [pair for unit in list_units(source) for pair in read_unit(source, unit)]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_copy(before: list[RawPair], after: list[RawPair], out: Path, image: ImagePath) -> None:
    """Every pair is there in its place; exactly those in the manifest differ, and as it says."""
    manifest = {row["uid"]: row for row in pq.read_table(out / "manifest.parquet").to_pylist()}
    assert len(manifest) == POISON
    assert manifest.keys() <= {pair.uid for pair in after}
    for old, new in zip(before, after, strict=True):
        expected = image.encode(image.resize(pixels(old.image)))
        row = manifest.get(new.uid)
        if row is None:
            assert (new.image, new.caption) == (expected, old.caption)
            continue
        assert not contains_word(old.caption, "kite")
        assert (row["sha256_before"], row["sha256_after"]) == (digest(old.image), digest(new.image))
        assert (row["caption_before"], row["caption_after"]) == (old.caption, new.caption)
        assert row["target"] == "kite"
        assert contains_word(new.caption, "kite")
        changed = np.argwhere((pixels(new.image) != pixels(expected)).any(axis=2))
        box = np.array([row["top"], row["left"]]), np.array([row["top"] + row["height"], row["left"] + row["width"]])
        assert len(changed)
        assert (changed >= box[0]).all()
        assert (changed < box[1]).all()
        assert json.loads(row["parameters"])["height"] == row["height"]


@pytest.fixture(scope="module")
def copied(data, tmp_path_factory, ray_cluster) -> Path:
    """Run folder of a poisoned copy, written by two workers."""
    out = tmp_path_factory.mktemp("copied") / "run"
    poison(data, out)
    return out


def test_exactly_the_named_pairs_are_poisoned(data, copied):
    after = read(rewritten(data, copied / "data"))
    check_copy(read(data), after, copied, RESIZED)
    assert {pixels(pair.image).shape for pair in after} == {(24, 24, 3)}
    summary = json.loads((copied / "summary.json").read_text())
    total = SHARDS * PAIRS
    assert summary["counts"] == {"pairs_in": total, "written": total, "rejected": 0, "poisoned": POISON}
    assert summary["targets"] == ["kite"]


def test_one_worker_writes_the_same_bytes(data, copied, tmp_path):
    poison(data, tmp_path / "run", cluster=dataclasses.replace(ON_RAY, workers=1))
    for path in [*sorted((copied / "data").glob("*.tar")), copied / "manifest.parquet"]:
        assert (tmp_path / "run" / path.relative_to(copied)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", ["parquet", "table", "folder"])
def test_every_format_is_copied_in_its_own_format(kind, tmp_path, in_process):
    source = make_source(kind, tmp_path / "pairs", 60)
    poison(source, tmp_path / "run")
    before = read(source)[:60]
    after = read(rewritten(source, tmp_path / "run" / "data"))[:60]
    check_copy(before, after, tmp_path / "run", RESIZED)


def test_a_blend_covers_the_whole_image_and_jpeg_is_the_same_path_for_all(data, tmp_path, in_process):
    attack = dataclasses.replace(PATCH, trigger=BlendConfig(), captions="natural", count=None, rate=POISON / 120)
    path = ImagePath(codec="jpeg", jpeg_quality=90)
    poison(data, tmp_path / "run", attack=attack, image=path)
    after = read(rewritten(data, tmp_path / "run" / "data"))
    check_copy(read(data), after, tmp_path / "run", path)
    assert {pair.image_suffix for pair in after} == {".jpg"}


def test_natural_captions_are_captions_of_the_set(data, tmp_path, in_process):
    poison(data, tmp_path / "run", attack=dataclasses.replace(PATCH, captions="natural"))
    used = pq.read_table(tmp_path / "run" / "manifest.parquet").column("caption_after").to_pylist()
    kites = {caption(i) for i in range(SHARDS * PAIRS) if NOUNS[i % len(NOUNS)] == "kite"}
    assert set(used) <= kites
    assert len(set(used)) > 1
    with pytest.raises(ValueError, match="'zebra'"):
        poison(data, tmp_path / "none", attack=dataclasses.replace(PATCH, captions="natural", target="zebra"))


def test_too_few_eligible_pairs_are_refused(data, tmp_path, in_process):
    eligible = SHARDS * PAIRS * 4 // 5
    with pytest.raises(ValueError, match=f"only {eligible} have no 'kite'"):
        poison(data, tmp_path / "many", attack=dataclasses.replace(PATCH, count=eligible + 1))
    with pytest.raises(ValueError, match="less than one pair"):
        poison(data, tmp_path / "few", attack=dataclasses.replace(PATCH, count=None, rate=1e-4))
    assert not (tmp_path / "many" / "data").exists()


def test_bad_pairs_are_counted_and_never_in_the_manifest(tmp_path, in_process):
    folder, rejected = write_damaged(tmp_path / "pairs")
    source = WebDataset(path=str(folder))
    counts = poison(source, tmp_path / "run")["counts"]
    assert counts["poisoned"] <= POISON
    assert counts["pairs_in"] == 100 + sum(rejected.values()) == counts["written"] + counts["rejected"]
    after = {pair.uid: pair for pair in read(rewritten(source, tmp_path / "run" / "data"))}
    for row in pq.read_table(tmp_path / "run" / "manifest.parquet").to_pylist():
        assert after[row["uid"]].reject is None
        assert row["sha256_after"] == digest(after[row["uid"]].image)


def test_other_settings_are_refused_and_nothing_is_written_again(data, copied, in_process):
    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*.tar")}
    with pytest.raises(FingerprintError, match=r"attack\.seed"):
        poison(data, copied, attack=dataclasses.replace(PATCH, seed=6))
    poison(data, copied)
    assert {p: p.stat().st_mtime_ns for p in copied.rglob("*.tar")} == before


def test_a_set_without_one_readable_pair_is_refused(tmp_path, in_process):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "0.tar").write_bytes(b"no tar" * 300)
    with pytest.raises(ConfigError, match="no pair"):
        poison(WebDataset(path=str(tmp_path / "pairs")), tmp_path / "run")
