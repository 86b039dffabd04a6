"""The scan on a real local Ray: same result for any number of workers, every pair accounted for, nothing mixed up."""

import html
import json
import tarfile
from collections import Counter
from pathlib import Path

import boto3
import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.commit import FingerprintError, read_part
from clipsan.pipeline.core.config import ConfigError, as_tree, load
from clipsan.pipeline.core.run_folder import part_rows
from clipsan.pipeline.poison import verb as poison
from clipsan.pipeline.poison.plan import PoisonConfig
from clipsan.pipeline.scan import verb as scan_verb
from clipsan.pipeline.scan.plan import ScanConfig
from clipsan.pipeline.status import describe
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.stages.attack.poisoning import AttackConfig
from clipsan.stages.attack.triggers.patch import PatchConfig
from clipsan.stages.detectors import DetectorsConfig
from clipsan.stages.detectors.density import DensityConfig
from clipsan.stages.evaluation.detection import detection_figures
from clipsan.stages.model.checkpoints import ModelConfig
from clipsan.stages.model.clip import load_clip, save_clip
from clipsan.stages.samples import hash_uid
from clipsan.stages.sources import WebDataset, list_units, read_unit, rewritten
from clipsan.stages.verdicts import BudgetDecision
from tests.conftest import add_member, caption, picture, write_shards
from tests.integration.conftest import BUDGET, ON_RAY, part_bytes, scan_now
from tests.integration.data_sets import BAD, add_pair, make_source, write_damaged

pytestmark = pytest.mark.ray

SHARDS, PAIRS, POISON = 4, 50, 6


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory, ray_cluster) -> Path:
    """Run folder of a poisoned data set."""
    home = tmp_path_factory.mktemp("poisoned")
    data = WebDataset(path=str(write_shards(home / "pairs", shards=SHARDS, pairs=PAIRS)))
    attack = AttackConfig(trigger=PatchConfig(size_fraction=0.25), target="kite", count=POISON)
    config = PoisonConfig(data=data, attack=attack, out=str(home / "run"), tracking=TrackingConfig(enabled=False))
    poison.VERB.start(config)
    return home / "run"


@pytest.fixture(scope="module")
def data(poisoned) -> WebDataset:
    return WebDataset(path=str(poisoned / "data" / "*.tar"))


@pytest.fixture(scope="module")
def scanned(data, poisoned, tiny_checkpoint, tmp_path_factory) -> Path:
    """Run folder of a scan with two workers, everything asked for."""
    out = tmp_path_factory.mktemp("scanned") / "run"
    scan_now(
        data,
        tiny_checkpoint,
        out,
        manifest=str(poisoned / "manifest.parquet"),
        write=["clean", "quarantine"],
        tracking=TrackingConfig(),
        cluster=ON_RAY,
    )
    return out


