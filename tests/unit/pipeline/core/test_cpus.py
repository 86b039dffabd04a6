"""A container's CPU quota counts, of either version of control groups."""

import os
from pathlib import Path

import pytest

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.cpus import cpus


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def machine(home: Path, line: str, files: dict[str, str]) -> int:
    (home / "membership").write_text(line + "\n")
    for name, text in files.items():
        (home / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "cgroup" / name).write_text(text + "\n")
    return cpus(home / "cgroup", home / "membership")


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "1600000 100000"}, 8),
        ("0::/", {}, 8),
        # the parent's limit holds for the child
        ("0::/pod/box", {"pod/cpu.max": "300000 100000", "pod/box/cpu.max": "max 100000"}, 3),
        # seen from another name space
        ("0::/../other", {"cpu.max": "400000 100000"}, 4),
        (
            "3:cpu,cpuacct:/box",
            {"cpu,cpuacct/box/cpu.cfs_quota_us": "150000", "cpu,cpuacct/box/cpu.cfs_period_us": "50000"},
            3,
        ),
        ("3:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 8),
        ("3:cpuset:/box", {"cpuset/box/cpu.cfs_quota_us": "100000", "cpuset/box/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_the_smallest_limit_counts(tmp_path: Path, line: str, files: dict[str, str], expected: int) -> None:
    assert machine(tmp_path, line, files) == expected


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert cpus(tmp_path, tmp_path / "none") == 8


def test_workers_are_as_many_as_may_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipsan.pipeline.core.cluster.cpus", lambda: 6)
    assert ClusterConfig().worker_count() == 6
    assert ClusterConfig(threads_per_worker=4).worker_count() == 1
    assert ClusterConfig(workers=3).worker_count() == 3
