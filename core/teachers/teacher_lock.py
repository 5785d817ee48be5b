"""The lock file of teachers from elsewhere: which commit, and which bytes, a recipe was first used with.

A repository on the Hub can move and a folder can be written over; the class centres of a run would then follow another
teacher without a word. So the first use of a source writes down its commit and the sha256 of every file it read, and
every later use must find the same. The file is made to be read, reviewed and kept beside the recipes:

    {"teachers": {"owner/name": {"files": {"model.safetensors": "<sha256>"}, "revision": "<commit; null: a folder>"}},
     "version": 1}
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from adadistill.core.config.yaml_tree import show_text
from adadistill.core.teachers.interface import TeacherError
from adadistill.loaders.atomic_file import write_whole

LOCK_VERSION: Final = 1
MAX_LOCK_BYTES: Final = 1 << 20  # some thousand entries

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LockEntry:
    """What one source was when it was first used."""

    revision: str | None
    """Commit of the repository, 40 hex digits; None for a folder."""
    files: Mapping[str, str]
    """sha256, 64 hex digits, of every file that was read, by its path in the repository or folder."""


def read_lock(path: Path) -> dict[str, LockEntry]:
    """The entries of a lock file by source; none where there is no such file.

    Raises:
        TeacherError: it cannot be read, is too large, or is not a lock file of this version.
    """
    try:
        if path.exists() and not path.is_file():
            raise TeacherError(f"{path} is no regular file; teacher.lock must name a file")
        with path.open("rb") as file:
            body = file.read(MAX_LOCK_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise TeacherError(f"{path}: the lock file of teachers cannot be read: {error.strerror}") from None
    if len(body) > MAX_LOCK_BYTES:
        raise TeacherError(f"{path} is larger than {MAX_LOCK_BYTES:,} bytes, which no lock file of teachers is")
    try:
        return _entries(json.loads(body.decode("utf-8"), object_pairs_hook=_unique))
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise TeacherError(
            f"{path} is no readable lock file of teachers: {reason}. Restore it, or remove it to lock every source "
            "anew, to what it is now"
        ) from None


def check_writable(path: Path) -> None:
    """Refuse a lock file that could not be written, before minutes of download. Raises TeacherError."""
    if not path.parent.is_dir():
        raise TeacherError(
            f"teacher.lock is {path}, but there is no folder {path.parent}; make it, or name another file"
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise TeacherError(
            f"{path}: a new source must be written to the lock file, but its folder cannot be written; name another "
            "file in teacher.lock, or lock the source where that is possible"
        )


def add_entry(path: Path, source: str, entry: LockEntry) -> None:
    """Add one entry to a lock file, atomically; the entries of others stay, also those added at this very moment.

    Raises:
        TeacherError: the file cannot be read or written, or meanwhile holds another entry of this source.
    """
    try:
        with _exclusive(path.parent):
            entries = read_lock(path)
            if entries.get(source, entry) != entry:
                raise TeacherError(
                    f"{path}: another run has just locked `{source}` to {_told(entries[source])}, this one found "
                    f"{_told(entry)}; start again, and the entry in the file is used"
                )
            teachers = {name: asdict(one) for name, one in {**entries, source: entry}.items()}
            document = {"version": LOCK_VERSION, "teachers": teachers}
            write_whole(path, json.dumps(document, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise TeacherError(f"{path}: the lock file of teachers cannot be written: {error.strerror}") from None


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder, where its file system can: the file itself will not do, it is replaced, and its lock with it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # NFS locks no folder
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _entries(document: Any) -> dict[str, LockEntry]:
    if not isinstance(document, dict) or "version" not in document:
        raise ValueError("it has no `version`")
    version = document["version"]
    if type(version) is not int or version != LOCK_VERSION:
        raise ValueError(f"it has version {_shown(version)}, this program reads version {LOCK_VERSION}")
    if document.keys() != {"version", "teachers"} or not isinstance(document["teachers"], dict):
        raise ValueError("it must have `version` and `teachers`, and nothing else")
    return {source: _entry(source, value) for source, value in document["teachers"].items()}


def _entry(source: str, value: Any) -> LockEntry:
    where = f"entry {_shown(source)}"
    if not isinstance(value, dict) or value.keys() != {"revision", "files"}:
        raise ValueError(f"{where}: it must have `revision` and `files`, and nothing else")
    revision, files = value["revision"], value["files"]
    if revision is not None and not (isinstance(revision, str) and _COMMIT.fullmatch(revision)):
        raise ValueError(f"{where}: revision must be a commit of 40 hex digits or null, got {_shown(revision)}")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{where}: files must map names to sha256")
    for name, sha256 in files.items():
        if not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
            raise ValueError(f"{where}: the sha256 of {_shown(name)} must be 64 hex digits, got {_shown(sha256)}")
    return LockEntry(revision=revision, files=files)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two equal keys JSON readers keep the last without a word; here that would unlock a teacher."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {_shown(twice)} occurs twice")
    return entries


def _shown(value: Any) -> str:
    return f"`{show_text(value)}`" if isinstance(value, str) else show_text(json.dumps(value))


def _told(entry: LockEntry) -> str:
    files = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in sorted(entry.files.items()))
    return f"revision {entry.revision} ({files})"
