"""Counting trials of one kind of damage until they are an outcome."""

from __future__ import annotations

from collections import Counter

from trials.outcome import TrialOutcome

_FAILURES_KEPT = 10
_LONGEST_FAILURE = 400


class Tally:
    """Trials of one kind of damage, counted one by one."""

    def __init__(self, group: str, damage: str, promise: str) -> None:
        self._group, self._damage, self._promise = group, damage, promise
        self._outcomes: Counter[str] = Counter()
        self._failures: list[str] = []
        self._held = 0

    @property
    def trials(self) -> int:
        """Counted so far."""
        return sum(self._outcomes.values())

    def add(self, kind: str, broken: str = "") -> None:
        """Count a trial.

        Args:
            kind: how it ended.
            broken: what was seen where the promise did not hold, and how to see it again; empty where it held.
        """
        self._outcomes[kind if not broken else "promise broken"] += 1
        if not broken:
            self._held += 1
        elif len(self._failures) < _FAILURES_KEPT:
            self._failures.append(broken[:_LONGEST_FAILURE])

    def outcome(self) -> TrialOutcome:
        """All of them."""
        return TrialOutcome(
            group=self._group,
            damage=self._damage,
            promise=self._promise,
            trials=self.trials,
            held=self._held,
            outcomes=dict(sorted(self._outcomes.items())),
            failures=tuple(self._failures),
        )
