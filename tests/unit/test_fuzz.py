"""A short run of the fuzz target: the first inputs of every format (`python -m tests.benchmarks.fuzz` tries 10,000)."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.drive import Outcome, run, summary
from tests.fuzz.mutations import mutate
from tests.fuzz.targets import TARGETS

EACH = 8


def test_no_input_of_the_first_ones_does_harm() -> None:
    found = list(run(((name, number) for name in TARGETS for number in range(EACH)), seed=0))
    assert [f"{one.target} {one.number}: {one.failed}" for one in found if one.failed] == []
    rows = summary(found)
    assert sum(row["inputs"] for row in rows) == EACH * len(TARGETS)
    assert all(row["read"] + row["refused"] == row["inputs"] for row in rows)
    assert sum(row["read"] for row in rows) > EACH
    assert sum(row["refused"] for row in rows) > EACH


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_target_reads_what_is_whole(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    for number, seed in enumerate(target.seeds()):
        if name.startswith(".pt") and b"state_dict" not in seed and b"logit_scale" not in seed:
            continue  # a plain pickle, which is no checkpoint
        home, out = tmp_path / f"{number}", tmp_path / f"out-{number}"
        home.mkdir()
        out.mkdir()
        target.around(home)
        file = home / target.file
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(seed)
        if name == "config.json of transformers":
            continue  # its weights have open_clip's names
        counts = target.read(file, out)
        assert counts["read"] > 0
        assert not counts["rejected"] or name.startswith("folder")


def test_the_same_numbers_give_the_same_bytes() -> None:
    seeds = [b"abc" * 20, json.dumps({"a": [1, {"b": "c"}]}).encode()]
    one, again = ([mutate(seeds, np.random.default_rng([3, i])) for i in range(50)] for _ in range(2))
    assert one == again
    assert len(set(one)) > 40


def test_what_takes_too_much_has_failed() -> None:
    assert not Outcome("tar", 0, "read").failed
    assert Outcome("tar", 0, "read", seconds=60).failed
    assert Outcome("tar", 0, "refused", mib=4000).failed
    assert Outcome("tar", 0, "hang").failed
