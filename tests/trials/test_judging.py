"""Trials of kills and disks notice a promise that is broken: judged here on endings made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from adadistill.core.checkpoints import list_checkpoints
from adadistill.core.training.metrics_log import MetricsFile
from trials.corruption import write_checkpoints
from trials.disk_process import _Ended
from trials.kills import _Victim
from trials.small_run import Ending, SmallRun, difference
from trials.tally import Tally

RUN = SmallRun(Path("recipe.yaml"), epochs=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 1 to 3."""
    write_checkpoints(tmp_path / "run" / "checkpoints")
    return tmp_path / "run"


def test_a_kill_must_not_cost_a_completed_save(folder: Path):
    victim = _Victim(RUN, folder, ranks=1, floor=3)
    assert victim.completed() == 3
    assert victim.broken_promise() == ""
    with MetricsFile(folder / "metrics.jsonl") as metrics:
        metrics.write("resume", step=3)
        assert victim.broken_promise() == ""
        metrics.write("resume", step=2)
        assert victim.broken_promise() == "went on from step 2, the newest checkpoint was of step 3"
    assert "step 4 had been saved" in _Victim(RUN, folder, ranks=1, floor=4, goes_on_from=2).broken_promise()


def test_a_kill_must_not_leave_what_does_not_verify(folder: Path):
    (list_checkpoints(folder)[-1] / "model.safetensors").unlink()
    assert "step-00000003 does not verify" in _Victim(RUN, folder, ranks=1, floor=2).broken_promise()
    (folder / "checkpoints" / ".tmp-step-00000004-x-1").mkdir()
    assert _Victim(RUN, folder, ranks=1).saving()


@pytest.mark.parametrize(
    ("code", "text", "kind", "broken"),
    [
        (0, "", "", ""),
        (
            1,
            "CheckpointWriteError: checkpoint of step 4 was not written: {run}/x: no room.",
            "stopped at a later save",
            "",
        ),
        (
            1,
            "CheckpointWriteError: checkpoint of step 5 was not written: {run}/x: no room.",
            "",
            "step 3 is the newest",
        ),
        (2, "RunFolderError: cannot write the run folder: {run}: no room", "stopped at the door", ""),
        (1, "MetricsFileError: {run}: no room: 2 line(s) could not be written and are lost.", "finished, saying", ""),
        (1, "CheckpointWriteError: checkpoint of step 4 was not written: no room", "", "does not name file and reason"),
        (1, "CheckpointWriteError: {run}/x: something", "", "does not name file and reason"),
        (1, "Traceback (most recent call last):\nOSError: {run}: no room", "", "exit code 1: Traceback"),
        (-11, "OSError: {run}: no room", "", "exit code -11"),
    ],
)
def test_a_full_disk_must_be_named_and_cost_nothing(folder: Path, code: int, text: str, kind: str, broken: str):
    found = _Ended(code, text.format(run=folder)).judged("no room", folder)
    assert found[0].startswith(kind)
    assert bool(found[0]) == bool(kind)
    assert found[1].startswith(broken)
    assert bool(found[1]) == bool(broken)


def test_two_endings_are_told_apart():
    one = Ending(6, {"model.safetensors": "aa"}, [{"event": "train", "step": 1, "loss": 2.0}])
    assert difference(one, one) == ""
    assert "step 5, not 6" in difference(replace(one, step=5), one)
    assert "other bits in model.safetensors" in difference(replace(one, files={"model.safetensors": "ab"}), one)
    assert "other bits" in difference(replace(one, files={**one.files, "more": "aa"}), one)
    assert "other values" in difference(replace(one, lines=[{**one.lines[0], "loss": 3.0}]), one)
    assert "stands as []" in difference(replace(one, lines=[]), one)


def test_a_tally_counts_endings_and_keeps_the_first_failures():
    tally = Tally("what", "damage", "promise")
    tally.add("well")
    for number in range(20):
        tally.add("well", f"trial {number}: " + 1000 * "x")
    outcome = tally.outcome()
    assert (outcome.trials, outcome.held, outcome.outcomes) == (21, 1, {"promise broken": 20, "well": 1})
    assert len(outcome.failures) == 10
    assert all(len(text) == 400 for text in outcome.failures)
