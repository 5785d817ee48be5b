"""Two real processes of `adadistill train`: a signal to one stops both at one step, a rank that sleeps ends both."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from forked_python import forked_python
from rank_processes import start_ranks
from tests_support import ROOT
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.checkpoints import newest_valid_checkpoint
from adadistill.core.distributed import Ranks
from adadistill.core.recipe import Recipe, dump_recipe
from adadistill.core.training.metrics_log import read_metrics
from adadistill.core.training.run import run_training
from adadistill.core.training.watchdog import HANG_EXIT_CODE

WORKER = Path(__file__).parent.parent / "interrupted_worker.py"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder)
    return tiny_recipe(folder, evaluation__sets=f"['{folder}/pairs.bin']", checkpoint__every_steps=2)


def _launch(recipe: Recipe, folder: Path, event: str, *overrides: str) -> tuple[list[int | None], list[str]]:
    """Exit codes and standard errors of two ranks that go on in `folder/run`."""
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    command = [str(WORKER), event, str(folder / "recipe.yaml"), "--out", str(folder / "run"), "--device", "cpu"]
    processes = start_ranks([*command, "--resume", "auto", *overrides], 2)
    errors = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], errors


# 6 steps an epoch; evaluation after the epoch.
def test_sigterm_to_one_of_two_ranks_stops_both_at_the_same_step_and_in_an_evaluation(recipe: Recipe, tmp_path: Path):
    codes, errors = _launch(recipe, tmp_path, "term:1:3")
    assert codes == [143, 143], errors
    # It came inside of step 4, whose flag had been taken, and so travelled with step 5.
    assert "step 5 has been saved" in errors[0]
    saved, skipped = newest_valid_checkpoint(tmp_path / "run")
    assert saved is not None
    assert (saved.step, skipped) == (5, [])
    assert len(saved.rank_states) == 2

    codes, errors = _launch(recipe, tmp_path, "term-evaluation:1:6")
    assert codes == [143, 143], errors
    saved, skipped = newest_valid_checkpoint(tmp_path / "run")
    assert saved is not None
    assert (saved.step, skipped) == (6, [])
    assert saved.state["position"] == {"epoch": 1, "step": 0, "evaluated": False}


def test_a_rank_that_sleeps_in_a_step_is_named_on_both_and_the_run_resumes(recipe: Recipe, tmp_path: Path):
    codes, errors = _launch(recipe, tmp_path, "sleep:1:5", "guard.hang_timeout_s=5")
    assert codes == [HANG_EXIT_CODE] * 2, errors
    for error in errors:
        assert "rank 1 has stopped answering" in error
        assert "in training, after 5 finished steps" in error
        assert "Traceback" not in error
    assert "gather" in (tmp_path / "run" / "hang" / "rank-00.txt").read_text()
    assert "interrupted_worker.py" in (tmp_path / "run" / "hang" / "rank-01.txt").read_text()

    run_training(recipe, tmp_path / "run", ranks=Ranks(), resume="auto")
    saved, _ = newest_valid_checkpoint(tmp_path / "run")
    assert saved is not None
    assert saved.step == 12


@pytest.mark.slow
def test_torchrun_passes_sigterm_on_and_every_rank_saves(recipe: Recipe, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    command = [
        forked_python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        "-m", "adadistill.recipes.train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"),
        "--device", "cpu", "optim.epochs=400", "checkpoint.every_steps=null", "log.every=1",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHON_EXEC": forked_python(),
        "PYTHONPATH": str(ROOT / ".typecheck"),
    }
    launcher = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120.0
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    launcher.send_signal(signal.SIGTERM)
    _, error = launcher.communicate(timeout=60)
    # torchrun reports the signal that it was ended by as an error of its own; what matters is what the ranks did.
    assert launcher.returncode != 0
    assert "has been saved; go on with --resume auto" in error
    saved, skipped = newest_valid_checkpoint(tmp_path / "run")
    assert saved is not None, error
    assert (len(saved.rank_states), skipped) == (2, [])
    reported = [row["step"] for row in read_metrics(metrics) if row["event"] == "train"]
    assert saved.step >= max(reported)
