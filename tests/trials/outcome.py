"""What a kind of damage did: how often it was tried, how often the system held, and how it showed where it did not."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialOutcome:
    """Many trials of one kind of damage, drawn from a seed."""

    group: str
    """What was damaged: `checkpoint`, `record file`, `recipe`, ..."""
    damage: str
    """What was done to it: `SIGKILL during training`, `one bit flipped`."""
    promise: str
    """What must hold: `resumes, never older than the last completed save`."""
    trials: int
    held: int
    """Trials in which the promise held."""
    outcomes: dict[str, int] = field(default_factory=dict)
    """How trials ended, by kind, each with its count: `refused by name`, `read correctly`."""
    peak_mib: float | None = None
    """Largest resident memory of the process that met the damage, where it was watched."""
    failures: tuple[str, ...] = ()
    """Of trials in which it did not hold: seed and what was seen, at most ten."""

    def __post_init__(self) -> None:
        if not 0 <= self.held <= self.trials:
            raise ValueError(f"held must be in [0, {self.trials}], got {self.held}")
