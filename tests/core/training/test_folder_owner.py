"""A run folder has one owner at a time; who is dead is passed over, who may be alive is not."""

from __future__ import annotations

import errno
import functools
import json
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from forked_python import forked_python
from tests_support import ROOT

from adadistill.core.training import folder_owner
from adadistill.core.training.folder_owner import Launch, owned_folder, refuse_owned, this_launch
from adadistill.core.training.run_folder import RunFolderError
from adadistill.core.training.stop_signal import end_process

ALONE = """
import sys
from pathlib import Path
from adadistill.core.training.folder_owner import owned_folder, this_launch
with owned_folder(Path(sys.argv[1]), this_launch("adadistill train first.yaml")):
    print("mine", flush=True)
    import time; time.sleep(60)
"""
FORK = multiprocessing.get_context("fork")


class _Process:
    """A forked process that asks for the folder: it says `mine`, or why not, and leaves when it is told to."""

    def __init__(self, folder: Path) -> None:
        self._pipe, there = FORK.Pipe()
        self._process = FORK.Process(target=self._own, args=(folder, there), daemon=True)
        self._process.start()
        self.pid: int = self._process.pid or 0

    @functools.cached_property
    def said(self) -> str:
        return self._pipe.recv()

    @staticmethod
    def _own(folder: Path, pipe: Connection) -> None:
        try:
            with owned_folder(folder, this_launch("adadistill train first.yaml")):
                pipe.send("mine")
                if pipe.recv() == "end":
                    end_process(7)
        except RunFolderError as error:
            pipe.send(str(error))

    def tell(self, word: str) -> int | None:
        """`leave`, or `end` without unwinding; its exit code."""
        with suppress(BrokenPipeError):  # refused, and gone
            self._pipe.send(word)
        self._process.join()
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


@contextmanager
def _owner(folder: Path) -> Iterator[_Process]:
    """Another process that owns the folder."""
    process = _Process(folder)
    assert process.said == "mine"
    try:
        yield process
    finally:
        process.kill()


def _rewrite(folder: Path, number: int = 1, **changes: object) -> None:
    path = folder / f"owner-{number}.json"
    text = json.dumps({**json.loads(path.read_text()), **changes})
    path.write_text(text)  # in place: the lock of its owner stays on it


def _here(**changes: Any) -> Launch:
    return replace(this_launch("adadistill train second.yaml"), **changes)


def _age(folder: Path, seconds: float) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


def test_a_second_process_is_refused_by_name_and_leaves_the_folder_as_it_is(tmp_path: Path):
    with _owner(tmp_path) as process:
        before = sorted(tmp_path.iterdir())
        for take_over in (False, True):
            ours = owned_folder(tmp_path, _here(), take_over=take_over)
            with pytest.raises(RunFolderError, match="belongs to a launch that is running") as refused, ours:
                pytest.fail("two owners")
            who = f"process {process.pid} on {_here().host}, since 20"
            assert all(fact in str(refused.value) for fact in (who, "(adadistill train first.yaml)", "--out"))
        assert sorted(tmp_path.iterdir()) == before
        process.tell("leave")
        assert refuse_owned(tmp_path, _here()) == ""
        with owned_folder(tmp_path, _here()):
            pass


