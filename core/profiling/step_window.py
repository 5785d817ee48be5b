"""Which steps of a launch are profiled."""

from __future__ import annotations

import re
from dataclasses import dataclass

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
