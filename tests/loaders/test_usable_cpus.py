"""Processors that may be used: affinity and the quotas of control groups, as the kernel and containers show them."""

from __future__ import annotations

import os

import pytest

from adadistill.loaders.usable_cpus import usable_cpus


@pytest.fixture(autouse=True)
def _host_of_96(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(96)), raising=False)


def _tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_control_groups_the_affinity_counts(tmp_path):
    assert usable_cpus(tmp_path) == 96


def test_a_container_of_version_2_is_as_large_as_its_quota(tmp_path):
    for cpu_max, expected in (
        ("max 100000\n", 96),
        ("200000 100000\n", 2),
        ("150000 100000\n", 1),  # a second thread would be throttled half of the time
        ("50000 100000\n", 1),
        ("9600000 50000\n", 96),  # more than there are
        ("none of it\n", 96),
    ):
        root = _tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": cpu_max})
        assert usable_cpus(root) == expected, cpu_max


def test_the_least_quota_on_the_way_up_counts(tmp_path):
    root = _tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/kubepods/pod1/container\n",
            "sys/fs/cgroup/kubepods/pod1/container/cpu.max": "max 100000\n",
            "sys/fs/cgroup/kubepods/pod1/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/kubepods/cpu.max": "800000 100000\n",
        },
    )
    assert usable_cpus(root) == 4


@pytest.mark.parametrize(("mount", "quota", "expected"), [("cpu", "300000", 3), ("cpuacct,cpu", "-1", 96)])
def test_version_1_says_minus_one_for_no_quota(tmp_path, mount, quota, expected):
    root = _tree(
        tmp_path,
        {
            # The host's path, of which a container sees only its own group, mounted at the top.
            "proc/self/cgroup": f"3:cpuset:/docker/1f\n2:{mount}:/docker/1f\n1:memory:/docker/1f\n",
            f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us": f"{quota}\n",
            f"sys/fs/cgroup/{mount}/cpu.cfs_period_us": "100000\n",
        },
    )
    assert usable_cpus(root) == expected


def test_a_pinned_process_is_as_large_as_its_mask(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 4, 7}, raising=False)
    root = _tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1600000 100000\n"})
    assert usable_cpus(root) == 3
