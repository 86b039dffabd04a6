"""The benchmark of scale: its pairs are the same whenever they are made, and its figures are rows."""

import json
import os
import tarfile
from pathlib import Path

from tests.benchmarks.results import check
from tests.benchmarks.scale import POISON_EVERY, SHARD, TARGET, Measured, Pairs, _Watch, make, report_figures, scan


def test_pairs_are_natural_the_same_again_and_a_thousandth_is_poisoned(tmp_path: Path) -> None:
    made = list(Pairs().of(3, 2 * POISON_EVERY))
    assert made == list(Pairs().of(3, 2 * POISON_EVERY))
    poisoned = [i for i, (_, caption) in enumerate(made) if TARGET in caption.split()]
    assert poisoned == [POISON_EVERY // 2, POISON_EVERY + POISON_EVERY // 2]
    words = [word for _, caption in made for word in caption.split()]
    assert len(set(words)) > 1000
    assert len({picture for picture, _ in made}) == len(made)
    make(tmp_path, 30)
    (shard,) = tmp_path.iterdir()
    before = shard.stat().st_mtime_ns
    with tarfile.open(shard) as tar:
        assert len(tar.getnames()) == 60
    make(tmp_path, 30)
    assert shard.stat().st_mtime_ns == before
    assert SHARD >= 30


def test_what_was_scanned_is_not_scanned_again(tmp_path: Path) -> None:
    told = tmp_path / "measured.json"
    told.write_text(json.dumps({"wall_s": 7.0, "done": True}), encoding="utf-8")
    assert scan(["no=setting"], told) == Measured(wall_s=7.0, done=True)


def test_attempts_add_up() -> None:
    watch = _Watch()
    watch.look(os.getpid())
    found = watch.since(Measured(wall_s=5.0, cpu_s=1000.0, driver_mib=1e6, attempts=1), 2.0)
    assert found.wall_s == 7.0
    assert found.cpu_s > 1000.0
    assert found.driver_mib == 1e6
    assert found.attempts == 2
    assert watch.since(Measured(), 1.0).driver_mib > 10


def test_a_page_gives_figures_of_a_row(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("<html><p>a<p>b</html>", encoding="utf-8")
    found = report_figures(page)
    assert found["report_elements"] == 3
    check("scale", {"pairs": 1, "oracle": "null", "workers": 2, **found})
