"""Follows a launch step by step and has a tool record the steps of a window (`core/profiling/recorders.py`).

The tool may fail (a full disk, a driver that forbids profiling): then the profile is given up, which is said, and
training goes on as if there had been none.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from adadistill.loaders.named_ranges import OFF, show_ranges, step_range

logger = logging.getLogger(__name__)

MOST_STEPS = 100
"""A MobileFaceNet step on the CPU is about 2 MB of trace before it is compressed, and all of it is held in memory."""
_MOST_WARM_UP = 2


@dataclass(frozen=True, slots=True)
class StepWindow:
    """Steps counted from the start of this launch, so that a resumed run is profiled like a new one."""

    first: int = 10
    """Steps that pass before the first recorded one, at least 1. Compiling, autotuning and first allocations are over
    after ten."""
    count: int = 5
    """Steps recorded, 1 to 100."""

    def __post_init__(self) -> None:
        if self.first < 1:
            raise ValueError(
                f"--profile-steps must pass over at least 1 step to warm up in, got {self.first}:{self.count}"
            )
        if not 1 <= self.count <= MOST_STEPS:
            raise ValueError(
                f"--profile-steps must record 1 to {MOST_STEPS} steps (a trace is held in memory), "
                f"got {self.first}:{self.count}"
            )

    @staticmethod
    def parse(text: str) -> StepWindow:
        """`FIRST:COUNT`.

        Raises:
            ValueError: it is not that, or out of range.
        """
        match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
        if match is None:
            raise ValueError(f"--profile-steps must be FIRST:COUNT, two whole numbers such as 10:5, got {text!r}")
        return StepWindow(int(match[1]), int(match[2]))

    @property
    def warm_up(self) -> int:
        """Steps before the first recorded one in which the tool runs already and what it sees is thrown away."""
        return min(self.first, _MOST_WARM_UP)

    @property
    def wait(self) -> int:
        """Steps in which no tool runs."""
        return self.first - self.warm_up

    @property
    def end(self) -> int:
        """Steps of the launch after which the profile is complete."""
        return self.first + self.count

    def __str__(self) -> str:
        return f"{self.first}:{self.count}"


_TOOL_FAILURES = (OSError, RuntimeError)
"""What a file system, CUDA, CUPTI and torch's profiler raise."""


class Recorder(Protocol):
    """A tool that records steps. Each method may raise OSError or RuntimeError; the profile is then given up."""

    def open_range(self, name: str) -> AbstractContextManager[object]:
        """A named range on the tool's timeline. Called on any thread."""
        ...

    def before_step(self, number: int) -> None:
        """Step `number` comes, counted from the first warm-up step; what is recorded starts at `window.warm_up`."""
        ...

    def finish(self, steps: Sequence[int]) -> None:
        """Stop recording and write what was recorded: these steps of the run, at least one, whole."""
        ...

    def abandon(self) -> None:
        """Stop recording and drop what was recorded."""
        ...


class StepProfile:
    """A profile of the steps of one window, of one rank.

    Args:
        recorder: None to profile nothing.
        rank: of this process, for messages.
    """

    def __init__(self, window: StepWindow, recorder: Recorder | None, *, rank: int = 0) -> None:
        self._window = window
        self._recorder = recorder
        self._rank = rank
        self._begun = 0
        self._recorded: list[int] = []

    def step(self, global_step: int) -> AbstractContextManager[object]:
        """What a step of the run happens in, from asking for its batch on."""
        return OFF if self._recorder is None else self._followed(self._recorder, global_step)

    def finish_if_due(self) -> bool:
        """Between two steps: write the profile if its last step is over. Whether it was; that may take seconds."""
        if self._recorder is None or self._begun < self._window.end:
            return False
        self._finish(self._recorder)
        return True

    def close(self) -> None:
        """The run ends, for whatever reason: write the whole steps recorded so far, and say if some are missing."""
        if self._recorder is None:
            return
        missing = f"--profile-steps {self._window} asks for steps that did not come: the run ended "
        if self._recorded:
            logger.warning("%safter %d of %d recorded steps", missing, len(self._recorded), self._window.count)
            self._finish(self._recorder)
            return
        logger.warning(
            "%sin step %d of this launch. Nothing was recorded; start earlier, for example with --profile-steps 1:1",
            missing,
            self._begun,
        )
        self._stop(self._recorder)

    @contextmanager
    def _followed(self, recorder: Recorder, global_step: int) -> Iterator[None]:
        number = self._begun - self._window.wait
        self._begun += 1
        if number == 0:
            show_ranges(recorder.open_range)
        if number >= 0:
            try:
                recorder.before_step(number)
            except _TOOL_FAILURES as error:
                self._give_up(recorder, error)
        with step_range(global_step):
            yield
        if number >= self._window.warm_up:
            self._recorded.append(global_step)

    def _finish(self, recorder: Recorder) -> None:
        show_ranges(None)
        self._recorder = None
        try:
            recorder.finish(self._recorded)
        except _TOOL_FAILURES as error:
            self._give_up(recorder, error)

    def _stop(self, recorder: Recorder) -> None:
        show_ranges(None)
        self._recorder = None
        try:
            recorder.abandon()
        except _TOOL_FAILURES as error:
            logger.debug("rank %d: the profiler did not stop: %s", self._rank, error)

    def _give_up(self, recorder: Recorder, error: Exception) -> None:
        # At this level every rank is heard: a trace that is missing should not be a surprise.
        logger.error("rank %d: no profile, training goes on without: %s: %s", self._rank, type(error).__name__, error)
        self._stop(recorder)


NO_PROFILE = StepProfile(StepWindow(), None)
"""Profiles nothing, at the price of one call a step."""
