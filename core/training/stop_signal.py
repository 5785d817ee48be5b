"""Being asked to stop: what SIGTERM and SIGINT do at each moment of a process.

    leaving at once   the handler raises `StopRequested`, out of whatever is being done. For an entry point outside of
                      everything below, where nothing has to be saved
    listening         the handler only remembers. Steps and saves are finished, and whoever works looks at
                      `StopSignal.requested` where the state is whole again
    interruptible     the handler raises again: for long stretches inside of listening that change no state

An entry point leaves at once from its first line (`leave_at_once`), and work with a state to keep listens while it
lasts (`listen_for_stop`). A request that came while somebody listened, and that nobody acted on, is handed on when
listening ends.

Not everything lets an exception through: a C++ library that is just being imported aborts on it, and Python drops one
that leaves a finaliser. In these, and in an interruptible stretch that `keeps` nothing, the process is ended there and
then; within a stretch that keeps something, the exception waits for the stretch's end. And a handler runs between two
lines of Python, so a process that waits in C for another rank would not notice: a thread that the signal itself wakes
ends it after `LEAVE_WITHIN_S`, if nothing is to be kept.

A second signal ends the process at once. One within `ONE_REQUEST_S` of the first is the same request told twice:
launchers pass on a Ctrl-C that the terminal has already delivered.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LEAVE_WITHIN_S = 5.0
"""Longest time from a request to the end of a process that has nothing to keep, even one that is stuck in C."""
ONE_REQUEST_S = 1.0
"""Signals this close together are one request."""


class StopRequested(SystemExit):
    """The process was asked to stop; what had to be saved is saved. `exit_code` is 128 + the signal's number.

    Like a KeyboardInterrupt it is no `Exception`, so that nothing which handles failures takes it for one; uncaught, it
    ends the process with its exit code and without a traceback.

    Args:
        told: what was saved, for people.
    """

    def __init__(self, exit_code: int, told: str = "nothing had to be saved") -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code
        self.told = told

    def __str__(self) -> str:
        return f"stopped on request (exit code {self.exit_code}): {self.told}"


class StopSignal:
    """Whether this process was asked to stop, and what happens when it is.

    Args:
        leaves_at_once: the handler raises, everywhere; else only in `interruptible` blocks.
    """

    def __init__(self, *, leaves_at_once: bool = False) -> None:
        self.number: int | None = None
        self._asked_at: float | None = None
        self.leaves_at_once = leaves_at_once
        self._raises = leaves_at_once
        self._keeps = not leaves_at_once

    @property
    def requested(self) -> bool:
        """True once a signal has arrived."""
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number; 143 (SIGTERM) on a rank that learned of the stop from another."""
        return 128 + (self.number or signal.SIGTERM)

    @property
    def may_be_ended(self) -> bool:
        """Whether the process has nothing to keep now, so that a thread may end it."""
        return not self._keeps

    @contextmanager
    def interruptible(self, *, when: bool = True, keeps: bool = True) -> Iterator[None]:
        """A block that changes no state: a request, also one from before, raises `StopRequested` in it.

        Args:
            when: False changes nothing, for work that only some launches may leave in the middle.
            keeps: whether there may be something to save after leaving it. If not, a process with an entry point of
                ours ends at once.
        """
        if not when:
            yield
            return
        kept, self._keeps = self._keeps, keeps
        self._raises = True
        try:
            if self.requested:
                raise StopRequested(self.exit_code)
            yield
            if keeps and self.requested:  # it came in an import or a finaliser
                raise StopRequested(self.exit_code)
        finally:
            self._raises, self._keeps = False, kept

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """What the handler of SIGTERM and SIGINT does."""
        now = time.monotonic()
        if self._asked_at is not None:
            if now - self._asked_at > ONE_REQUEST_S:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        self.number, self._asked_at = number, now
        lets_through = not _imports(frame) and not _finalises(frame)
        if self._raises and (lets_through or not self._keeps):
            if _entry_points and self.may_be_ended and (not self.leaves_at_once or not lets_through):
                with suppress(Exception):  # the signal may have come in the middle of a print
                    sys.stdout.flush()
                _end(number)
            self._raises = False
            raise StopRequested(self.exit_code)

    def remember(self, other: StopSignal) -> None:
        """Take over a request that is being acted on."""
        self.number, self._asked_at = other.number, other._asked_at


