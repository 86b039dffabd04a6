"""Scans whose input goes away or changes, in this process: what is left undone, what is said, and that a rerun does the rest."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipsan.pipeline.core import pass_
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.core.run_folder import finished_scan
from clipsan.pipeline.scan import verb as scan_verb
from clipsan.pipeline.status import describe
from clipsan.stages import sources
from clipsan.stages.files import Unreachable
from clipsan.stages.samples import RawPair, Unit
from clipsan.stages.sources import WebDataset
from tests.conftest import write_shards
from tests.integration.conftest import part_bytes, scan_now, scan_settings

pytestmark = pytest.mark.usefixtures("in_process")
SHARDS, PAIRS = 4, 20


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WebDataset:
    monkeypatch.setattr(pass_, "PAUSES_S", (0.0, 0.0))
    return WebDataset(path=str(write_shards(tmp_path / "pairs", shards=SHARDS, pairs=PAIRS)))


def made_of(run: Path) -> dict[str, bytes]:
    """Return everything that a run leaves but what names times and places."""
    lists = {name: (run / name).read_bytes() for name in ("flagged.npy", "allow.npy", "rejected.npy")}
    copies = {str(path.relative_to(run)): path.read_bytes() for path in sorted((run / "clean").rglob("*.tar"))}
    parts = {name: content for name, content in part_bytes(run).items() if not name.startswith("work/write-")}
    return lists | copies | parts


def test_a_shard_that_vanishes_is_left_undone_and_read_by_the_same_command(
    data: WebDataset, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    undisturbed = scan_now(data, tiny_checkpoint, tmp_path / "undisturbed", write=["clean"])
    settings = scan_settings(data, tiny_checkpoint, tmp_path / "run", write=["clean"])
    plan = scan_verb.VERB.plan(settings)
    shard = tmp_path / "pairs" / "00002.tar"
    away = shard.rename(tmp_path / "away.tar")
    summary = scan_verb.VERB.go(plan, {})
    assert summary["unread_shards"]["names"] == ["00002.tar"]
    assert (summary["unread_shards"]["count"], summary["unread_shards"]["of"]) == (1, SHARDS)
    assert "no such file" in summary["unread_shards"]["why"]
    assert summary["counts"]["pairs_in"] == (SHARDS - 1) * PAIRS
    assert summary["counts"]["rejected"] == 0
    assert scan_verb.VERB.status(summary) == 1
    closing = scan_verb.VERB.closing(summary).splitlines()[-1]
    assert closing.startswith("scan: not finished: 1 of 4 shards could not be read (")
    assert closing.endswith("00002.tar; nothing is said of their pairs, and the same command again reads them")
    assert "Run the same command again: 1 of 4 shards" in (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "but for 1 shards that could not be read" in describe(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run/clean").glob("*.tar")) == [
        "00000.tar",
        "00001.tar",
        "00003.tar",
    ]
    with pytest.raises(ConfigError, match="1 of its shards could not be read; run that scan again first"):
        finished_scan(str(tmp_path / "run"))

    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run/embeddings").iterdir()}
    away.rename(shard)
    again = scan_verb.VERB.start(settings)
    assert "unread_shards" not in again
    assert scan_verb.VERB.status(again) == 0
    assert again["counts"] == undisturbed["counts"]
    assert made_of(tmp_path / "run") == made_of(tmp_path / "undisturbed")
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run/embeddings").iterdir()}
    assert len(now) == SHARDS
    assert {name: now[name] for name in kept} == kept


def test_a_shard_that_answers_again_costs_nothing(
    data: WebDataset, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = scan_now(data, tiny_checkpoint, tmp_path / "undisturbed")
    failures = {"00001.tar": 2}
    read = sources.WebDataset.read_unit

    def unsure(self: WebDataset, unit: Unit) -> Iterator[RawPair]:
        pairs = read(self, unit)
        yield next(pairs)
        if failures.get(unit.shard, 0):
            failures[unit.shard] -= 1
            raise OSError("AWS Error SLOW_DOWN (HTTP status 503) during GetObject operation")
        yield from pairs

    monkeypatch.setattr(sources.WebDataset, "read_unit", unsure)
    summary = scan_now(data, tiny_checkpoint, tmp_path / "run")
    assert failures == {"00001.tar": 0}
    assert summary["counts"] == undisturbed["counts"]
    assert part_bytes(tmp_path / "run") == part_bytes(tmp_path / "undisturbed")


def test_data_of_which_no_shard_can_be_reached_end_the_scan_before_it_says_anything(
    data: WebDataset, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    plan = scan_verb.VERB.plan(scan_settings(data, tiny_checkpoint, tmp_path / "run"))
    (tmp_path / "pairs").rename(tmp_path / "away")
    with pytest.raises(Unreachable, match=r"none of the shards could be read: .*no such file"):
        scan_verb.VERB.go(plan, {})
    assert not (tmp_path / "run/summary.json").exists()


def swap_a_bit(path: Path) -> str:
    """Change a byte of the second image of a tar, whose size stays; return the image's name."""
    with tarfile.open(path) as tar:
        member = [one for one in tar if one.name.endswith(".png")][1]
    raw = bytearray(path.read_bytes())
    raw[member.offset_data + member.size - 20] ^= 1
    path.write_bytes(raw)
    return member.name


