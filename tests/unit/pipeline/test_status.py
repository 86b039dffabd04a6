"""What `clipsan status` says of a run folder in which something is damaged: a line, and the rest as ever."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from clipsan.pipeline.cli import main
from clipsan.pipeline.core.commit import part_path, write_part
from clipsan.pipeline.status import describe


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A scan that is finished, with a step."""
    for folder, verb in ((tmp_path, "scan"), (tmp_path / "step", "repair")):
        folder.mkdir(exist_ok=True)
        (folder / "run.yaml").write_text(yaml.safe_dump({"verb": verb, "fingerprint": "f" * 64, "config": {}}))
    for number in range(2):
        write_part(tmp_path / "rejected", number, pa.table({"reason": ["no caption"] * 3}), "f" * 64)
        write_part(tmp_path / "scores", number, pa.table({"a": [1.0, 2.0]}), "f" * 64)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "passes.json").write_text(json.dumps({"score": {"folder": "scores", "parts": 2}}))
    (tmp_path / "summary.json").write_text(json.dumps({"seconds": 2, "counts": {"pairs_in": 4}}))
    return tmp_path


def test_a_whole_run_has_no_line_of_damage(run: Path) -> None:
    told = describe(run)
    assert "damaged" not in told
    for line in (
        "score     2/2 parts, 4 rows",
        "rejected  no caption 6",
        'finished in 2 s: {"pairs_in": 4}',
        "  repair  ",
    ):
        assert line in told


@pytest.mark.parametrize(
    ("name", "content", "said", "kept"),
    [
        ("rejected/part-00001.parquet", b"", "part-00001.parquet is damaged", "rejected  no caption 3"),
        ("rejected/part-00001.parquet", b"PAR1" * 9, "part-00001.parquet is damaged", "rejected  no caption 3"),
        ("scores/part-00001.parquet", b"PAR1" * 9, "score     1/2 parts, 2 rows, 1 damaged, which", "finished in 2 s"),
        ("work/passes.json", b"{", "damaged   .*passes.json: not valid JSON", "finished in 2 s"),
        ("summary.json", b"\xff", "damaged   .*summary.json: not valid JSON; remove it", "score     2/2 parts"),
        ("step/run.yaml", b"[1", "  damaged   .*step/run.yaml: not valid YAML", "finished in 2 s"),
    ],
)
def test_what_is_broken_is_told_in_a_line(
    run: Path, name: str, content: bytes, said: str, kept: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / name).write_bytes(content)
    assert main(["status", str(run)]) == 0
    told = capsys.readouterr().out
    (line,) = (line for line in told.splitlines() if "damaged" in line)
    assert re.search(said, line)
    assert kept in told


def test_a_flipped_bit_of_what_was_rejected_is_told(run: Path) -> None:
    path = part_path(run / "rejected", 0)
    data = bytearray(path.read_bytes())
    data[8] ^= 1
    path.write_bytes(data)
    assert f"damaged   {path} is damaged" in describe(run)
