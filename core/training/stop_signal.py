"""Being asked to stop: what SIGTERM and SIGINT do at each moment of a process (docs/reliability.md).

An entry point leaves at once from its first line (`leave_at_once`): the handler raises `StopRequested`. Work with a
state to keep listens while it lasts (`listen_for_stop`): the handler only remembers, and whoever works looks at
`StopSignal.requested` where the state is whole again; in `interruptible` stretches of it the handler raises again. A
second signal ends the process at once.
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
"""Signals this close together are one request: launchers pass on a Ctrl-C that the terminal has already delivered."""


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
        self.leaves_at_once = leaves_at_once
        self.keeps = not leaves_at_once
        """Whether there may be something to save now, so that no thread may end the process."""
        self._asked_at = 0.0
        self._raises = leaves_at_once

    @property
    def requested(self) -> bool:
        """True once a signal has arrived."""
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number; 143 (SIGTERM) on a rank that learned of the stop from another."""
        return 128 + (self.number or signal.SIGTERM)

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
        kept, self.keeps, self._raises = self.keeps, keeps, True
        try:
            if self.requested:
                raise StopRequested(self.exit_code)
            yield
            if keeps and self.requested:  # it came where nothing lets an exception through
                raise StopRequested(self.exit_code)
        finally:
            self._raises, self.keeps = False, kept

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """What the handler of SIGTERM and SIGINT does."""
        now = time.monotonic()
        if self.number is not None:
            if now - self._asked_at > ONE_REQUEST_S:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        self.number, self._asked_at = number, now
        lost = _is_lost(frame)
        if not self._raises or (lost and self.keeps):
            return
        if _entry_points and not self.keeps and (lost or not self.leaves_at_once):
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
    if stop.number is not None and outer is None:
        signal.raise_signal(stop.number)
    elif stop.number is not None and outer is not None and outer.leaves_at_once:
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
        with _installed(StopSignal(leaves_at_once=True)), _backstop():
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


def _is_lost(frame: FrameType | None) -> bool:
    """Whether an exception would not get through: a C++ library that is being imported aborts on it, and Python drops
    one that leaves a finaliser."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<frozen importlib") or code.co_name == "__del__" or code is _FINALISER:
            return True
        frame = frame.f_back
    return False


@contextmanager
def _backstop() -> Iterator[None]:
    """End a process that was asked to stop, has nothing to keep, and is still there after `LEAVE_WITHIN_S`.

    A handler runs between two lines of Python, which a process that waits in C for another rank does not reach. Python
    writes a byte into a pipe in the signal itself, and that wakes a thread.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are its own
    previous = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_end_what_stays, args=(read,), name="adadistill-stop", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(write)  # the thread reads the end of the pipe, and closes its own side


def _end_what_stays(read: int) -> None:
    with open(read, "rb", buffering=0) as pipe:
        while numbers := pipe.read(1):
            waited_s = 0.0 if numbers[0] in SIGNALS else float("inf")
            while waited_s < LEAVE_WITHIN_S and (stop := _current) is not None:  # None: the caller's program goes on
                time.sleep(0.1)
                waited_s = 0.0 if stop.keeps else waited_s + 0.1
            if numbers[0] in SIGNALS and _current is not None:
                _end(numbers[0])


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
