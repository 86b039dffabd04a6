"""The data set as an earlier run found it: which pairs of a shard that was touched count as the same."""

import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipsan.pipeline.core.commit import write_part
from clipsan.pipeline.core.parts import Parts
from clipsan.pipeline.scan.inputs import SameWork
from clipsan.stages.embed import REJECTED_SCHEMA
from clipsan.stages.samples import Reject
from clipsan.stages.sources import WebDataset
from tests.conftest import add_member, caption, picture


def compared(home: Path, reason: Reject, pictures: tuple[int, ...] = (0, 1, 2)) -> Any:
    """Return what is said of a shard of which the pair 1 was rejected for a reason, and the others were embedded with pictures 0 and 2."""
    (home / "pairs").mkdir()
    with tarfile.open(home / "pairs/0.tar", "w") as tar:
        for i, seed in enumerate(pictures):
            add_member(tar, f"{i}.png", picture(seed))
            add_member(tar, f"{i}.txt", caption(i).encode())
    embedded = [
        {"uid": f"0.tar/{i}", "image_sha256": sha256(picture(i)).hexdigest(), "caption": caption(i)} for i in (0, 2)
    ]
    rejected = [{**dict.fromkeys(REJECTED_SCHEMA.names), "uid": "0.tar/1", "reason": reason.value}]
    write_part(home / "embeddings", 0, pa.Table.from_pylist(embedded), "")
    write_part(home / "rejected", 0, pa.Table.from_pylist(rejected, schema=REJECTED_SCHEMA), "")
    source = WebDataset(path=str(home / "pairs"))
    work = SameWork(source, 10**6, Parts.of(home / "embeddings"), Parts.of(home / "rejected"))
    (unit,) = source.list_units()
    return work.do(unit, None).record


@pytest.mark.parametrize("reason", [Reject.DECODE_TIMEOUT, Reject.WORKER_DIED])
def test_a_picture_that_was_too_slow_or_deadly_is_not_tried_again(
    reason: Reject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bytes] = []
    monkeypatch.setattr("clipsan.stages.decode.refused", lambda data, *_: tried.append(data))
    assert compared(tmp_path, reason) is None
    assert not tried


def test_a_broken_picture_that_was_mended_is_another_pair(tmp_path: Path) -> None:
    assert "0.tar/1 is another pair now" in compared(tmp_path, Reject.IMAGE_TRUNCATED)


@pytest.mark.parametrize(
    ("pictures", "said"),
    [((7, 1, 2), "0.tar/0 is another pair now"), ((0, 1), "0.tar/2 is gone"), ((0, 1, 2, 3), "0.tar/3 is another")],
)
def test_pairs_beside_it_that_are_others_gone_or_new_are_told_of(
    pictures: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    assert said in compared(tmp_path, Reject.DECODE_TIMEOUT, pictures)
