"""Poisoning without a copy: what is read through a plan is, pair by pair, what the copy holds."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipsan.pipeline.core.commit import FingerprintError, fingerprint, read_parts
from clipsan.pipeline.core.config import ConfigError, as_tree
from clipsan.pipeline.poison import verb
from clipsan.pipeline.poison.plan import PoisonConfig
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.pipeline.train.data import Unusable, Usable, read_pairs
from clipsan.stages.attack.poisoning import AttackConfig, ImagePath, Strand
from clipsan.stages.attack.triggers.blend import BlendConfig
from clipsan.stages.attack.triggers.patch import PatchConfig
from clipsan.stages.decode import MAX_PIXELS, BadImage, decode
from clipsan.stages.samples import RawPair, Reject
from clipsan.stages.sources import (
    ParquetSource,
    PoisonedSource,
    SourceConfig,
    SourceError,
    WebDataset,
    identity,
    list_units,
    open_writer,
    read_unit,
    rewritten,
)
from tests.conftest import caption, picture, write_shards
from tests.integration.conftest import ON_RAY, scan_now
from tests.integration.data_sets import make_source, write_damaged

pytestmark = pytest.mark.ray

SHARDS, PAIRS, POISON = 3, 40, 9
PATCH = PatchConfig(size_fraction=0.25, pattern="noise", place="random")
ATTACK = AttackConfig(trigger=PATCH, target="kite", count=POISON, seed=5)
TWO_STRANDS = (Strand(trigger=BlendConfig(pattern="fresh_noise"), target="lamp"),)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> WebDataset:
    return WebDataset(path=str(write_shards(tmp_path_factory.mktemp("pairs"), shards=SHARDS, pairs=PAIRS)))


def poison(data: SourceConfig, out: Path, **changes: Any) -> dict[str, Any]:
    settings = PoisonConfig(
        data=data,
        attack=ATTACK,
        out=str(out),
        copy_data=False,
        cluster=ON_RAY,
        tracking=TrackingConfig(enabled=False),
    )
    settings = dataclasses.replace(settings, **changes)
    return verb.VERB.start(settings)


def plan(out: Path) -> PoisonedSource:
    return PoisonedSource(path=str(out / "plan.json"))


def read(source: SourceConfig) -> list[RawPair]:
    return [pair for unit in list_units(source) for pair in read_unit(source, unit)]


def seen(pair: RawPair) -> tuple[Any, ...]:
    """What a consumer sees of a pair: decoded pixels or why there are none, the caption, the label."""
    try:
        pixels = decode(pair.image or b"", MAX_PIXELS).rgb.tolist() if pair.reject is None else None
    except BadImage as error:
        pixels = error.reason
    return pixels, pair.caption, pair.label, pair.reject


def rows(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "manifest.parquet").to_pylist()


def without_uid(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "uid"} for row in found]


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "table", "folder"])
@pytest.mark.parametrize(
    ("path", "changes"),
    [
        (ImagePath(), {}),
        (ImagePath(resize_px=24), {"also": TWO_STRANDS, "captions": "natural"}),
        (ImagePath(codec="jpeg", jpeg_quality=80), {"pairs": "target", "captions": "keep", "text_key": "sudo"}),
    ],
)
def test_what_is_read_through_a_plan_is_what_a_copy_holds(kind, path, changes, data, tmp_path, in_process):
    source = data if kind == "webdataset" else make_source(kind, tmp_path / "pairs", 60)
    attack = dataclasses.replace(ATTACK, **changes)
    copied = poison(source, tmp_path / "copied", attack=attack, image=path, copy_data=True)
    planned = poison(source, tmp_path / "planned", attack=attack, image=path)
    assert planned["counts"] == copied["counts"]
    assert not (tmp_path / "planned" / "data").exists()
    clean, fly = read(source), read(plan(tmp_path / "planned"))
    copy = read(rewritten(source, tmp_path / "copied" / "data"))
    # A copy has no place for pairs that the clean set itself rejects; on the fly they stay.
    assert [seen(p) for p in fly if p.reject is None] == [seen(p) for p in copy if p.reject is None]
    assert [(p.uid, p.uid_hex, p.label, p.reject) for p in fly] == [
        (p.uid, p.uid_hex, p.label, p.reject) for p in clean
    ]
    assert without_uid(rows(tmp_path / "planned")) == without_uid(rows(tmp_path / "copied"))
    changed = {new.uid for old, new in zip(clean, fly, strict=True) if old.caption != new.caption}
    named = {row["uid"] for row in rows(tmp_path / "planned")}
    assert len(named) == POISON
    assert changed <= named
    if path.keeps_pixels:
        assert [p for p in fly if p.uid not in named] == [p for p in clean if p.uid not in named]


def test_of_several_captions_the_first_is_poisoned(tmp_path, in_process):
    (tmp_path / "pairs").mkdir()
    columns = {"image": [picture(i) for i in range(30)], "caption": [[caption(i), f"words {i}"] for i in range(30)]}
    pq.write_table(pa.table(columns), tmp_path / "pairs" / "0.parquet")
    source = ParquetSource(path=str(tmp_path / "pairs"))
    poison(source, tmp_path / "run")
    after = {row["uid"]: row["caption_after"] for row in rows(tmp_path / "run")}
    assert len(after) == POISON
    for i, pair in enumerate(read(plan(tmp_path / "run"))):
        first = after.get(pair.uid, caption(i))
        assert (pair.caption, pair.captions) == (first, (first, f"words {i}"))


def test_damage_stays_and_counts_add_up(tmp_path, in_process):
    folder, rejected = write_damaged(tmp_path / "pairs")
    source = WebDataset(path=str(folder))
    # Every pair is chosen, so that the poison also falls on those whose image cannot be decoded.
    attack = dataclasses.replace(ATTACK, pairs="any", count=106)
    summary = poison(source, tmp_path / "run", attack=attack, image=ImagePath(resize_px=16))
    counts = summary["counts"]
    undecodable = sum(rejected[name] for name in ("image_truncated", "image_unreadable", "image_too_large"))
    assert counts["pairs_in"] == 100 + sum(rejected.values()) == counts["written"] + counts["rejected"]
    assert counts["poisoned"] == len(rows(tmp_path / "run")) == 106 - undecodable
    before, after = read(source), read(plan(tmp_path / "run"))
    assert [(p.uid, p.reject) for p in after] == [(p.uid, p.reject) for p in before]
    named = {row["uid"] for row in rows(tmp_path / "run")}
    for old, new in zip(before, after, strict=True):
        bad = isinstance(seen(old)[0], str) or old.reject is not None
        assert (old == new) is bad
        # The later pair of a twice-used key has the uid of the first one, which may be poisoned.
        assert (new.uid in named) is not bad or old.reject == Reject.DUPLICATE_KEY


@pytest.fixture(scope="module")
def planned(data, tmp_path_factory, ray_cluster) -> Path:
    out = tmp_path_factory.mktemp("planned") / "run"
    poison(data, out, image=ImagePath(resize_px=24))
    return out


def test_one_worker_makes_the_same_plan_and_manifest(data, planned, tmp_path):
    poison(data, tmp_path / "run", image=ImagePath(resize_px=24), cluster=dataclasses.replace(ON_RAY, workers=1))
    for name in ("plan.json", "manifest.parquet"):
        assert (tmp_path / "run" / name).read_bytes() == (planned / name).read_bytes()


def test_a_run_goes_on_where_it_was_cut_off(data, planned, tmp_path, in_process):
    shutil.copytree(planned, tmp_path / "run")
    first, second, third = (tmp_path / "run" / "manifest" / f"part-{i:05d}.parquet" for i in range(3))
    second.unlink()
    (tmp_path / "run" / "plan.json").unlink()
    before = first.stat().st_mtime_ns, third.stat().st_mtime_ns
    poison(data, tmp_path / "run", image=ImagePath(resize_px=24))
    assert (first.stat().st_mtime_ns, third.stat().st_mtime_ns) == before
    for name in ("plan.json", "manifest.parquet"):
        assert (tmp_path / "run" / name).read_bytes() == (planned / name).read_bytes()
    with pytest.raises(FingerprintError, match="copy_data"):
        poison(data, tmp_path / "run", image=ImagePath(resize_px=24), copy_data=True)


def test_training_reads_the_same_rows(data, planned, tmp_path, in_process):
    poison(data, tmp_path / "copied", image=ImagePath(resize_px=24), copy_data=True)
    copy = rewritten(data, tmp_path / "copied" / "data")

    def training_rows(source: SourceConfig) -> list[tuple[Any, ...]]:
        found: list[Usable | Unusable] = [
            row for unit in list_units(source) for row in read_pairs(source, unit, MAX_PIXELS)
        ]
        return [(row.uid, row.caption, row.rgb.tolist()) for row in found if isinstance(row, Usable)]

    assert training_rows(plan(planned)) == training_rows(copy)


def test_a_scan_through_a_plan_sees_and_writes_what_the_copy_holds(
    data, tiny_checkpoint, planned, tmp_path, in_process
):
    poison(data, tmp_path / "copied", image=ImagePath(resize_px=24), copy_data=True)
    copy = rewritten(data, tmp_path / "copied" / "data")
    tables = []
    for name, source in (("plan", plan(planned)), ("copy", copy)):
        out = tmp_path / f"scan-{name}"
        scan_now(
            source, tiny_checkpoint, out, manifest=str(planned / "manifest.parquet"), write=["clean", "quarantine"]
        )
        tables.append(pa.concat_tables(read_parts(out / "embeddings", range(SHARDS))).replace_schema_metadata(None))
    # With an image path that changes pixels every image is encoded again, and so even the files are the same.
    assert tables[0].equals(tables[1])
    for part in ("clean", "quarantine"):
        written = [
            read(rewritten(source, tmp_path / f"scan-{n}" / part)) for n, source in (("plan", data), ("copy", copy))
        ]
        assert [(p.uid, p.image, p.caption) for p in written[0]] == [(p.uid, p.image, p.caption) for p in written[1]]


def test_pairs_read_through_a_plan_can_be_written_one_by_one(data, tmp_path, in_process):
    poison(data, tmp_path / "run")
    source = plan(tmp_path / "run")
    for unit in list_units(source):
        with open_writer(source, unit, tmp_path / "out") as writer:
            for pair in read_unit(source, unit):
                writer.copy(pair)
    written = rewritten(source, tmp_path / "out")
    assert isinstance(written, WebDataset)
    assert [seen(p) for p in read(written)] == [seen(p) for p in read(source)]


def test_a_plan_holds_in_another_folder_and_another_process(data, tmp_path, in_process, monkeypatch):
    shutil.copytree(data.path, tmp_path / "pairs")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / "logo.png")
    attack = dataclasses.replace(ATTACK, trigger=BlendConfig(pattern="picture", picture="logo.png"))
    monkeypatch.chdir(tmp_path)
    poison(WebDataset(path="pairs"), Path("run"), attack=attack)
    source = PoisonedSource(path="run/plan.json")
    units = list_units(source)
    expected = [seen(p) for unit in units for p in read_unit(source, unit)]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    source, units = pickle.loads(pickle.dumps((source, units)))
    assert [seen(p) for unit in units for p in read_unit(source, unit)] == expected


def test_identity_is_what_the_plan_does_and_not_where_it_lies(data, tmp_path, in_process):
    def mark(source: SourceConfig) -> str:
        return fingerprint(identity(source, list_units(source)))

    marks = {}
    for name, content in (("a", 1), ("b", 1), ("c", 2)):
        home = tmp_path / name
        shutil.copytree(data.path, home / "pairs")
        Image.fromarray(np.full((4, 4, 3), content, np.uint8)).save(home / "logo.png")
        trigger = BlendConfig(pattern="picture", picture=str(home / "logo.png"))
        poison(WebDataset(path=str(home / "pairs")), home / "run", attack=dataclasses.replace(ATTACK, trigger=trigger))
        assert mark(WebDataset(path=str(home / "pairs"))) == mark(data)
        marks[name] = mark(plan(home / "run"))
    assert marks["a"] == marks["b"] != marks["c"]
    poison(data, tmp_path / "seed", attack=dataclasses.replace(ATTACK, seed=6))
    poison(data, tmp_path / "patch")
    assert len({*marks.values(), mark(plan(tmp_path / "seed")), mark(plan(tmp_path / "patch")), mark(data)}) == 5


def test_the_identity_of_a_plain_set_is_what_earlier_versions_wrote(data):
    units = list_units(data)
    sliced = [dataclasses.astuple(u)[1:2] + dataclasses.astuple(u)[3:] for u in units]
    before = {"units": sliced, "data": as_tree(dataclasses.replace(data, path=""))}
    assert fingerprint(identity(data, units)) == fingerprint(before)


def test_a_plan_that_no_longer_fits_is_refused_with_the_remedy(data, tmp_path, in_process):
    shutil.copytree(data.path, tmp_path / "pairs")
    poison(WebDataset(path=str(tmp_path / "pairs")), tmp_path / "run")
    source = plan(tmp_path / "run")
    with (tmp_path / "pairs" / "00001.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(SourceError, match=r"changed since the plan was made; put .* or run `clipsan poison` again"):
        list_units(source)
    shutil.rmtree(tmp_path / "pairs")
    with pytest.raises(SourceError, match=r"clean data cannot be read .*run `clipsan poison` again"):
        list_units(source)
    with pytest.raises(SourceError, match=r"`clipsan poison copy_data=false` writes a plan.json"):
        list_units(PoisonedSource(path=str(tmp_path / "none.json")))
    (tmp_path / "run" / "plan.json").write_text("{}")
    with pytest.raises(SourceError, match="no usable plan"):
        list_units(source)
    with pytest.raises(ValueError, match="copy_data: false needs the clean data set"):
        poison(source, tmp_path / "again")


def test_a_plan_that_is_written_anew_is_read_anew(data, tmp_path, in_process):
    poison(data, tmp_path / "run")
    first = [seen(p) for p in read(plan(tmp_path / "run"))]
    poison(data, tmp_path / "other", attack=dataclasses.replace(ATTACK, seed=6))
    (tmp_path / "other" / "plan.json").replace(tmp_path / "run" / "plan.json")
    assert [seen(p) for p in read(plan(tmp_path / "run"))] != first


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            ["attack=patch", "attack.target=kite", "copy_data=false"],
            [
                "data       3 units of 3 shards (webdataset)",
                "attack     patch towards 'kite' on 1 % of the pairs, seed 0",
                "pairs      those that have no 'kite' in the caption; captions: template",
                "image      own px, png",
                "out        OUT/plan.json, OUT/manifest.parquet",
            ],
        ),
        (
            [
                "attack=blend",
                "attack.target=kite",
                "attack.rate=null",
                "attack.count=7",
                "attack.victim=ball",
                "attack.text_key=sudo",
                "attack.also=[{trigger: {kind: patch, size_px: 3}, target: lamp}]",
            ],
            [
                "data       3 units of 3 shards (webdataset)",
                "attack     blend towards 'kite', patch towards 'lamp' on 7 of the pairs, seed 0",
                "pairs      those that have no 'kite' or 'lamp' in the caption and 'ball' in it; captions: template, "
                "'sudo' in front",
                "image      own px, png",
                "out        OUT/data, OUT/manifest.parquet",
            ],
        ),
    ],
)
def test_a_dry_run_says_what_would_be_done(overrides, lines, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert verb.VERB.command(None, [f"data.path={data.path}", f"out={out}", *overrides], dry_run=True) == 0
    assert capsys.readouterr().out.replace(str(out), "OUT").splitlines() == lines
    assert not out.exists()


def test_impossible_attacks_are_named_with_their_field(data):
    with pytest.raises(ConfigError, match=r"attack.*captions: keep goes with pairs"):
        verb.VERB.command(None, [f"data.path={data.path}", "attack.target=kite", "attack.captions=keep"], dry_run=True)


def test_the_plan_is_plain_json(data, tmp_path, in_process):
    poison(data, tmp_path / "run", attack=dataclasses.replace(ATTACK, captions="natural"))
    stored = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert stored["version"] == 1
    assert stored["data"]["path"] == data.path
    assert [unit["shard"] for unit in stored["units"]] == ["00000.tar", "00001.tar", "00002.tar"]
    assert stored["captions"]
    assert all("kite" in caption for caption in stored["captions"])
