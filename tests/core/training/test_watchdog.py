"""A rank that stops answering ends the run: named, with stacks, and never while somebody still moves."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from rank_processes import start_ranks

from adadistill.core.training.heartbeat import EVALUATION, SAVING, TRAINING
from adadistill.core.training.restarts import process_fields
from adadistill.core.training.watchdog import HANG_EXIT_CODE, Judge, Note, read_note

WORKER = Path(__file__).parent.parent / "hung_worker.py"
LIMIT_S = 1.5


def _note(rank: int, idle_s: float, *, step: int = 7, moves: int = 3, phase: str = TRAINING, **more) -> Note:
    return Note(launch="now", rank=rank, phase=phase, step=step, moves=moves, idle_s=idle_s, **more)


def _verdict(own: Note, *others: Note, now: float = 1.0, limit_s: float = 10.0) -> str:
    return Judge(limit_s, since=0.0).verdict(own, {note.rank: note for note in others}, now)


def test_who_is_behind_is_named_and_who_waits_is_not():
    verdict = _verdict(_note(0, 11.0, moves=3), _note(1, 12.0, moves=2), _note(2, 11.0, moves=3))
    assert "rank 1 has stopped answering" in verdict
    assert "12 s, in training, after 7 finished steps" in verdict
    assert "rank 0" not in verdict
    assert "rank 2" not in verdict


def test_nobody_is_stuck_while_somebody_moves():
    assert _verdict(_note(0, 500.0), _note(1, 0.1, moves=2)) == ""


@pytest.mark.parametrize("phase", [EVALUATION, SAVING])
def test_phases_without_many_beats_get_three_times_as_long(phase: str):
    assert _verdict(_note(0, 29.0, phase=phase), _note(1, 29.0, phase=phase)) == ""
    assert "rank 0" in _verdict(_note(0, 31.0, phase=phase), _note(1, 31.0, phase=phase))


def test_a_note_that_is_not_renewed_is_a_process_that_does_not_answer():
    judge, other = Judge(10.0, since=0.0), _note(1, 0.0)
    assert judge.verdict(_note(0, 0.0), {1: other}, 5.0) == ""
    assert judge.verdict(_note(0, 0.0), {1: other}, 14.9) == ""
    verdict = judge.verdict(_note(0, 0.0), {1: other}, 15.1)
    assert "rank 1 has stopped answering: no sign of life for 10 s; it was in training" in verdict
    assert "rank 1" in Judge(10.0, since=0.0).verdict(_note(0, 0.0), {1: None}, 10.1), "it never wrote one"


def test_the_others_believe_rank_0_and_speak_themselves_only_where_it_does_not():
    said = _note(0, 0.0, verdict="rank 2 has stopped answering: ...")
    assert _verdict(_note(1, 0.0), said) == said.verdict
    assert _verdict(_note(1, 15.0), _note(0, 15.0)) == ""
    assert "rank 1" in _verdict(_note(1, 21.0, moves=2), _note(0, 21.0))


def test_a_rank_that_has_left_is_named_once_nobody_moves():
    left = _note(1, 0.0, ended=True)
    assert _verdict(_note(0, 1.0), left) == ""
    assert "rank 1 has left" in _verdict(_note(0, 11.0), left)


def test_what_is_no_note_of_this_launch_is_none(tmp_path: Path):
    path = tmp_path / "rank-03.json"
    assert read_note(path, "now") is None
    for text in ("", "{", "[]", "{}", '{"launch": 1}', "[" * 5000):
        path.write_text(text)
        assert read_note(path, "now") is None
    path.write_text(json.dumps({**asdict(_note(3, 1.0)), "pid": 7}))
    assert read_note(path, "now") == _note(3, 1.0)
    assert read_note(path, "then") is None


@dataclass
class _Ending:
    codes: list[int | None]
    errors: list[str]
    seconds: float
    stacks: dict[str, str]


def _launch(folder: Path, event: str, world_size: int) -> _Ending:
    """Start the ranks, wait for the first one, end the last one."""
    processes = start_ranks([str(WORKER), str(folder), str(LIMIT_S), event], world_size)
    note = folder / "heartbeat" / f"rank-{world_size - 1:02d}.json"
    deadline = time.monotonic() + 60.0
    while not (note.exists() and json.loads(note.read_text())["step"] >= 10) and time.monotonic() < deadline:
        time.sleep(0.05)
        if any(process.poll() is not None for process in processes):
            break
    started = time.monotonic()
    _, first = processes[0].communicate(timeout=60)
    seconds = time.monotonic() - started
    last = ""
    if world_size > 1:
        time.sleep(0.5)
        processes[-1].kill()
        _, last = processes[-1].communicate(timeout=60)
    stacks = {path.name: path.read_text() for path in sorted((folder / "hang").glob("*.txt"))}
    return _Ending([process.returncode for process in processes], [first, last], seconds, stacks)


def test_a_run_that_was_suspended_goes_on_to_its_end(tmp_path: Path):
    (process,) = start_ranks([str(WORKER), str(tmp_path), str(LIMIT_S), "stop"], 1)
    note, deadline, state = tmp_path / "heartbeat" / "rank-00.json", time.monotonic() + 60.0, []
    while state[:1] != ["T"] and time.monotonic() < deadline:
        time.sleep(0.05)
        state = process_fields(json.loads(note.read_text())["pid"]) if note.exists() else []
    time.sleep(1.8 * LIMIT_S)
    os.kill(json.loads(note.read_text())["pid"], signal.SIGCONT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert json.loads(note.read_text())["ended"]


def test_a_process_alone_that_is_stuck_ends_itself_with_its_stacks(tmp_path: Path):
    ending = _launch(tmp_path, "sleep", 1)
    assert ending.codes == [HANG_EXIT_CODE], ending.errors
    assert ending.seconds < 3 * LIMIT_S + 5.0
    assert "rank 0 has stopped answering" in ending.errors[0]
    assert "_happen" in ending.stacks["rank-00.txt"]


def test_a_rank_whose_process_does_not_run_is_named_by_the_others(tmp_path: Path):
    ending = _launch(tmp_path, "gil", 2)
    assert ending.codes[0] == HANG_EXIT_CODE, ending.errors
    assert ending.seconds < 3 * LIMIT_S + 5.0
    assert "rank 1 has stopped answering: no sign of life" in ending.errors[0]
    assert "gather_rows" in ending.stacks["rank-00.txt"]
    assert "_happen" in ending.stacks["rank-01.txt"], "the timer needs no interpreter lock"
