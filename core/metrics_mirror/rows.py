"""Lines of a `metrics.jsonl` that somebody else is writing, and the series that they make.

No torch here: the process that copies is small.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_NO_SERIES = ("event", "time", "step", "epoch", "seconds", "set", "kind")


class GrowingFile:
    """Whole lines of a growing file from a byte position on."""

    def __init__(self, path: Path, position: int = 0) -> None:
        self._path = path
        self.position = position
        """Bytes that have been given as lines."""

    def new_rows(self) -> list[Row]:
        """Rows of the lines that have been completed since; lines that are no JSON objects are passed over."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                self.position = min(self.position, size)
                file.seek(self.position)
                text = file.read(size - self.position)
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self.position += len(whole)
        return [row for row in map(_parsed, whole.splitlines()) if row is not None]


def without_repeats(rows: list[Row]) -> list[Row]:
    """Rows of a run that was resumed, without those that a later launch computed again.

    A row takes the place of all earlier rows of its kind at its step and after.
    """
    kept: list[Row] = []
    steps_after: dict[tuple[str, str], float] = {}  # read backwards: the earliest step that later rows hold
    for row in reversed(rows):
        kind = (str(row.get("event")), str(row.get("set")))
        step = row.get("step")
        if not isinstance(step, int):
            continue
        if step < steps_after.get(kind, math.inf):
            steps_after[kind] = step
            kept.append(row)
    return kept[::-1]


def series(row: Row) -> Iterator[tuple[str, float]]:
    """Name and value of every number in a row: `train/loss`, `evaluation/lfw/accuracy`."""
    event, name = row.get("event"), row.get("set")
    prefix = f"{event}/{name}" if isinstance(name, str) else f"{event}"
    values = {key: value for key, value in row.items() if key not in _NO_SERIES}
    yield from _numbers(prefix, values)


def _numbers(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if _is_number(value):
            yield f"{prefix}/{key}", float(value)
        elif isinstance(value, dict):
            yield from _numbers(prefix if key == "scores" else f"{prefix}/{key}", value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _parsed(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
