"""The pulse of this process: which phase its main thread is in, and when it last moved on.

Whatever may take long calls `beat` between two pieces of its work: a few assignments, no lock, no clock of the device.
`core/training/watchdog.py` reads it from another thread. It belongs to the process, as its main thread does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

START, TRAINING, FIRST_STEP, EVALUATION, SAVING = "start-up", "training", "first step", "evaluation", "saving"


@dataclass(slots=True)
class Heartbeat:
    """What the main thread did last; written by it alone."""

    phase: str = START
    step: int = 0
    """Finished steps of the run."""
    moves: int = 0
    """Beats since then: of two ranks at the same step, the one with fewer is behind."""
    at: float = field(default_factory=time.monotonic)
    """`time.monotonic()` of the last beat."""


HEARTBEAT = Heartbeat()
"""Of this process."""


def beat(step: int | None = None) -> None:
    """The main thread moves; `step` where it has finished one."""
    HEARTBEAT.at = time.monotonic()
    if step is None:
        HEARTBEAT.moves += 1
    else:
        HEARTBEAT.step, HEARTBEAT.moves = step, 0


@contextmanager
def phase(name: str) -> Iterator[None]:
    """What the block does is another phase."""
    before, HEARTBEAT.phase = HEARTBEAT.phase, name
    beat()
    try:
        yield
    finally:
        HEARTBEAT.phase = before
        beat()
