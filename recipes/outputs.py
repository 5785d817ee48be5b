"""Where the result of a verb goes: `--out PLACE`, and whether that can be written, asked at the door.

Verbs took the place as a last word once; that is still understood, wherever it stands between options. The door asks
before the work and leaves no trace.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from adadistill.recipes.entry_point import result_lies_in_files


def add_out(parser: argparse.ArgumentParser, metavar: str, text: str) -> None:
    """Add the option, behind all positional arguments of the parser. `parse_with_out` reads it.

    Args:
        text: says what is written, for `--help`.
    """
    parser.add_argument("place", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, metavar=metavar, help=text)


def parse_with_out(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; `out` is the place, however it was named. Exits as argparse does with none or two."""
    arguments = parser.parse_intermixed_args(list(argv))
    if (arguments.out is None) == (arguments.place is None):
        parser.error("say once where the result goes: --out PLACE")
    arguments.out = arguments.out or arguments.place
    return arguments


def will_write_folder(path: Path, *, remedy: str = "name another folder") -> None:
    """The result of the verb goes into a folder, which is made, with those above it, where it is not there.

    Raises:
        OSError: that cannot be.
    """
    result_lies_in_files()
    _check_folder(path, path, remedy)


def will_write(
    path: Path, *, is_result: bool = True, makes_parents: bool = False, remedy: str = "name another"
) -> None:
    """A file is written whole and renamed, or, where it is a device or a pipe, written to.

    Args:
        is_result: of the verb; else that is printed, and this is a by-product.
        makes_parents: folders that are not there are made.

    Raises:
        OSError: that cannot be.
    """
    if is_result:
        result_lies_in_files()
    if path.is_dir():
        raise IsADirectoryError(f"{path} cannot be written: it is a folder, and a file is to be written; {remedy}")
    if path.exists() and not path.is_file():
        _check_access(path, path, os.W_OK, remedy)
        return
    _check_folder(path.parent, path, remedy)
    if not makes_parents and not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}; make it, or {remedy}")


def _check_folder(folder: Path, path: Path, remedy: str) -> None:
    nearest = next(one for one in (folder.absolute(), *folder.absolute().parents) if _is_there(one))
    if not nearest.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {nearest} is no folder; {remedy}")
    _check_access(nearest, path, os.W_OK | os.X_OK, remedy)


def _is_there(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # others, as of a name too long, end here
        return False
    return True


def _check_access(place: Path, path: Path, mode: int, remedy: str) -> None:
    if not os.access(place, mode, effective_ids=os.access in os.supports_effective_ids):
        read_only = os.statvfs(place).f_flag & os.ST_RDONLY
        why = f"{place} is on a read-only file system" if read_only else f"this user may not write in {place}"
        raise PermissionError(f"{path} cannot be written: {why}; {remedy}")