def test_a_shard_that_changed_under_its_name_and_size_is_refused_and_a_touched_one_is_not(
    data: WebDataset, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    first = scan_now(data, tiny_checkpoint, tmp_path / "run")
    shard = tmp_path / "pairs" / "00001.tar"
    for path in (tmp_path / "pairs").iterdir():
        os.utime(path, ns=(1, 1))
    assert scan_now(data, tiny_checkpoint, tmp_path / "run")["counts"] == first["counts"]

    before = shard.read_bytes()
    name = swap_a_bit(shard)
    with pytest.raises(ConfigError) as refused:
        scan_now(data, tiny_checkpoint, tmp_path / "run")
    told = str(refused.value)
    assert told.startswith("data: 00001.tar changed since this run read it")
    assert f"00001.tar/{name.removesuffix('.png')} is another pair now" in told
    assert told.endswith("put the file back as it was, or give another `out`")
    shard.write_bytes(before)
    assert scan_now(data, tiny_checkpoint, tmp_path / "run")["counts"] == first["counts"]


def test_a_shard_of_another_size_is_named(data: WebDataset, tiny_checkpoint: Path, tmp_path: Path) -> None:
    scan_now(data, tiny_checkpoint, tmp_path / "run")
    write_shards(tmp_path / "more", shards=1, pairs=PAIRS + 5)
    (tmp_path / "more/00000.tar").replace(tmp_path / "pairs/00001.tar")
    with pytest.raises(ConfigError, match=r"other input \(00001.tar has [0-9,]+ bytes and had [0-9,]+\); give another"):
        scan_now(data, tiny_checkpoint, tmp_path / "run")
    write_shards(tmp_path / "third", shards=1, pairs=1)
    (tmp_path / "third/00000.tar").replace(tmp_path / "pairs/zzz.tar")
    with pytest.raises(ConfigError, match=r"zzz.tar is new"):
        scan_now(data, tiny_checkpoint, tmp_path / "run")


@pytest.mark.parametrize("harm", ["gone", "cut off"])
def test_a_copy_that_is_gone_or_cut_off_is_named_and_written_again(
    data: WebDataset, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    scan_now(data, tiny_checkpoint, tmp_path / "run", write=["clean"])
    made = made_of(tmp_path / "run")
    path = tmp_path / "run/clean/00002.tar"
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:1000])
    capsys.readouterr()
    scan_now(data, tiny_checkpoint, tmp_path / "run", write=["clean"])
    said = capsys.readouterr().err
    assert f"{path} is {'gone' if harm == 'gone' else 'damaged (1,000 bytes'}" in said
    assert "00001.tar" not in said
    assert made_of(tmp_path / "run") == made
