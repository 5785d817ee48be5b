"""How many processors this process may really use: its affinity and its container's quota, not the host's cores.

A container that is given two CPUs of a 96-core host still counts 96 of them. Pools of that size wait for one another
and are throttled by the kernel, so every pool and every thread count of ours starts from here.
"""

from __future__ import annotations

import os
from pathlib import Path


def usable_cpus(root: Path = Path("/")) -> int:
    """Processors that this process may keep busy, at least 1.

    The least of the affinity mask (taskset, cpuset, SLURM) and every CPU quota of the process's control groups, version
    1 and 2, rounded down: a thread more than the quota is throttled for a part of every period.

    Args:
        root: where `proc` and `sys` are, for tests.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        count = os.cpu_count() or 1
    return max(1, min([count, *(int(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> list[float]:
    """CPUs allowed by each control group from the process's own up to the top; groups without a quota are left out."""
    groups = root / "sys/fs/cgroup"
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = [groups / name for name in ("cpu", "cpu,cpuacct", "cpuacct,cpu")] if controllers else [groups]
        # A container may see the path of the host and only its own group at the top: both are on the way up.
        for mount in mounts:
            for group in [path.strip("/"), *(str(parent) for parent in Path(path.strip("/")).parents)]:
                quota = _quota(mount / group)
                if quota is not None:
                    found.append(quota)
    return found


def _quota(group: Path) -> float | None:
    words = _text(group / "cpu.max").split()  # version 2: "150000 100000" or "max 100000", microseconds
    if not words:  # version 1
        words = [_text(group / "cpu.cfs_quota_us").strip(), _text(group / "cpu.cfs_period_us").strip()]
    try:
        quota, period = (float(word) for word in words)
    except ValueError:  # no quota: "max", or no such files
        return None
    return quota / period if quota > 0 and period > 0 else None  # version 1 says -1 for none


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
