"""How many threads a process computes with: whose word counts, what is tried, and what a resumed run keeps."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time

import pytest
import torch

from adadistill.core import cpu_threads
from adadistill.core.cpu_threads import (
    before_torch_loads,
    fastest_count,
    host_share,
    recorded_threads,
    settle_threads,
    stated_threads,
)
from adadistill.core.distributed import Ranks


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    """A host of eight processors where nobody has said anything; this process's count is put back."""
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "ADADISTILL_OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cpu_threads, "usable_cpus", lambda: 8)
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def test_nothing_is_changed_where_the_user_has_spoken():
    environment = {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "ACTIVE"}
    before_torch_loads(environment)
    assert environment == {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "ACTIVE"}
    assert stated_threads(environment) == 3


def test_our_own_count_is_not_taken_for_the_users_by_children():
    environment: dict[str, str] = {}
    before_torch_loads(environment)
    assert environment["OMP_NUM_THREADS"] == "8"
    assert int(environment["GOMP_SPINCOUNT"]) < 10_000
    assert stated_threads(environment) is None
    environment["OMP_NUM_THREADS"] = "5"  # the user's, after all
    assert stated_threads(environment) == 5


@pytest.mark.parametrize(("ranks", "share"), [("1", 8), ("2", 4), ("3", 2), ("16", 1), ("none", 8)])
def test_ranks_of_a_host_share_its_processors(ranks, share):
    assert host_share({"LOCAL_WORLD_SIZE": ranks}) == share


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="no /proc to tell whose setting it is")
@pytest.mark.parametrize(("outer", "expected"), [(None, "None"), ("1", "1"), ("3", "3")])
def test_what_torchrun_sets_is_not_taken_for_the_users(outer, expected):
    """Its agent sets OMP_NUM_THREADS=1 for several processes where the user's environment had none."""
    agent = (
        "import os, subprocess, sys\n"
        "os.environ.setdefault('OMP_NUM_THREADS', '1')\n"
        "os.environ['TORCHELASTIC_RUN_ID'] = 'x'\n"
        "code = 'from adadistill.core.cpu_threads import stated_threads; print(stated_threads())'\n"
        "subprocess.run([sys.executable, '-c', code], check=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("OMP_NUM_THREADS", None)
    if outer is not None:
        environment["OMP_NUM_THREADS"] = outer
    done = subprocess.run([sys.executable, "-c", agent], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def _slow_with(threads_cost: dict[int, float]):
    return lambda: time.sleep(threads_cost[torch.get_num_threads()])


@pytest.mark.parametrize(
    ("cost", "chosen"),
    [
        ({8: 0.002, 4: 0.004, 2: 0.008, 1: 0.016}, 8),  # a machine of one's own
        ({8: 0.040, 4: 0.016, 2: 0.008, 1: 0.004}, 1),  # a machine full of others
        ({8: 0.012, 4: 0.004, 2: 0.008, 1: 0.016}, 4),
        ({8: 0.005, 4: 0.005, 2: 0.005, 1: 0.005}, 1),  # nothing to gain: the fewest
    ],
)
def test_the_fastest_count_is_taken(cost, chosen, monkeypatch):
    monkeypatch.setattr(cpu_threads, "_WORTH", 1.5)  # this machine may be busy
    assert fastest_count(_slow_with(cost), 8) == chosen


def test_the_users_count_needs_no_trial(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert settle_threads(None, lambda: pytest.fail("tried"), Ranks()) == 3
    assert torch.get_num_threads() == 3


def test_a_resumed_run_keeps_its_count_without_a_trial():
    assert settle_threads(2, lambda: pytest.fail("tried"), Ranks()) == 2
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("stated", "recorded", "chosen"), [("3", 2, 3), (None, 64, 8)])
def test_a_changed_count_is_told(stated, recorded, chosen, monkeypatch, caplog):
    if stated is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
    with caplog.at_level(logging.WARNING, logger="adadistill"):
        assert settle_threads(recorded, None, Ranks()) == chosen
    assert f"{chosen} CPU threads, {recorded} before" in caplog.text
    assert f"OMP_NUM_THREADS={recorded}" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps({"threads": 2, "resumed": []}), 2),
        (json.dumps({"threads": 2, "resumed": [{"threads": 4}]}), 4),
        (json.dumps({"resumed": []}), None),
        (json.dumps({"threads": "many", "resumed": []}), None),
        (json.dumps({"threads": 10**9, "resumed": []}), None),
        ("[]", None),
        ("{", None),
    ],
)
def test_what_a_run_folder_says_is_read_with_care(tmp_path, text, expected):
    (tmp_path / "environment.json").write_text(text)
    assert recorded_threads(tmp_path / "environment.json") == expected
    assert recorded_threads(tmp_path / "absent.json") is None
