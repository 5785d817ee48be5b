"""One trial: a mutated file goes to its real reader, and what the reader does is judged."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

REFUSED = "refused by name"
READ = "read as it was"
_STEP = 103  # a prime larger than any group of like attacks, and no divisor of their number


@dataclass(frozen=True, slots=True)
class Ending:
    """How one trial ended."""

    outcome: str
    held: bool
    damage: str = ""
    note: str = ""
    """Of one that did not hold: what was seen."""


class BrokenPromiseError(Exception):
    """A reader returned what it must not return; the text says what."""


class MutationKind(Protocol):
    """A format, its originals and its mutations. `trial` may be called in any order, in an empty folder each."""

    group: str
    damage: str
    promise: str

    def prepare(self, folder: Path) -> None:
        """Make the originals, below `folder` where files are needed, and read them once: readers import lazily."""

    def trial(self, rng: np.random.Generator, number: int, folder: Path) -> Ending:
        """Mutate, read, judge."""


def attack_of(number: int, count: int) -> int | None:
    """Which of `count` attacks a trial makes; None for every other trial, which damages bytes.

    Taken in steps, so that a few trials meet attacks of all sorts and twice their number meets each.
    """
    if number % 2:
        return None
    return number // 2 * _STEP % count


def judge(damage: str, read: Callable[[], str], refusals: tuple[type[Exception], ...], *, named: str) -> Ending:
    """Call a reader on something mutated.

    Args:
        damage: what was done.
        read: returns the outcome in words, raises what the reader raises, or BrokenPromiseError.
        refusals: errors of ours that refuse such a file by name.
        named: what the text of an error must hold: the file's name, mostly.
    """
    try:
        return Ending(read(), True, damage)
    except BrokenPromiseError as broken:
        return Ending("wrong result", False, damage, str(broken)[:300])
    except refusals as error:
        return _refused(damage, error, named)
    except (ValueError, OSError) as error:  # the commands report these too, but only our own texts name the file
        if type(error) in (ValueError, FileNotFoundError) or isinstance(error, OSError):
            return _refused(damage, error, named)
        return _leaked(damage, error)
    except Exception as error:
        return _leaked(damage, error)


def _refused(damage: str, error: Exception, named: str) -> Ending:
    text = str(error)
    if named not in text:
        return Ending("refused without the file's name", False, damage, f"{type(error).__name__}: {text[:300]}")
    if len(text) > 20_000:
        return Ending("refused at great length", False, damage, f"{type(error).__name__}: {len(text)} characters")
    return Ending(REFUSED, True, damage)


def _leaked(damage: str, error: Exception) -> Ending:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return Ending("another error", False, damage, f"{type(error).__name__} at {where}: {str(error)[:200]}")
