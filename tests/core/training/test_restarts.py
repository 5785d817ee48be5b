"""torchrun starts a launch again after a process has died: it goes on from its own folder, and from no other."""

from __future__ import annotations

import datetime
import json
import logging
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked_python import forked_python
from rank_processes import run_ranks
from tests_support import ROOT
from tiny_training import final_tensors, logged, newest, tiny_recipe

from adadistill.core.distributed import Ranks
from adadistill.core.recipe import dump_recipe
from adadistill.core.training.restarts import agent_token, restart_count, store_of_restart
from adadistill.core.training.run import run_training
from adadistill.core.training.run_folder import RunFolder, RunFolderError

RANKS = Ranks()
WORKER = Path(__file__).parent.parent / "distributed_worker.py"
# 6 steps an epoch.
SETTINGS: dict[str, Any] = {
    "optim__epochs": 1,
    "optim__milestones": "[]",
    "checkpoint__every_steps": 2,
    "checkpoint__keep": 99,
}


def _attempt(monkeypatch: pytest.MonkeyPatch, restarts: int, launch: str = "one") -> None:
    """From here on this process is what torchrun has started, or started again."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that the first attempt of launch `one` has finished."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        _attempt(monkeypatch, 0)
        run_training(tiny_recipe(data, **SETTINGS), folder, ranks=RANKS)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _assert_same_end(one: Path, other: Path) -> None:
    ours, theirs = final_tensors(one), final_tensors(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def _forget(folder: Path, first: int) -> None:
    """Take away the checkpoints from a step on, as though the processes had died there."""
    for path in (folder / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) >= first:
            shutil.rmtree(path)


def test_a_restart_goes_on_from_the_folder_of_its_own_launch(
    data: Path, finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    _forget(folder, 6)
    _attempt(monkeypatch, 1)
    caplog.set_level(logging.INFO)
    run_training(tiny_recipe(data, **SETTINGS), folder, ranks=RANKS)
    assert "torchrun has started this launch again (restart 1)" in caplog.text
    assert "step-00000004 at epoch 0, step 4" in caplog.text
    _assert_same_end(folder, finished)
    written = json.loads((folder / "environment.json").read_text())
    assert written["launch"] == written["resumed"][0]["launch"] == [agent_token()]


def test_a_first_attempt_and_the_restart_of_another_launch_are_refused(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    for restarts, launch in ((0, "one"), (0, "two"), (1, "two"), (1, "one")):
        _attempt(monkeypatch, restarts, launch)
        if (restarts, launch) == (1, "one"):
            (folder / "environment.json").write_text('{"launch": {"a": 1}, "resumed": 3}')
        with pytest.raises(RunFolderError, match="already holds a run"):
            run_training(tiny_recipe(data, **SETTINGS), folder, ranks=RANKS)


@pytest.mark.parametrize("begun", [False, True])
def test_a_restart_begins_anew_where_nothing_was_saved_or_begun(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
):
    _attempt(monkeypatch, 0)
    if begun:
        environment = {"launch": [agent_token()]}
        RunFolder(tmp_path / "run").start(recipe_yaml="", environment=environment, resuming=False)
    _attempt(monkeypatch, 2)
    run_training(tiny_recipe(data, **SETTINGS), tmp_path / "run", ranks=RANKS)
    assert [row["step"] for row in logged(tmp_path / "run")] == [3, 6]
    _assert_same_end(tmp_path / "run", finished)


def test_a_restart_of_a_run_that_began_elsewhere_prefers_what_it_has_saved_itself(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe, start = tiny_recipe(data, **SETTINGS), str(finished / "checkpoints" / "step-00000002")
    for restarts, forgotten, steps in ((0, None, [3, 6]), (1, 6, [6]), (1, 0, [3, 6])):
        if forgotten is not None:
            _forget(tmp_path / "run", forgotten)
            (tmp_path / "run" / "metrics.jsonl").write_text("")
        _attempt(monkeypatch, restarts)
        run_training(recipe, tmp_path / "run", ranks=RANKS, resume=start)
        # From step 2; from step 4, its own; from step 2 again.
        assert [row["step"] for row in logged(tmp_path / "run")] == steps


@pytest.mark.parametrize("count", ["", "-1", "x", "1.5"])
def test_a_count_that_is_none_is_no_restart(monkeypatch: pytest.MonkeyPatch, count: str):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    assert restart_count() == 0


def test_attempts_do_not_read_each_other_in_the_store_that_torchrun_lends(monkeypatch: pytest.MonkeyPatch):
    limit = datetime.timedelta(seconds=20)
    lent = dist.TCPStore("127.0.0.1", 0, is_master=True)
    setting = {"USE_AGENT_STORE": "True", "RESTART_COUNT": "0"}
    for name, value in setting.items():
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(lent.port))
    assert store_of_restart(limit) is None, "a first attempt leaves it to torch"
    lent.set("address", "of the dead")
    for restart in ("1", "2"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restart)
        store = store_of_restart(limit)
        assert store is not None
        assert not store.check(["address"])
        store.set("address", restart)
        assert store.get("address") == restart.encode()
    for name, other in (("GROUP_WORLD_SIZE", "2"), ("TORCHELASTIC_USE_AGENT_STORE", "False"), ("MASTER_PORT", "")):
        with monkeypatch.context() as changed:
            changed.setenv(name, other)
            assert store_of_restart(limit) is None


KILLED_ONCE = """
import os, signal, sys
from adadistill.core.training.trainer import Trainer
from adadistill.recipes import train

plain = Trainer._train_step

def train_step(self, *rest):
    if self.global_step == 3 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, *rest)

Trainer._train_step = train_step
sys.exit(train.main())
"""


@pytest.mark.slow
def test_a_killed_process_under_torchrun_costs_no_bit_and_its_run_resumes_on_one_rank(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    whole = {"run": str(tmp_path / "whole"), "data": str(data), "student": "recipe", "overrides": SETTINGS}
    (tmp_path / "plan.json").write_text(json.dumps(whole))
    run_ranks([str(WORKER), str(tmp_path / "plan.json"), str(tmp_path)], 2)

    (tmp_path / "killed_once.py").write_text(KILLED_ONCE)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(tiny_recipe(data, **SETTINGS)))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=2"]
    command = [str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    done = subprocess.run(
        [forked_python(), *launch, str(tmp_path / "killed_once.py"), *command],
        capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": forked_python(),
             "PYTHONPATH": str(ROOT / ".typecheck")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished:") == 1
    assert done.stderr.count("has started this launch again (restart 1)") == 1
    assert "resumed from" in done.stderr
    _assert_same_end(tmp_path / "run", tmp_path / "whole")
    assert not list((tmp_path / "run").glob("recipe.before-*")), "the same recipe"

    longer = tiny_recipe(data, **{**SETTINGS, "optim__epochs": 2})
    run_training(longer, tmp_path / "run", ranks=RANKS, resume="auto", resume_allow=["optim.epochs"])
    assert "saved by 2 ranks" in caplog.text
    assert newest(tmp_path / "run").step == 12