_FINALISER = weakref.finalize.__call__.__code__
_entry_points = 0
"""How many `leave_at_once` are entered: without one the process is not ours to end."""
_current: StopSignal | None = None
"""The innermost one whose handlers are installed; signals are a matter of the whole process."""


def current_stop() -> StopSignal | None:
    """Whoever handles SIGTERM and SIGINT now; None where nobody of ours does."""
    return _current


@contextmanager
def listen_for_stop() -> Iterator[StopSignal]:
    """Remember SIGTERM and SIGINT while the block runs; the previous handlers come back after it.

    A request that the block did not act on, since its work was done before it looked, goes to the previous handlers.
    """
    stop, outer = StopSignal(), _current
    with _installed(stop):
        yield stop
    # Only where the block ended by itself: its errors, and a stop that it acted on, matter more.
    if stop.number is None:
        return
    if outer is None:
        signal.raise_signal(stop.number)
    elif outer.leaves_at_once:
        raise StopRequested(stop.exit_code, "the work was finished")


@contextmanager
def leave_at_once() -> Iterator[None]:
    """For entry points: a signal in the block, outside of any `listen_for_stop`, raises `StopRequested` there."""
    global _entry_points
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    _entry_points += 1
    try:
        with _installed(StopSignal(leaves_at_once=True)), _Backstop():
            yield
    finally:
        _entry_points -= 1


def leave_at_once_from_here_on() -> None:
    """`leave_at_once` for the rest of the process: the first thing that a module run as a program does.

    Importing torch takes seconds, in which Python would answer Ctrl-C with a traceback.
    """
    _for_good.append(leave_at_once())
    _for_good[-1].__enter__()


_for_good: list[AbstractContextManager[None]] = []


@contextmanager
def _installed(stop: StopSignal) -> Iterator[None]:
    global _current
    outer = _current
    previous = {number: signal.signal(number, stop.handle) for number in SIGNALS}
    _current = stop
    try:
        yield
    finally:
        _current = outer
        if outer is not None and stop.requested:
            outer.remember(stop)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _finalises(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != "__del__" and frame.f_code is not _FINALISER:
        frame = frame.f_back
    return frame is not None


class _Backstop:
    """Ends a process that was asked to stop, has nothing to keep, and is still there after `LEAVE_WITHIN_S`.

    Python wakes it by a byte in a pipe, which it writes in the signal itself, whatever the main thread is doing.
    """

    def __enter__(self) -> _Backstop:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are its own
        self._previous = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="adadistill-stop", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._previous)
        os.close(self._write)  # the thread reads the end of the pipe, and closes its own side

    def _watch(self) -> None:
        with open(self._read, "rb", buffering=0) as pipe:
            while numbers := pipe.read(1):
                if numbers[0] in SIGNALS:
                    _end_if_it_stays(numbers[0])


def _end_if_it_stays(number: int) -> None:
    waited_s = 0.0
    while waited_s < LEAVE_WITHIN_S:
        time.sleep(0.1)
        stop = _current
        if stop is None:
            return  # whoever called the entry point goes on
        waited_s = waited_s + 0.1 if stop.may_be_ended else 0.0
    _end(number)


def _end(number: int) -> NoReturn:
    leaving = StopRequested(128 + number)
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):  # nobody may read it
            os.write(2, f"{leaving}\n".encode())
    end_process(leaving.exit_code)


before_the_end: list[Callable[[], None]] = []
"""What is done where a process ends without unwinding: a file or two, quickly, from any thread."""


def end_process(code: int) -> NoReturn:
    """End the process here and now, with an exit code."""
    for step in before_the_end[::-1]:
        with suppress(Exception):
            step()
    os._exit(code)
