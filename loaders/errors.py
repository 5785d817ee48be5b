"""The two kinds of errors that end a verb with one sentence instead of a traceback, and their exit codes.

A class of ours takes one of them beside the built-in that callers catch: `class RecordError(WorkFailed, ValueError)`.
A class of its own exists only where somebody catches it by name. `ValueError`, `OSError` and `ImportError` without
either count as refusals; what is none of these is a mistake of ours and keeps its traceback (recipes/entry_point.py).
"""

from __future__ import annotations

from typing import ClassVar


class Refused(Exception):  # noqa: N818
    """Nothing could begin: what was asked for is wrong, or what it needs is not there."""

    exit_code: ClassVar[int] = 2


class WorkFailed(Exception):  # noqa: N818
    """The work had begun and failed, or the data is bad."""

    exit_code: ClassVar[int] = 1