def summary_of(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


def flagged_by_budget(out: Path) -> int:
    """Return how many pairs the budget flags: its share, and what ties with the last of them."""
    ensemble = np.sort(rows_of(out / "scores", ["ensemble"]).column("ensemble").to_numpy())
    return int((ensemble >= ensemble[-int(BUDGET * len(ensemble))]).sum())


def rows_of(folder: Path, columns: list[str] | None = None) -> pa.Table:
    return pa.concat_tables([read_part(folder, index, columns) for index in sorted(part_rows(folder))])


@pytest.mark.parametrize("cluster", [ClusterConfig(workers=1, alone_below_pairs=0), ClusterConfig()])
def test_one_worker_and_none_give_the_same_bytes_as_two(cluster, scanned, data, tiny_checkpoint, tmp_path):
    scan_now(data, tiny_checkpoint, tmp_path / "one", cluster=cluster)
    for name in ("embeddings", "rejected", "scores", "verdicts", "work/density"):
        expected = part_bytes(scanned / name)
        assert len(expected) >= SHARDS
        assert part_bytes(tmp_path / "one" / name) == expected, name
    for name in ("flagged.npy", "allow.npy", "rejected.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (scanned / name).read_bytes()


def test_summary_holds_what_the_design_asks_for(scanned):
    summary = summary_of(scanned)
    counts = summary["counts"]
    assert summary["verb"] == "scan"
    assert summary["seconds"] > 0
    assert len(summary["fingerprint"]) == 64
    assert isinstance(summary["targets"], list)
    assert Path(summary["report"]) == scanned / "report.html"
    assert counts["pairs_in"] == SHARDS * PAIRS
    assert counts["rejected"] == 0
    assert BUDGET * SHARDS * PAIRS <= counts["flagged"] == flagged_by_budget(scanned)
    assert sum(counts["verdicts"].values()) == SHARDS * PAIRS


def test_run_yaml_says_what_made_the_run_and_starts_it_again(scanned, tiny_checkpoint, data):
    record = yaml.safe_load((scanned / "run.yaml").read_text(encoding="utf-8"))
    assert record["verb"] == "scan"
    assert record["config"]["data"]["path"] == data.path
    assert record["config"]["model"]["path"] == str(tiny_checkpoint)
    assert record["versions"]["torch"]
    # The report tells the reader to start from this file.
    again = load(ScanConfig, str(scanned / "run.yaml"), ["out=elsewhere", "write=[clean]"], verb="scan")
    assert as_tree(again) == record["config"] | {"out": "elsewhere", "write": ["clean"]}
    with pytest.raises(ConfigError, match="clipsan scan"):
        load(PoisonConfig, str(scanned / "run.yaml"), [], verb="poison")


def test_status_lists_every_pass_that_commits_parts(scanned):
    told = describe(scanned)
    passes = ("embed", "score", "combine", "verdict", "write clean", "write quarantine")
    for name, parts in {**dict.fromkeys(passes, SHARDS), "density": 3 * SHARDS}.items():
        assert f"\n{name:<9} {parts}/{parts} parts" in told


def test_detection_figures_are_those_of_the_written_scores(scanned, poisoned):
    scores = rows_of(scanned / "scores")
    bad = set(pq.read_table(poisoned / "manifest.parquet").column("uid").to_pylist())
    truth = np.array([uid in bad for uid in scores.column("uid").to_pylist()])
    assert truth.sum() == POISON == summary_of(scanned)["poisoned"]
    detection = summary_of(scanned)["detection"]
    assert {"ensemble", "dao", "slof", "lid", "k_distance", "isolation_forest", "clip_score"} <= detection.keys()
    assert "lorex" not in detection
    for name, figures in detection.items():
        assert figures == detection_figures(scores.column(name).to_numpy(), truth), name
    flagged = ["poison_suspect" in reasons for reasons in rows_of(scanned / "verdicts").column("reasons").to_pylist()]
    assert summary_of(scanned)["poisoned_flagged"] == int((truth & np.array(flagged)).sum())


def test_a_manifest_of_other_data_does_not_cost_the_scan(
    scanned, data, tiny_checkpoint, poisoned, tmp_path, in_process
):
    manifest = pq.read_table(poisoned / "manifest.parquet")
    pq.write_table(manifest.slice(0, 0), tmp_path / "none.parquet")
    again = {"embeddings": str(scanned), "manifest": str(tmp_path / "none.parquet")}
    summary = scan_now(data, tiny_checkpoint, tmp_path / "run", **again)
    assert summary["poisoned"] == 0
    assert "detection" not in summary


def test_the_run_is_in_the_local_mlflow_store(scanned):
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{scanned.parent / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("clipsan").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["clipsan.verb"] == "scan"
    assert run.data.params["decision.share"] == str(BUDGET)
    assert run.data.metrics["counts.pairs_in"] == SHARDS * PAIRS
    assert {f.path for f in client.list_artifacts(run.info.run_id)} >= {"report.html", "run.yaml", "summary.json"}


def members(folder: Path) -> dict[tuple[str, str], bytes]:
    """(tar, member) -> header and content, byte for byte."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        raw = path.read_bytes()
        with tarfile.open(path) as tar:
            for m in tar:
                found[path.name, m.name] = raw[m.offset : m.offset_data + m.size]
    return found


def test_clean_and_quarantine_divide_the_data_byte_for_byte(scanned, data, poisoned):
    before = members(poisoned / "data")
    clean, quarantine = members(scanned / "clean"), members(scanned / "quarantine")
    assert clean | quarantine == before
    assert not clean.keys() & quarantine.keys()
    verdicts = rows_of(scanned / "verdicts", ["shard", "key", "reasons"]).to_pylist()
    suspects = {(v["shard"], v["key"]) for v in verdicts if "poison_suspect" in v["reasons"]}
    assert {(shard, name.partition(".")[0]) for shard, name in quarantine} == suspects
    assert len(suspects) == flagged_by_budget(scanned)


def test_the_clean_copy_is_scanned_with_the_same_source(scanned, data, tiny_checkpoint, tmp_path, in_process):
    summary = scan_now(rewritten(data, scanned / "clean"), tiny_checkpoint, tmp_path / "run")
    kept = SHARDS * PAIRS - flagged_by_budget(scanned)
    assert summary["counts"]["pairs_in"] == kept == sum(summary["counts"]["verdicts"].values())


def test_uid_lists_are_sorted_and_divide_the_verdicts(scanned):
    flagged, allow = np.load(scanned / "flagged.npy"), np.load(scanned / "allow.npy")
    for uids in (flagged, allow):
        assert uids.dtype == np.dtype("u8,u8")
        assert (np.sort(uids) == uids).all()
    numbers = {tuple(uid) for uid in flagged.tolist()} | {tuple(uid) for uid in allow.tolist()}
    assert len(numbers) == len(flagged) + len(allow) == SHARDS * PAIRS
    uids = rows_of(scanned / "verdicts", ["uid"]).column("uid").to_pylist()
    assert numbers == {(int(h[:16], 16), int(h[16:], 16)) for h in map(hash_uid, uids)}


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Name, inode, time and size of every file."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns, p.stat().st_size) for p in files}


def test_other_settings_in_the_same_folder_are_refused(scanned, data, tiny_checkpoint, in_process):
    before = state(scanned)
    with pytest.raises(FingerprintError, match=r"detectors\.density\.k[, )]"):
        scan_now(data, tiny_checkpoint, scanned, detectors=DetectorsConfig(density=DensityConfig(k=8)))
    with pytest.raises(FingerprintError, match=r"decision\.share"):
        scan_now(data, tiny_checkpoint, scanned, decision=BudgetDecision(share=0.5))
    assert state(scanned) == before


def test_a_finished_scan_does_nothing_again(scanned, data, poisoned, tiny_checkpoint, in_process):
    parts = {name: mark for name, mark in state(scanned).items() if name.endswith((".parquet", ".tar"))}
    scan_now(
        data,
        tiny_checkpoint,
        scanned,
        manifest=str(poisoned / "manifest.parquet"),
        write=["clean", "quarantine"],
    )
    assert {name: mark for name, mark in state(scanned).items() if name.endswith((".parquet", ".tar"))} == parts


def test_embeddings_of_an_earlier_run_are_used_again(scanned, data, tiny_checkpoint, tmp_path, in_process):
    summary = scan_now(data, tiny_checkpoint, tmp_path / "run", embeddings=str(scanned))
    assert not (tmp_path / "run" / "embeddings").exists()
    assert part_bytes(tmp_path / "run" / "scores") == part_bytes(scanned / "scores")
    assert summary["counts"] == summary_of(scanned)["counts"]


def test_embeddings_of_another_model_are_refused(scanned, data, tiny_checkpoint, tmp_path, in_process):
    clip = load_clip(ModelConfig(config=str(tiny_checkpoint.parent / "tiny.json")), init_seed=8)
    save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, tmp_path / "other")
    with pytest.raises(FingerprintError, match=r"embeddings=.*another model"):
        scan_now(data, tmp_path / "other", tmp_path / "run", embeddings=str(scanned))
    assert not (tmp_path / "run" / "scores").exists()


def test_a_trusted_set_adds_lorex(scanned, data, tiny_checkpoint, tmp_path, in_process):
    trusted = write_shards(tmp_path / "trusted", shards=1, pairs=60)
    out = tmp_path / "run"
    scan_now(data, tiny_checkpoint, out, embeddings=str(scanned), trusted=WebDataset(path=str(trusted)))
    lorex = rows_of(out / "scores").column("lorex").to_numpy()
    assert np.isfinite(lorex).all()
    assert len(np.unique(lorex)) > 1
    # Another trusted set under the same path is another scan.
    write_shards(tmp_path / "trusted", shards=1, pairs=40)
    with pytest.raises(FingerprintError):
        scan_now(data, tiny_checkpoint, out, embeddings=str(scanned), trusted=WebDataset(path=str(trusted)))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, tiny_checkpoint, ray_cluster) -> tuple[Path, Path, dict[str, int]]:
    """Data, run folder and expected rejections of a scan of damaged data."""
    home = tmp_path_factory.mktemp("damaged")
    folder, rejected = write_damaged(home / "pairs")
    data = WebDataset(path=str(folder))
    scan_now(data, tiny_checkpoint, home / "run", write=["clean", "quarantine"])
    return folder, home / "run", rejected


def test_every_damage_is_rejected_with_its_reason(damaged):
    _, out, rejected = damaged
    counts = summary_of(out)["counts"]
    assert counts["rejected_by_reason"] == rejected
    assert sum(counts["verdicts"].values()) == 2 * 40 + 20
    assert counts["pairs_in"] == 2 * 40 + 20 + sum(rejected.values())
    table = rows_of(out / "rejected")
    named = [
        (key, reason) for key, reason in zip(*(table.column(c).to_pylist() for c in ("key", "reason")), strict=True)
    ]
    assert [reason for key, reason in named if key in BAD] == [key for key, _ in named if key in BAD]
    assert [key for key, reason in named if reason == "duplicate_key"] == ["good000", "good000"]


def test_copies_of_damaged_data_hold_every_good_pair_once(damaged, tiny_checkpoint, tmp_path, in_process):
    folder, out, _ = damaged
    clean, quarantine = (members(out / kind) for kind in ("clean", "quarantine"))
    assert not clean.keys() & quarantine.keys()
    keys = {(shard, name.partition(".")[0]) for shard, name in clean | quarantine}
    assert len(keys) == 100
    assert len(clean) + len(quarantine) == 200
    with tarfile.open(folder / "00000.tar") as tar:
        first = tar.extractfile(tar.next()).read()
    assert (clean | quarantine)["00000.tar", "good000.jpg"].endswith(first)
    summary = scan_now(WebDataset(path=str(out / "clean")), tiny_checkpoint, tmp_path / "run")
    assert summary["counts"]["pairs_in"] == len(clean) / 2
    assert summary["counts"]["rejected"] == 0


def test_the_report_stands_alone_and_escapes_captions(damaged):
    page = (damaged[1] / "report.html").read_text(encoding="utf-8")
    assert "alert('" not in page.replace("&#39;", "")
    verdicts = rows_of(damaged[1] / "verdicts", ["caption", "reasons"]).to_pylist()
    flagged = [v["caption"] for v in verdicts if "poison_suspect" in v["reasons"]]
    assert any("<script>" in words for words in flagged)
    for words in flagged:
        assert html.escape(words).replace("&#x27;", "&#39;") in page
    for outside in ('src="http', 'href="http', "<link", "@import", "url(http"):
        assert outside not in page
    assert page.count("data:image/") >= len(flagged)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    shards=st.lists(
        st.lists(st.sampled_from(["good", "good", "good", "twin", *BAD]), max_size=12), min_size=1, max_size=4
    )
)
def test_in_is_verdicts_plus_rejected(shards, tiny_checkpoint, tmp_path_factory, in_process):
    home = tmp_path_factory.mktemp("mix")
    (home / "pairs").mkdir()
    expected: Counter[str] = Counter()
    for number, kinds in enumerate([["good"], *shards]):
        with tarfile.open(home / "pairs" / f"{number:05d}.tar", "w") as tar:
            add_pair(tar, "first", picture(number), b"the first pair of the shard")
            expected["good"] += 1
            for i, kind in enumerate(kinds):
                image, words = BAD.get(kind, (picture(100 * number + i), caption(i).encode()))
                add_member(tar, f"{i:03d}.note", b"stray members belong to no pair")
                add_pair(tar, "first" if kind == "twin" else f"k{i:03d}", image, words)
                expected["duplicate_key" if kind == "twin" else kind] += 1
    counts = scan_now(WebDataset(path=str(home / "pairs")), tiny_checkpoint, home / "run")["counts"]
    assert sum(counts["verdicts"].values()) == expected.pop("good")
    assert counts["rejected_by_reason"] == expected
    assert counts["pairs_in"] == sum(counts["verdicts"].values()) + counts["rejected"]


@pytest.mark.parametrize("kind", ["parquet", "table", "folder"])
def test_every_format_is_scanned_and_written_again(kind, tiny_checkpoint, tmp_path, in_process):
    data = make_source(kind, tmp_path / "pairs", 60)
    out = tmp_path / "run"
    counts = scan_now(data, tiny_checkpoint, out, write=["clean", "quarantine"])["counts"]
    flagged = flagged_by_budget(out)
    assert (counts["pairs_in"], counts["rejected"], counts["flagged"]) == (61, 1, flagged)
    before = {(p.image, p.caption) for unit in list_units(data) for p in read_unit(data, unit) if p.reject is None}
    copies = {}
    for name in ("clean", "quarantine"):
        copy = rewritten(data, out / name)
        copies[name] = [(p.image, p.caption) for unit in list_units(copy) for p in read_unit(copy, unit)]
    assert len(copies["quarantine"]) == flagged
    assert len(copies["clean"]) == 60 - flagged
    assert set(copies["clean"]) | set(copies["quarantine"]) <= before
    again = scan_now(rewritten(data, out / "clean"), tiny_checkpoint, tmp_path / "again")["counts"]
    assert (again["pairs_in"], again["rejected"]) == (60 - flagged, 0)


def test_data_in_an_object_store_gives_the_same_verdicts(scanned, data, poisoned, tiny_checkpoint, tmp_path):
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        keys = {"aws_access_key_id": "someone", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **keys)
        client.create_bucket(Bucket="pairs")
        for path in sorted((poisoned / "data").glob("*.tar")):
            client.upload_file(str(path), "pairs", f"set/{path.name}")
        options = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}"
        remote = WebDataset(path=f"s3://someone:secret@pairs/set/*.tar?{options}")
        scan_now(remote, tiny_checkpoint, tmp_path / "run")
        assert part_bytes(tmp_path / "run" / "verdicts") == part_bytes(scanned / "verdicts")
        assert (tmp_path / "run" / "report.html").read_text().count("data:image/") >= BUDGET * SHARDS * PAIRS
    finally:
        server.stop()


def test_a_shard_that_is_absent_costs_that_shard_alone(tiny_checkpoint, tmp_path, in_process):
    folder = write_shards(tmp_path / "pairs", shards=3, pairs=20)
    shards = sorted(folder.glob("*.tar"))
    shards[1].unlink()
    (folder / "pointer.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    paths = [str(path) for path in (*shards, folder / "pointer.tar")]
    settings = {"write": ["clean", "quarantine"], "max_lost_shards_pct": 40.0}
    summary = scan_now(WebDataset(path=paths), tiny_checkpoint, tmp_path / "run", **settings)
    lost = sorted([shards[1].name, "pointer.tar"])
    assert summary["counts"]["rejected_by_reason"] == {"shard_damaged": 2}
    assert sum(summary["counts"]["verdicts"].values()) == 40
    assert summary["lost_shards"] == {"count": 2, "of": 4, "names": lost, "too_many": True}
    assert f"2 of 4 shards could not be read to their end, more than max_lost_shards_pct allows: {', '.join(lost)}" in (
        scan_verb.VERB.closing(summary)
    )
    assert scan_verb.VERB.status(summary) == 1
    assert len(members(tmp_path / "run/clean") | members(tmp_path / "run/quarantine")) == 80
    assert "could not be read to their end" in (tmp_path / "run/report.html").read_text(encoding="utf-8")


def test_what_changed_since_the_scan_goes_into_no_copy(tiny_checkpoint, tmp_path, in_process):
    folder = write_shards(tmp_path / "pairs", shards=1, pairs=20)
    path = next(folder.glob("*.tar"))
    data = WebDataset(path=str(folder))
    scan_now(data, tiny_checkpoint, tmp_path / "run")
    with tarfile.open(path) as tar:
        first = tar.next()
        raw = bytearray(path.read_bytes())
    raw[first.offset_data + first.size - 20] ^= 1  # inside the first image, whose size stays
    path.write_bytes(raw)
    scan_now(data, tiny_checkpoint, tmp_path / "copy", embeddings=str(tmp_path / "run"), write=["clean", "quarantine"])
    written = members(tmp_path / "copy/clean") | members(tmp_path / "copy/quarantine")
    assert len(written) == 38
    assert (path.name, first.name) not in written


def test_data_that_nothing_can_be_read_of_says_what_helps(tiny_checkpoint, tmp_path, in_process):
    (tmp_path / "pairs").mkdir()
    with tarfile.open(tmp_path / "pairs/0.tar", "w") as tar:
        for i in range(5):
            add_member(tar, f"{i}.jpg", picture(i))
            add_member(tar, f"{i}.json", b'{"TEXT": "a kite"}')
    with pytest.raises(ConfigError, match=r"none of the pairs could be read.*set data.caption=TEXT"):
        scan_now(WebDataset(path=str(tmp_path / "pairs")), tiny_checkpoint, tmp_path / "run")


def test_one_pair_is_scanned(tiny_checkpoint, tmp_path, in_process):
    folder = write_shards(tmp_path / "pairs", shards=1, pairs=1)
    counts = scan_now(WebDataset(path=str(folder)), tiny_checkpoint, tmp_path / "run")["counts"]
    assert (counts["pairs_in"], sum(counts["verdicts"].values())) == (1, 1)
