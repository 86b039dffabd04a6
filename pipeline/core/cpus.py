"""How many CPUs this process may use at once: its affinity, and the quota of the container that it runs in."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def cpus(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return the CPUs that this process may keep busy, at least 1; a quota of 2.5 CPUs counts as 2.

    Args:
        cgroups: where the control groups are mounted.
        membership: the control groups of this process.
    """
    allowed = len(os.sched_getaffinity(0))
    quotas = [quota for folder in _folders(cgroups, membership) if (quota := _quota(folder)) is not None]
    return max(1, min(allowed, *(int(quota) for quota in quotas))) if quotas else allowed


def _folders(cgroups: Path, membership: Path) -> list[Path]:
    """Return the folders of the groups that this process is in, up to the root of each hierarchy: any of them may limit it."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # version 2 has one hierarchy and no controllers in the line; of version 1 the mount is named as the controllers
        root = cgroups / controllers
        inside = [part for part in path.split("/") if part not in ("", "..")]
        found += [root.joinpath(*inside[:depth]) for depth in range(len(inside), -1, -1)]
    return found


def _quota(folder: Path) -> float | None:
    """Return the CPUs that a control group may use; None where it has no limit, or is not seen from within the container."""
    both = _numbers(folder / "cpu.max")
    if both is None:
        quota, period = _numbers(folder / "cpu.cfs_quota_us"), _numbers(folder / "cpu.cfs_period_us")
        both = [*quota, *period] if quota and period else None
    return both[0] / both[1] if both is not None and len(both) == 2 and both[0] > 0 and both[1] > 0 else None


def _numbers(file: Path) -> list[int] | None:
    try:
        return [int(word) for word in file.read_text(encoding="ascii").split()]
    except (OSError, ValueError):
        return None
