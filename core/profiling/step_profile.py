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
from typing import Literal

from adadistill.core.distributed import Ranks
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


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """The profile that a launch asks for; no part of its recipe."""

    tool: Literal["torch", "nsys"]
    """torch records by itself; nsys has to have started the process."""
    window: StepWindow = StepWindow()


_TOOL_FAILURES = (OSError, RuntimeError)
"""What a file system, CUDA, CUPTI and torch's profiler raise."""


class StepProfile:
    """Follows the steps of a launch; each kind has a tool record those of one window, on one rank.

    A kind overrides the four methods of its tool, any of which may raise OSError or RuntimeError.
    """

    def __init__(self, window: StepWindow, ranks: Ranks, *, over: bool = False) -> None:
        self.window, self.ranks = window, ranks
        self._over = over
        self._begun = 0
        self._recorded: list[int] = []

    def open_range(self, name: str) -> AbstractContextManager[object]:
        """A named range on the tool's timeline. Called on any thread."""
        raise NotImplementedError

    def before_step(self, number: int) -> None:
        """Step `number` comes, counted from the first warm-up step; what is recorded starts at `window.warm_up`."""
        raise NotImplementedError

    def finish(self, steps: Sequence[int]) -> None:
        """Stop recording and write what was recorded: these steps of the run, at least one, whole."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Stop recording and drop what was recorded."""
        raise NotImplementedError

    def step(self, global_step: int) -> AbstractContextManager[object]:
        """What a step of the run happens in, from asking for its batch on."""
        return OFF if self._over else self._followed(global_step)

    def finish_if_due(self) -> bool:
        """Between two steps: write the profile if its last step is over. Whether it was; that may take seconds."""
        if self._over or self._begun < self.window.end:
            return False
        self._end(keep=True)
        return True

    def close(self) -> None:
        """The run ends, for whatever reason: write the whole steps recorded so far, and say if some are missing."""
        if self._over:
            return
        missing = f"--profile-steps {self.window} asks for steps that did not come: the run ended "
        if self._recorded:
            logger.warning("%safter %d of %d recorded steps", missing, len(self._recorded), self.window.count)
        else:
            logger.warning(
                "%sin step %d of this launch. Nothing was recorded; start earlier, for example with "
                "--profile-steps 1:1",
                missing,
                self._begun,
            )
        self._end(keep=bool(self._recorded))

    @contextmanager
    def _followed(self, global_step: int) -> Iterator[None]:
        number = self._begun - self.window.wait
        self._begun += 1
        if number == 0:
            show_ranges(self.open_range)
        if number >= 0:
            try:
                self.before_step(number)
            except _TOOL_FAILURES as error:
                self._give_up(error)
        with step_range(global_step):
            yield
        if number >= self.window.warm_up:
            self._recorded.append(global_step)

    def _end(self, *, keep: bool) -> None:
        show_ranges(None)
        self._over = True
        try:
            if keep:
                self.finish(self._recorded)
            else:
                self.abandon()
        except _TOOL_FAILURES as error:
            if keep:
                self._give_up(error)
            else:
                logger.debug("rank %d: the profiler did not stop: %s", self.ranks.rank, error)

    def _give_up(self, error: Exception) -> None:
        # At this level every rank is heard: a trace that is missing should not be a surprise.
        told = f"{type(error).__name__}: {error}"
        logger.error("rank %d: no profile, training goes on without: %s", self.ranks.rank, told)
        self._end(keep=False)


NO_PROFILE = StepProfile(StepWindow(), Ranks(), over=True)
"""Profiles nothing, at the price of one call a step."""
