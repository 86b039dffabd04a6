"""The script for a machine with a GPU runs from its first line to its last, here with tiny sizes."""

import json
from pathlib import Path

import pytest

from tests.benchmarks import gpu
from tests.conftest import TINY

pytestmark = pytest.mark.ray


def test_every_figure_is_printed(ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(TINY))
    assert gpu.main(["--tiny", "--model", str(config)]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert figures["card"]
    measured = [name for name in figures if name.endswith(("_per_s", "_s", "_ratio", "_loop", "_decode", "_needs"))]
    assert len(measured) >= 14
    assert all(figures[name] > 0 for name in measured)
