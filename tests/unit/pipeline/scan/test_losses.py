"""What a scan says of what it could not read."""

from pathlib import Path

import pyarrow as pa

from clipsan.pipeline.core.commit import write_part
from clipsan.pipeline.core.parts import Parts
from clipsan.pipeline.scan import losses
from clipsan.pipeline.scan.losses import Losses
from clipsan.stages.embed import REJECTED_SCHEMA


def rejected(folder: Path, rows: list[tuple[str, str, str]]) -> Parts:
    named = [
        {"uid": f"{shard}/{i}", "uid_hex": "", "shard": shard, "key": str(i), "reason": reason, "detail": detail}
        for i, (shard, reason, detail) in enumerate(rows)
    ]
    for number in range(2):
        write_part(folder, number, pa.Table.from_pylist(named[number::2], schema=REJECTED_SCHEMA), "f")
    return Parts.of(folder)


def test_nothing_lost_says_nothing(tmp_path: Path) -> None:
    found = Losses.of_run(rejected(tmp_path, [("a", "image_empty", "0 bytes")]), scanned=9, shards=3)
    assert found.tree(0.0) == {}
    assert losses.closing({}) == ""
    assert losses.status({}) == 0
    assert losses.closing({"counts": {"bytes_changed": 0}}) == ""


def test_images_that_changed_since_their_hash_was_published_are_in_the_closing_line() -> None:
    told = losses.closing({"counts": {"bytes_changed": 1234}})
    assert told == "; 1,234 images are not the ones whose hash the data set publishes"


def test_lost_shards_and_the_likely_setting(tmp_path: Path) -> None:
    rows = [
        ("1.tar", "shard_damaged", "1.tar: no such file; check the path"),
        ("2.tar", "shard_damaged", "the file is cut inside 'a.jpg'"),
        ("2.tar", "shard_damaged", "the file is cut inside 'a.jpg'"),
        ("t.csv", "shard_damaged", "one row: no JSON"),
        *[("3.tar", "caption_missing", "the .json has TEXT; set data.caption=TEXT")] * 9,
    ]
    found = Losses.of_run(rejected(tmp_path, rows), scanned=2, shards=8)
    assert (set(found.shards), found.pct) == ({"1.tar", "2.tar"}, 25)
    for limit, too_many in ((None, False), (25.0, False), (20.0, True)):
        tree = found.tree(limit)
        assert tree["lost_shards"]["too_many"] == too_many
        assert losses.status(tree) == int(too_many)
        assert ("more than max_lost_shards_pct allows" in losses.closing(tree)) == too_many
    assert "2 of 8 shards could not be read to their end" in losses.closing(tree)
    assert losses.closing(tree).endswith("set data.caption=TEXT")
