"""What a look at a launch has found so far: problems that would stop it, notes, and the files that it would read."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from adadistill.core.checkpoints import CheckpointError
from adadistill.core.distributed import LaunchError
from adadistill.core.metrics_mirror import MirrorError
from adadistill.core.training.run_folder import RunFolderError

# What a launch ends with, exit code 2 or 1, when something named in the recipe is not as it should be. RecordError,
# TeacherError and StoreError are ValueErrors, a missing DALI is an ImportError.
_REFUSALS = (MirrorError, ValueError, OSError, ImportError, CheckpointError, LaunchError, RunFolderError)

Presence = Literal["there", "missing", "optional", "download"]


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file or folder that the run would read."""

    key: str
    """The recipe key that names it, or what it lies beside."""
    path: str
    presence: Presence
    """`optional`: not there, and not needed. `download`: would be fetched from the Hub."""
    size_bytes: int | None
    """Of a file that is there."""


@dataclass(slots=True)
class Findings:
    """Collected while a launch is looked at, in the order of looking."""

    problems: list[str] = field(default_factory=list)
    """What would keep the run from starting, a sentence each."""
    notes: list[str] = field(default_factory=list)
    """What is worth knowing and stops nothing."""
    reads: list[ReadFile] = field(default_factory=list)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Turn what a run would refuse, raised inside, into a problem."""
        try:
            yield
        except _REFUSALS as error:
            self.problems.append(str(error) or type(error).__name__)

    def will_read(self, key: str, path: str | Path, *, needed: bool = True, a_folder: bool = False) -> bool:
        """Note a file or folder that the run reads, and whether it is there; a needed one that is not is a problem.

        Args:
            a_folder: it must be a folder; otherwise it may be either.
        """
        found = stat_of(path)
        fits = found is not None and (not a_folder or stat.S_ISDIR(found.st_mode))
        size = found.st_size if found is not None and stat.S_ISREG(found.st_mode) else None
        presence: Presence = "there" if fits else "missing" if needed else "optional"
        self.reads.append(ReadFile(key, str(path), presence, size))
        if needed and found is None:
            self.problems.append(f"{key}: {path} is not there")
        elif needed and not fits:
            self.problems.append(f"{key}: {path} is no folder")
        elif needed and size == 0:
            self.problems.append(f"{key}: {path} is empty")
        return fits

    @contextmanager
    def warnings_as_notes(self) -> Iterator[None]:
        """Take the package's logged warnings as notes, instead of printing them."""
        logger = logging.getLogger("adadistill")
        handler = _NoteHandler(self.notes)
        propagates = logger.propagate
        logger.addHandler(handler)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagates


class _NoteHandler(logging.Handler):
    def __init__(self, notes: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what was said, once."""
        text = record.getMessage()
        if text not in self._notes:
            self._notes.append(text)


def stat_of(path: str | Path) -> os.stat_result | None:
    """What a path leads to; None where it leads nowhere, may not be looked at, or is no possible name."""
    try:
        return os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL, or characters that the file system cannot encode
        return None
