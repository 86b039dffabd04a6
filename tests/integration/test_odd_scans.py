"""Scans of sets that people really have, in this process: what their summary, their verdicts and their last line say."""

import io
import json
import tarfile
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from clipsan.pipeline.cli import main
from clipsan.pipeline.scan import verb as scan_verb
from clipsan.stages.model.checkpoints import ModelConfig
from clipsan.stages.model.clip import load_clip, save_clip
from clipsan.stages.oracle import SuperpixelsConfig
from clipsan.stages.sources import WebDataset
from tests.conftest import TINY, add_member, picture, write_shards
from tests.integration.conftest import scan_now

pytestmark = pytest.mark.usefixtures("in_process")


def verdicts(run: Path) -> list[dict]:
    return [
        row for part in sorted((run / "verdicts").glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()
    ]


def test_where_pairs_came_from_and_which_images_changed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    with tarfile.open(tmp_path / "pairs/0.tar", "w") as tar:
        for i in range(12):
            published = sha256(picture(i if i % 4 else 99)).hexdigest()
            fields = {
                "caption": f"kite {i}",
                "uid": f"id-{i}",
                "url": f"https://me:canary@h/{i}.png",
                "sha256": published,
            }
            add_member(tar, f"{i:02d}.json", json.dumps(fields).encode())
            add_member(tar, f"{i:02d}.png", picture(i))
    data = WebDataset(path=str(tmp_path / "pairs"), sha256="sha256")
    summary = scan_now(data, tiny_checkpoint, tmp_path / "run")
    assert summary["counts"]["bytes_changed"] == summary["counts"]["rejected"] == 3
    assert "; 3 images are not the ones whose hash the data set publishes" in scan_verb.VERB.closing(summary)
    rows = verdicts(tmp_path / "run")
    assert [row["source_id"] for row in rows] == [f"id-{i}" for i in range(12) if i % 4]
    assert rows[0]["source_url"] == "https://***@h/1.png"
    assert all(row["source_sha256"] == row["image_sha256"] for row in rows)
    rejected = pq.read_table(tmp_path / "run/rejected").to_pylist()
    assert [row["source_id"] for row in rejected] == ["id-0", "id-4", "id-8"]
    assert not any(b"canary" in file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file())


def encoded(level: int) -> bytes:
    """Return one picture in different bytes for each level of compression."""
    file = io.BytesIO()
    Image.open(io.BytesIO(picture(1))).save(file, "PNG", compress_level=level)
    return file.getvalue()


def test_one_picture_under_many_captions_is_a_placeholder_and_under_one_a_duplicate(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "pairs").mkdir()
    sets = {
        "other": [(picture(100 + i), f"kite number {i}") for i in range(60)],
        "gone": [(picture(0), f"offer number {i}") for i in range(25)],
        "again": [(encoded(i % 10), f"lamp number {i}") for i in range(25)],
        "logo": [(picture(2), "our logo") for _ in range(25)],
        "few": [(picture(3), f"boat number {i}") for i in range(5)],
    }
    with tarfile.open(tmp_path / "pairs/0.tar", "w") as tar:
        for name, pairs in sets.items():
            for i, (image, text) in enumerate(pairs):
                add_member(tar, f"{name}-{i:03d}.png", image)
                add_member(tar, f"{name}-{i:03d}.txt", text.encode())
    summary = scan_now(WebDataset(path=str(tmp_path / "pairs")), tiny_checkpoint, tmp_path / "run")
    found: dict[str, Counter] = {name: Counter() for name in sets}
    for row in verdicts(tmp_path / "run"):
        told = set(row["reasons"]) & {"placeholder", "near_duplicate"}
        found[row["key"].partition("-")[0]].update(told or {"neither"})
    assert "placeholder" not in found.pop("other")
    assert found == {
        "gone": {"placeholder": 25},
        "again": {"placeholder": 25},
        "logo": {"near_duplicate": 25},
        "few": {"near_duplicate": 5},
    }
    assert summary["counts"]["reasons"]["placeholder"] == 50


def test_a_siglip_is_scanned_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "siglip.json").write_text(json.dumps({**TINY, "init_logit_scale": 2.3, "init_logit_bias": -10.0}))
    clip = load_clip(ModelConfig(config=str(tmp_path / "siglip.json")), init_seed=7)
    save_clip(
        clip.model, clip.model_cfg, {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}, tmp_path / "ckpt"
    )
    data = WebDataset(path=str(write_shards(tmp_path / "pairs", shards=2, pairs=40)))
    summary = scan_now(data, tmp_path / "ckpt", tmp_path / "run", oracle=SuperpixelsConfig())
    assert sum(summary["counts"]["verdicts"].values()) == 80
    assert summary["counts"]["verdicts"]["poisoned"] == 0


