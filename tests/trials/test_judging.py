"""Trials of kills, disks and signals notice a promise that is broken: judged here on endings made by hand."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from adadistill.core.checkpoints import list_checkpoints
from adadistill.core.training.metrics_log import MetricsFile
from trials.disk import judged
from trials.kills import Victim
from trials.signals import Signalled, problem_of
from trials.small_run import Ending, SmallRun, difference
from trials.targets.checkpoints import write_checkpoints

RUN = SmallRun(Path("recipe.yaml"), steps=12)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with checkpoints of steps 1 to 3, to look at."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    write_checkpoints(folder / "checkpoints")
    return folder


def test_a_kill_must_not_cost_a_completed_save_nor_leave_what_does_not_verify(saved: Path, tmp_path: Path):
    folder = shutil.copytree(saved, tmp_path / "run")
    victim = Victim(RUN, folder, ranks=1, floor=3)
    assert victim.completed() == 3
    assert victim.broken_promise() == ""
    with MetricsFile(folder / "metrics.jsonl") as metrics:
        metrics.write("resume", step=3)
        assert victim.broken_promise() == ""
        metrics.write("resume", step=2)
        assert victim.broken_promise() == "went on from step 2, the newest checkpoint was of step 3"
    assert "step 4 had been saved" in Victim(RUN, folder, ranks=1, floor=4, goes_on_from=2).broken_promise()
    (list_checkpoints(folder)[-1] / "model.safetensors").unlink()
    assert "step-00000003 does not verify" in Victim(RUN, folder, ranks=1, goes_on_from=2).broken_promise()
    assert not victim.saving()
    (folder / "checkpoints" / ".tmp-step-00000004-x-1").mkdir()
    assert victim.saving()


UNWRITTEN = "CheckpointWriteError: checkpoint of step {} was not written: "


@pytest.mark.parametrize(
    ("code", "text", "kind", "broken"),
    [
        (0, "", "", ""),
        (1, UNWRITTEN.format(4) + "{run}/x: no room.", "stopped at a later save", ""),
        (1, UNWRITTEN.format(5) + "{run}/x: no room.", "", "step 3 is the newest"),
        (2, "RunFolderError: cannot write the run folder: {run}: no room", "stopped at the door", ""),
        (1, "MetricsFileError: {run}: no room: 2 line(s) could not be written and are lost.", "finished, saying", ""),
        (1, UNWRITTEN.format(4) + "no room", "", "does not name file and reason"),
        (1, "CheckpointWriteError: {run}/x: something", "", "does not name file and reason"),
        (1, "Traceback (most recent call last):\nOSError: {run}: no room", "", "exit code 1: Traceback"),
        (-11, "OSError: {run}: no room", "", "exit code -11"),
    ],
)
def test_a_full_disk_must_be_named_and_cost_nothing(saved: Path, code: int, text: str, kind: str, broken: str):
    found = judged(code, text.format(run=saved), "no room", saved)
    assert found[0].startswith(kind)
    assert found[1].startswith(broken)
    assert (bool(found[0]), bool(found[1])) == (bool(kind), bool(broken))


@pytest.mark.parametrize(
    ("trial", "problem"),
    [
        (Signalled(143, 1.0, "stopped", 0, 0), ""),
        (Signalled(143, 11.0, "stopped", 0, 0), "late"),
        (Signalled(-15, 1.0, "", 0, 0), "code -15"),
        (Signalled(143, 1.0, "Traceback (most recent call last)", 0, 0), "traceback"),
        (Signalled(143, 1.0, "stopped", 1, 0), "orphans"),
        (Signalled(143, 1.0, "stopped", 0, 3), "lost steps"),
    ],
)
def test_a_signal_must_end_a_run_in_time_with_its_code_and_its_steps(tmp_path: Path, trial: Signalled, problem: str):
    told = problem_of("training", tmp_path, trial)
    assert told.startswith(problem)
    assert bool(told) == bool(problem)


def test_two_endings_are_told_apart():
    one = Ending(6, {"model.safetensors": "aa"}, [{"event": "train", "step": 1, "loss": 2.0}])
    assert difference(one, one) == ""
    assert "step 5, not 6" in difference(replace(one, step=5), one)
    assert "other bits in model.safetensors" in difference(replace(one, files={"model.safetensors": "ab"}), one)
    assert "other bits" in difference(replace(one, files={**one.files, "more": "aa"}), one)
    assert "other values" in difference(replace(one, lines=[{**one.lines[0], "loss": 3.0}]), one)
    assert "stands as []" in difference(replace(one, lines=[]), one)