def test_the_same_process_cannot_own_a_folder_twice(tmp_path: Path):
    second = owned_folder(tmp_path, _here())
    with owned_folder(tmp_path, _here()), pytest.raises(RunFolderError, match="that is running"), second:
        pytest.fail("two owners")
    with owned_folder(tmp_path, _here()):
        assert [path.name for path in tmp_path.iterdir()] == ["owner-2.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["owner-2.released"]
    assert (tmp_path / "owner-2.released").read_bytes() == b"", "who left names no host"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_it_is_given_back_however_the_block_ends(tmp_path: Path, error: type[BaseException]):
    with pytest.raises(error), owned_folder(tmp_path, _here()):
        raise error
    assert refuse_owned(tmp_path, _here()) == ""


def test_it_is_given_back_where_the_process_ends_without_unwinding(tmp_path: Path):
    with _owner(tmp_path) as process:
        assert process.tell("end") == 7
    assert [path.name for path in tmp_path.iterdir()] == ["owner-1.released"]


@pytest.mark.parametrize("reaped", [True, False])
def test_a_dead_owner_is_passed_over_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture, reaped: bool):
    with _owner(tmp_path) as process:
        if reaped:
            process.kill()
        else:
            os.kill(process.pid, signal.SIGKILL)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie: nobody has asked for its exit code
        caplog.set_level(logging.INFO)
        with owned_folder(tmp_path, _here()):
            (line,) = caplog.messages
            assert f"was left by process {process.pid} on" in line
            assert "which is dead; it is taken over" in line


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path: Path):
    with _owner(tmp_path) as process:
        _rewrite(tmp_path, began="1")
        assert "which is dead" in refuse_owned(tmp_path, _here()), f"{process.pid} began later"


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"host": "elsewhere", "boot": "another"}])
def test_an_owner_on_another_host_is_refused_until_it_is_told_dead_and_silent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, str]
):
    with _owner(tmp_path) as process:
        process.kill()  # which cannot be seen from another host
    _rewrite(tmp_path, **changes)
    _age(tmp_path, 7200)
    with pytest.raises(
        RunFolderError, match=r"elsewhere: process \d+ on elsewhere.*wrote there 7200 s ago.*--take-over"
    ):
        refuse_owned(tmp_path, _here())
    (tmp_path / "heartbeat").mkdir()
    (tmp_path / "heartbeat" / "rank-01.json").write_text("{}")
    with pytest.raises(RunFolderError, match=r"last wrote there 0 s ago, so it seems to be alive"):
        refuse_owned(tmp_path, _here(), take_over=True)
    _age(tmp_path, 61)
    with owned_folder(tmp_path, _here(), take_over=True):
        assert "is taken over from process" in caplog.text


def test_the_lock_tells_whether_an_owner_in_another_container_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folder_owner, "_is_of_one_kernel", lambda folder: True)
    with _owner(tmp_path) as process:
        _rewrite(tmp_path, pid_namespace="pid:[1]", pid=os.getpid())
        with pytest.raises(RunFolderError, match="that is running"):
            refuse_owned(tmp_path, _here(), take_over=True)
        process.kill()
        assert "which is dead" in refuse_owned(tmp_path, _here())
        _rewrite(tmp_path, boot="before the machine was started again")
        assert "which is dead" in refuse_owned(tmp_path, _here())


@pytest.mark.parametrize("unsure", ["a shared file system", "no locks", "no boot id"])
def test_where_the_lock_cannot_tell_another_container_is_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unsure: str
):
    monkeypatch.setattr(folder_owner, "_is_of_one_kernel", lambda folder: unsure != "a shared file system")
    with _owner(tmp_path) as process:
        process.kill()
    changes = {"no locks": {"locked": False}, "no boot id": {"boot": ""}}.get(unsure, {})
    _rewrite(tmp_path, pid_namespace="pid:[1]", **changes)
    with pytest.raises(RunFolderError, match="whether it lives cannot be seen from here"):
        refuse_owned(tmp_path, _here())