def test_features_that_float16_cannot_hold_are_counted_and_told(tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    clip = load_clip(ModelConfig(config=str(tmp_path / "tiny.json")), init_seed=7)
    layer = "transformer.resblocks.1"
    with torch.no_grad():
        clip.model.visual.get_submodule(layer).mlp.c_proj.bias[3] = 1e6
    save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, tmp_path / "ckpt")
    data = WebDataset(path=str(write_shards(tmp_path / "pairs", shards=2, pairs=30)))
    summary = scan_now(data, tmp_path / "ckpt", tmp_path / "run")
    assert summary["saturated"][f"layer.{layer}"] == 60
    told = f"60 of 60 pairs in layer.{layer}"
    assert "; Features do not fit float16 (" in scan_verb.VERB.closing(summary)
    assert told in scan_verb.VERB.closing(summary)
    assert told in (tmp_path / "run/report.html").read_text()


def test_a_dry_run_refuses_an_oracle_without_weights(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_shards(tmp_path / "pairs", shards=1, pairs=4)
    words = ["scan", f"data.path={data}", f"model.path={tiny_checkpoint}", f"out={tmp_path}/run", "--dry-run"]
    assert main([*words, f"oracle={{kind: sam, path: {tmp_path}/nowhere.pth}}"]) == 2
    assert capsys.readouterr().err.splitlines() == [f"clipsan scan: oracle: path: no such file: {tmp_path}/nowhere.pth"]


def test_a_uid_that_stands_twice_is_never_both_kept_out_and_allowed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def write(twin: str | None) -> WebDataset:
        """Two shards of pairs with uids of their own; the last pair of the second has the uid `twin`."""
        (tmp_path / "pairs").mkdir(exist_ok=True)
        for shard in range(2):
            with tarfile.open(tmp_path / f"pairs/{shard}.tar", "w") as tar:
                for i in range(30):
                    own = twin if twin is not None and (shard, i) == (1, 29) else f"{100 * shard + i:032x}"
                    fields = {"caption": f"kite {100 * shard + i}", "uid": own}
                    add_member(tar, f"{i:02d}.json", json.dumps(fields).encode())
                    add_member(tar, f"{i:02d}.png", picture(100 * shard + i))
        return WebDataset(path=str(tmp_path / "pairs"))

    scan_now(write(None), tiny_checkpoint, tmp_path / "first")
    rows = verdicts(tmp_path / "first")
    assert not set(rows[-1]["reasons"]) & {"poison_suspect"}
    twin = next(row["uid_hex"] for row in rows[:30] if "poison_suspect" in row["reasons"])
    scan_now(write(twin), tiny_checkpoint, tmp_path / "second", write=["clean"])
    last = verdicts(tmp_path / "second")[-1]
    assert (last["uid_hex"], last["reasons"][-1], last["verdict"]) == (twin, "shared_uid", "suspect")
    lists = {name: np.load(tmp_path / f"second/{name}.npy").tolist() for name in ("flagged", "allow")}
    assert lists["flagged"].count((int(twin[:16], 16), int(twin[16:], 16))) == 2
    assert not set(lists["flagged"]) & set(lists["allow"])
    with tarfile.open(tmp_path / "second/clean/1.tar") as tar:
        assert "29.png" not in tar.getnames()


def test_of_a_key_that_was_taken_no_list_allows_the_uid(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    with tarfile.open(tmp_path / "pairs/0.tar", "w") as tar:
        for i, key in enumerate([*(f"{i:02d}" for i in range(12)), "05"]):
            add_member(tar, f"{key}.png", picture(i))
            add_member(tar, f"{key}.txt", f"kite {i}".encode())
    summary = scan_now(WebDataset(path=str(tmp_path / "pairs")), tiny_checkpoint, tmp_path / "run")
    assert summary["counts"]["rejected_by_reason"] == {"duplicate_key": 1}
    allow, rejected = (set(np.load(tmp_path / f"run/{name}.npy").tolist()) for name in ("allow", "rejected"))
    assert len(rejected) == 1
    assert not allow & rejected
