"""What a kind of damage did: how often it was tried, how often the system held, and how it showed where it did not."""

from __future__ import annotations

from dataclasses import dataclass, field

_FAILURES_KEPT, _LONGEST_FAILURE = 10, 400


@dataclass(slots=True)
class Tally:
    """Trials of one kind of damage, counted one by one."""

    group: str
    """What was damaged: `checkpoint`, `record file`, `recipe`, ..."""
    damage: str
    """What was done to it: `SIGKILL during a save`, `one bit flipped`."""
    promise: str
    """What must hold: `resumes, not older than the last completed save`."""
    held: int = 0
    """Trials in which the promise held."""
    outcomes: dict[str, int] = field(default_factory=dict)
    """How trials ended, by kind, each with its count: `refused by name`, `read as it was`."""
    peak_mib: float | None = None
    """Most memory that a trial took, where that was watched."""
    failures: list[str] = field(default_factory=list)
    """What was seen in the first trials in which it did not hold, and how to see it again."""

    @property
    def trials(self) -> int:
        """How many were counted."""
        return sum(self.outcomes.values())

    def add(self, ending: str, broken: str = "", *, peak_mib: float | None = None) -> None:
        """Count a trial: how it ended, what was wrong with that (nothing where it held), memory up to now."""
        ending = "promise broken" if broken else ending
        self.outcomes[ending] = self.outcomes.get(ending, 0) + 1
        self.held += not broken
        if broken and len(self.failures) < _FAILURES_KEPT:
            self.failures.append(broken[:_LONGEST_FAILURE])
        if peak_mib is not None:
            self.peak_mib = round(max(peak_mib, self.peak_mib or 0.0), 1)