def _alone(folder: Path, *before: str, code: str = ALONE) -> subprocess.Popen[str]:
    """A program of its own that owns the folder for a minute."""
    process = subprocess.Popen(
        [*before, forked_python() if not before else sys.executable, "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT / ".typecheck")}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    return process


def test_a_real_container_of_the_same_name_is_not_taken_for_dead(tmp_path: Path):
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make process namespaces")
    process = _alone(tmp_path, *unshare)
    try:
        written = json.loads((tmp_path / "owner-1.json").read_text())
        assert written["pid"] < 10, "numbered for itself"
        assert written["host"] == _here().host
        with pytest.raises(RunFolderError, match="belongs to a launch"):
            refuse_owned(tmp_path, _here())
    finally:
        process.kill()
        process.communicate()


def test_a_restarted_launch_takes_its_own_folder_over_even_while_the_old_process_is_dying(tmp_path: Path):
    first = _here(agents=["a", "b"])
    with owned_folder(tmp_path, first), owned_folder(tmp_path, replace(first, agents=["b", "c"], restarts=1)):
        assert [path.name for path in tmp_path.iterdir()] == ["owner-2.json"]
        for other in (replace(first, restarts=1), replace(first, agents=["d"], restarts=2)):
            with pytest.raises(RunFolderError, match="that is running"):
                refuse_owned(tmp_path, other)
    assert not refuse_owned(tmp_path, first), (
        "the old one's end takes nothing from the new one, whose end gives it back"
    )


@pytest.mark.parametrize("left", ["nothing", "a dead owner", "a released folder"])
def test_of_many_that_start_at_once_exactly_one_wins(tmp_path: Path, left: str):
    if left != "nothing":
        with _owner(tmp_path) as process:
            process.tell("leave") if left == "a released folder" else process.kill()
    processes = [_Process(tmp_path) for _ in range(4)]
    said = [process.said for process in processes]
    for process in processes:
        process.tell("leave")
    assert said.count("mine") == 1, said
    assert sum("that is running" in line for line in said) == 3


def test_numbers_that_were_given_back_meanwhile_make_nobody_a_second_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with _owner(tmp_path) as process:
        process.kill()
    opened, others = os.open, []

    def late(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_CREAT and not others:  # after the dead owner was judged: two launches come, and one stays
            others.append(None)
            with owned_folder(tmp_path, _here()):
                pass
            others[0] = owned_folder(tmp_path, _here(command="stays"))
            others[0].__enter__()
        return opened(path, flags, *rest)

    monkeypatch.setattr(folder_owner.os, "open", late)
    with pytest.raises(RunFolderError, match=r"that is running: .*\(stays\)"), owned_folder(tmp_path, _here()):
        pytest.fail("two owners")
    assert [path.name for path in tmp_path.iterdir()] == ["owner-3.json"]
    others[0].__exit__(None, None, None)


def test_a_half_written_owner_is_waited_for_and_a_damaged_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with owned_folder(tmp_path, _here()):
        whole = (tmp_path / "owner-1.json").read_bytes()
    reads: list[int] = []

    def finishing(seconds: float) -> None:
        reads.append(1)
        (tmp_path / "owner-3.json").write_bytes(whole if len(reads) == 3 else whole[: len(whole) // 2])

    monkeypatch.setattr(folder_owner.time, "sleep", finishing)
    (tmp_path / "owner-3.json").touch()
    with pytest.raises(RunFolderError, match="that is running"):
        refuse_owned(tmp_path, _here())
    monkeypatch.undo()
    monkeypatch.setattr(folder_owner, "_UNREADABLE_FOR_S", 0.0)
    deep, big = b"[" * 200_000, b'{"host": "' + b"x" * 10**6 + b'"}'
    for damaged in (b"", b"{}", b"[1]", b"\xff\xfe", deep, big, whole.replace(b'"pid"', b'"PID"')):
        (tmp_path / "owner-3.json").write_bytes(damaged)
        with pytest.raises(RunFolderError, match=r"owner-3\.json .*damaged.*--take-over"):
            refuse_owned(tmp_path, _here())
    _rewrite_whole = json.loads(whole)
    for pid in (0, -1, 2**31, True, "1"):
        (tmp_path / "owner-3.json").write_text(json.dumps({**_rewrite_whole, "pid": pid}))
        with pytest.raises(RunFolderError, match="damaged"):
            refuse_owned(tmp_path, _here())
    (tmp_path / "owner-3.json").unlink()
    os.mkfifo(tmp_path / "owner-3.json")
    with pytest.raises(RunFolderError, match="damaged"):
        refuse_owned(tmp_path, _here())
    with owned_folder(tmp_path, _here(), take_over=True):
        assert "is damaged and is passed over, as told" in caplog.text


def test_what_an_owner_wrote_is_text_on_one_line(tmp_path: Path):
    hostile = _here(command="train\n\x1b[31m" + "x" * 5000)
    with owned_folder(tmp_path, hostile), pytest.raises(RunFolderError) as refused:
        refuse_owned(tmp_path, _here())
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1500


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("damage", [lambda patch: patch.setattr(folder_owner.os, "fsync", _full), None])
def test_a_folder_that_cannot_be_written_is_told_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[pytest.MonkeyPatch], None] | None
):
    folder = tmp_path / "run"
    if damage is None:
        (tmp_path / "file").touch()
        folder = tmp_path / "file" / "run"
    else:
        damage(monkeypatch)
    match = rf"cannot write the run folder {re.escape(str(folder))}: .*make room"
    with pytest.raises(RunFolderError, match=match), owned_folder(folder, _here()):
        pytest.fail("owned")
    assert not folder.exists() or not list(folder.iterdir())


def test_a_fork_gives_nothing_back(tmp_path: Path):
    with owned_folder(tmp_path, _here()):
        child = os.fork()
        if child == 0:
            folder_owner.before_the_end[-1]()
            os._exit(0)
        os.waitpid(child, 0)
        assert (tmp_path / "owner-1.json").exists()


def test_signals_that_end_the_process_at_once_give_the_folder_back(tmp_path: Path):
    entry = (
        "from adadistill.core.training.stop_signal import leave_at_once_from_here_on\nleave_at_once_from_here_on()\n"
    )
    process = _alone(tmp_path, code=entry + ALONE)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert [path.name for path in tmp_path.iterdir()] == ["owner-1.released"]
