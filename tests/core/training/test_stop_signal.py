"""SIGTERM and SIGINT: what they do where a process leaves at once, listens, or may be interrupted."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
from tests_support import ROOT

from adadistill.core.training.stop_signal import ONE_REQUEST_S, StopRequested, StopSignal, current_stop, listen_for_stop


def _signal(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_listener_remembers_and_goes_on(number: int, code: int):
    def work() -> None:
        with listen_for_stop() as stop:
            assert current_stop() is stop
            assert not stop.requested
            _signal(number)
            assert stop.requested
            raise StopRequested(stop.exit_code)

    with pytest.raises(StopRequested) as stopped:
        work()
    assert stopped.value.exit_code == code
    assert current_stop() is None


def test_an_interruptible_block_is_left_and_what_follows_is_not():
    done = []

    def work() -> None:
        with listen_for_stop() as stop:
            try:
                with stop.interruptible():
                    _signal()
                    done.append("not reached")
            except StopRequested:
                _signal()  # told twice: a launcher passes a signal on that the terminal has delivered
                done.append("saved")
                raise

    with pytest.raises(StopRequested):
        work()
    assert done == ["saved"]


def test_a_request_from_before_ends_the_next_interruptible_block():
    done = []

    def work() -> None:
        with listen_for_stop() as stop:
            _signal()
            with stop.interruptible(when=False):
                done.append("this is not one")
            with stop.interruptible():
                done.append("not reached")

    with pytest.raises(StopRequested):
        work()
    assert done == ["this is not one"]


def test_no_import_is_interrupted_where_there_is_something_to_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "signalled_while_imported.py").write_text("import os; os.kill(os.getpid(), 15); DONE = True\n")
    monkeypatch.syspath_prepend(tmp_path)

    def work() -> None:
        with listen_for_stop() as stop, stop.interruptible():
            importlib.import_module("signalled_while_imported")

    with pytest.raises(StopRequested):
        work()
    assert sys.modules["signalled_while_imported"].DONE


class _Dying:
    """Signals from its finaliser, out of which Python drops every exception."""

    def __del__(self) -> None:
        _signal()
        time.sleep(0)


@pytest.mark.parametrize("finalised", ["weakref", "del"])
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_request_in_a_finaliser_is_neither_lost_nor_printed(finalised: str, monkeypatch: pytest.MonkeyPatch):
    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    done = []

    def work() -> None:
        with listen_for_stop() as stop, stop.interruptible():
            if finalised == "del":
                _Dying()
            else:
                weakref.finalize(stop, lambda: _signal() or time.sleep(0))()
            done.append("the rest of the block")

    with pytest.raises(StopRequested):
        work()
    assert done == ["the rest of the block"]
    assert not dropped


def test_a_request_that_nobody_acted_on_goes_to_the_handler_before_unless_an_error_matters_more():
    def work(*, fails: bool) -> None:
        with listen_for_stop():
            _signal()
            if fails:
                raise KeyError

    heard: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        work(fails=False)
        assert heard == [signal.SIGTERM]
        with pytest.raises(KeyError):
            work(fails=True)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_stop_is_no_exception_that_something_could_take_for_a_failure():
    assert not issubclass(StopRequested, Exception)
    assert str(StopRequested(143, "step 7 has been saved")) == (
        "stopped on request (exit code 143): step 7 has been saved"
    )
    assert StopSignal().exit_code == 143, "a rank that learned of it from another"


_PROGRAM = f"""
import sys, types, time
package = types.ModuleType("adadistill")
package.__path__ = [{str(ROOT)!r}]
sys.modules["adadistill"] = package
from adadistill.core.training import stop_signal
stop_signal.leave_at_once_from_here_on()
stop_signal.LEAVE_WITHIN_S = 0.3
def ready():
    print("ready", flush=True)
"""


def _ended(program: str, *numbers: int, pause_s: float = 0.0) -> tuple[int, str]:
    """Exit code and standard error of a process that is signalled once it says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM + program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for number in numbers:
        process.send_signal(number)
        time.sleep(pause_s)
    _, error = process.communicate(timeout=30)
    return process.returncode, error


_LISTENS = """
with stop_signal.listen_for_stop() as stop:
    ready()
    {body}
"""


_WAITS_IN_C = """
import ctypes
lock = ctypes.create_string_buffer(64)
ready()
for _ in range(2):
    ctypes.CDLL(None).pthread_mutex_lock(lock)
"""


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("ready(); time.sleep(60)", 143),
        # In C without the interpreter's lock, where no handler runs: a thread ends the process.
        (
            "import ctypes; lock = __import__('threading').Lock(); lock.acquire()\nready()\nctypes.CDLL(None).pause()",
            143,
        ),
        (_LISTENS.format(body="with stop.interruptible(keeps=False): time.sleep(60)"), 143),
        # Work that is done before anybody looked at the request.
        (_LISTENS.format(body="\n    while not stop.requested: time.sleep(0.01)"), 143),
    ],
    ids=["at once", "in C", "nothing to keep", "handed on"],
)
def test_an_entry_point_ends_with_128_plus_the_signal_and_no_traceback(program: str, code: int):
    ended, error = _ended(program, signal.SIGTERM)
    assert ended == code, error
    assert "Traceback" not in error


def test_a_second_signal_ends_a_process_that_still_works_on_the_first():
    program = _LISTENS.format(body="\n    while True: time.sleep(0.01)")
    assert _ended(program, signal.SIGINT, signal.SIGTERM, pause_s=ONE_REQUEST_S + 0.2)[0] == -signal.SIGTERM
