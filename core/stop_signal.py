"""Being asked to stop: SIGTERM and SIGINT set a flag, training saves and leaves at the next step.

Nothing is done inside the handler. The flag of any rank travels to all ranks with the step's gathered values, so that
all of them save the same position. A second signal ends the process at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequested(Exception):  # noqa: N818 - not an error: a run that was asked to stop and saved
    """Training stopped because it was asked to, after saving. `exit_code` is 128 + the signal's number."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"stopped on request (exit code {exit_code})")
        self.exit_code = exit_code


class StopSignal:
    """Whether this process was asked to stop, and how."""

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def requested(self) -> bool:
        """True once a signal has arrived."""
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number; 143 (SIGTERM) on a rank that learned of the stop from another."""
        return 128 + (self.number or signal.SIGTERM)


@contextmanager
def listen_for_stop() -> Iterator[StopSignal]:
    """Handle SIGTERM and SIGINT while the block runs; the previous handlers come back after it."""
    stop = StopSignal()

    def remember(number: int, _frame: FrameType | None) -> None:
        if stop.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.number = number

    previous = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
