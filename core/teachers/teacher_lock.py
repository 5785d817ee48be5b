"""The lock file of teachers from elsewhere: which commit, and which bytes, a recipe was first used with.

A repository on the Hub can move and a folder can be written over; the class centres of a run would then follow another
teacher without a word. So the first use of a source writes down its commit and the sha256 of every file it read, and
every later use must find the same. The file is made to be read, reviewed and kept beside the recipes:

    {
      "teachers": {
        "minchul/cvlface_adaface_ir50_webface4m": {
          "files": {"model.safetensors": "<sha256>", "pretrained_model/model.yaml": "<sha256>"},
          "revision": "<commit; null for a folder>"
        }
      },
      "version": 1
    }

Several runs may write one file: each takes an exclusive lock, reads it again, adds its entry and renames the new file
into place, so that no entry is lost and a reader sees the file either before or after.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adadistill.core.config.yaml_tree import show_text
from adadistill.core.teachers.interface import TeacherError
from adadistill.loaders.atomic_file import sync_folder

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

    def to_json(self) -> dict[str, Any]:
        """JSON values; `parse_entry` reads them back."""
        return {"revision": self.revision, "files": dict(self.files)}


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
        return _parse(json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant))
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
        with _exclusive(path):
            entries = read_lock(path)
            if entries.get(source, entry) != entry:
                raise TeacherError(
                    f"{path}: another run has just locked `{source}` to {_told(entries[source])}, this one found "
                    f"{_told(entry)}; start again, and the entry in the file is used"
                )
            _replace(path, {**entries, source: entry})
    except OSError as error:
        raise TeacherError(f"{path}: the lock file of teachers cannot be written: {error.strerror}") from None


def parse_entry(value: Any) -> LockEntry:
    """Read what `LockEntry.to_json` made. Raises ValueError saying what is wrong."""
    if not isinstance(value, dict) or value.keys() != {"revision", "files"}:
        raise ValueError("it must have `revision` and `files`, and nothing else")
    revision, files = value["revision"], value["files"]
    if revision is not None and not (isinstance(revision, str) and _COMMIT.fullmatch(revision)):
        raise ValueError(f"revision must be a commit of 40 hex digits or null, got {_shown(revision)}")
    if not isinstance(files, dict) or not files:
        raise ValueError("files must map names to sha256")
    for name, sha256 in files.items():
        if not _is_plain_path(name):
            raise ValueError(f"{_shown(name)} is no path inside a folder")
        if not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
            raise ValueError(f"the sha256 of {_shown(name)} must be 64 hex digits, got {_shown(sha256)}")
    return LockEntry(revision=revision, files=files)


def _parse(document: Any) -> dict[str, LockEntry]:
    if not isinstance(document, dict) or "version" not in document:
        raise ValueError("it has no `version`")
    version = document["version"]
    if type(version) is not int or version != LOCK_VERSION:
        raise ValueError(f"it has version {_shown(version)}, this program reads version {LOCK_VERSION}")
    if document.keys() != {"version", "teachers"} or not isinstance(document["teachers"], dict):
        raise ValueError("it must have `version` and `teachers`, and nothing else")
    entries = {}
    for source, value in document["teachers"].items():
        try:
            entries[source] = parse_entry(value)
        except ValueError as error:
            raise ValueError(f"entry {_shown(source)}: {error}") from None
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two equal keys JSON readers keep the last without a word; here that would unlock a teacher."""
    entries: dict[str, Any] = {}
    for key, value in pairs:
        if key in entries:
            raise ValueError(f"the key {_shown(key)} occurs twice")
        entries[key] = value
    return entries


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _is_plain_path(name: str) -> bool:
    """Whether a name stays inside whatever folder it is looked up in."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and not any(part in ("", ".", "..") for part in parts)


def _shown(value: Any) -> str:
    return f"`{show_text(value)}`" if isinstance(value, str) else show_text(json.dumps(value))


def _told(entry: LockEntry) -> str:
    files = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in sorted(entry.files.items()))
    return f"revision {entry.revision} ({files})"


def _replace(path: Path, entries: Mapping[str, LockEntry]) -> None:
    document = {"version": LOCK_VERSION, "teachers": {name: entry.to_json() for name, entry in entries.items()}}
    body = json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body)
            file.flush()
            os.fchmod(file.fileno(), _mode(path))
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_folder(path.parent)


def _mode(path: Path) -> int:
    """Permissions of the file as it was, or those of an ordinary new one; `mkstemp` alone would make it private."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        return 0o644


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold the guard file beside `path`. The file itself will not do: it is replaced, and its lock with it.

    A process that dies lets go at once, as the kernel holds the lock. The guard is removed afterwards; who waited for a
    removed one has locked a file that nobody else will find, notices it, and starts over.
    """
    guard = path.with_name(f".{path.name}.guard")
    while True:
        handle = os.open(guard, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is_at(handle, guard):
                continue
            try:
                yield
            finally:
                guard.unlink()
            return
        finally:
            os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
