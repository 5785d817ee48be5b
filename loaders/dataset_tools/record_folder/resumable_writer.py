"""Writes a record file that a kill does not cost: the next attempt goes on where the last safe point was.

While it is written, `TARGET.partial` holds the records and `TARGET.journal` the safe points. A safe point is a line
`records bytes crc32-of-all-of-them crc32-of-the-line`, appended once the records before it are on disk (fsync), and
itself on disk before anything follows. An attempt that finds both takes the last safe point that the partial file
bears out, reads it against its checksum, cuts off what lies behind, and goes on: the end is the same bytes as if
nothing had happened. The journal's first line names the plan; another plan does not go on with it.

Publishing: an old file and its seal go, then the side files (`.idx`, property) appear, then the records get their name,
then the journal goes. Whatever stops that, the next attempt finishes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from adadistill.loaders.dataset_tools.record_folder.errors import RecordFolderError
from adadistill.loaders.file_lock import try_lock
from adadistill.loaders.atomic_file import sync_folder
from adadistill.loaders.records.recordio import SEAL_SUFFIX, RecordError, RecordFile, write_text_atomically
from adadistill.loaders.stored_blocks.json_text import parse_json

_FORMAT = "adadistill-record-journal 1"
_SAFE_POINT_BYTES = 64 << 20
_CHUNK = 8 << 20
_MAX_JOURNAL = 64 << 20


class ResumableRecords:
    """One record file in the making; a context manager that holds it against other processes."""

    def __init__(
        self,
        target: Path,
        plan: str,
        *,
        overwrite: bool = False,
        restart: bool = False,
        safe_point_bytes: int = _SAFE_POINT_BYTES,
    ) -> None:
        """Name the file; nothing is touched yet.

        Args:
            target: ends in .rec; its folder exists.
            plan: digest of what is to be written; the same plan goes on, another is refused.
            overwrite: replace a finished target.
            restart: throw away what an earlier attempt of another plan left.

        Raises:
            FileExistsError: the target exists, `overwrite` is false, and no attempt of this plan has just written it.
        """
        if target.suffix != ".rec":
            raise ValueError(f"a record file must end in .rec, got {target}")
        self.target = target
        self._plan, self._overwrite, self._restart = plan, overwrite, restart
        self._safe_point_bytes = safe_point_bytes
        self._partial = target.with_name(f"{target.name}.partial")
        self._journal_path = target.with_name(f"{target.name}.journal")
        if target.exists() and not overwrite and not self._journal_path.exists():
            raise FileExistsError(f"{target} exists already; --overwrite replaces it")
        self.records = self.bytes = self._crc32 = 0
        self.resumed_records = 0
        self.offsets = array("q")
        self._digest = hashlib.sha256()
        self._safe_bytes = 0
        self._journal: BinaryIO | None = None
        self._file: BinaryIO | None = None

    def __enter__(self) -> ResumableRecords:
        self._journal = self._journal_path.open("a+b")
        try:
            self._lock(self._journal)
            self._resume(self._journal)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in (self._file, self._journal):
            try:
                if file is not None:
                    file.close()
            except OSError:
                if error is None:
                    raise  # else it fails for what has just been told, as a full disk
        self._file = self._journal = None

    @property
    def sha256(self) -> str:
        """Of all bytes so far."""
        return self._digest.hexdigest()

    def append(self, stored: bytes) -> None:
        """Add one record, framed and padded."""
        assert self._file is not None, "within the `with` block"
        self.offsets.append(self.bytes)
        self._file.write(stored)
        self._take(stored)
        self.records += 1
        if self.bytes - self._safe_bytes >= self._safe_point_bytes:
            self.save()

    def save(self) -> None:
        """Make a safe point: all records so far are on disk, and the journal says so."""
        assert self._file is not None, "within the `with` block"
        assert self._journal is not None, "within the `with` block"
        self._file.flush()
        os.fsync(self._file.fileno())
        line = f"{self.records} {self.bytes} {self._crc32:08x}"
        self._journal.write(f"{line} {zlib.crc32(line.encode()):08x}\n".encode())
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self._safe_bytes = self.bytes

    def publish(self, index_lines: Iterable[str] | None, side_files: Mapping[str, bytes]) -> None:
        """Give the file its name, with its `.idx` (None: it has none) and other files beside it.

        Args:
            side_files: content by name in the target's folder.
        """
        self.save()
        index_path = self.target.with_suffix(".idx")
        self.target.with_name(self.target.name + SEAL_SUFFIX).unlink(missing_ok=True)
        index_path.unlink(missing_ok=True)
        self.target.unlink(missing_ok=True)
        if index_lines is not None:
            write_text_atomically(index_path, index_lines)
        for name, content in side_files.items():
            _write_atomically(self.target.with_name(name), content)
        os.replace(self._partial, self.target)
        sync_folder(self.target.parent)
        self._journal_path.unlink()

    def discard(self) -> None:
        """Throw the attempt away: what it wrote is not what was wanted."""
        self._partial.unlink(missing_ok=True)
        self._journal_path.unlink(missing_ok=True)

    def _lock(self, journal: BinaryIO) -> None:
        if try_lock(journal) is False:
            raise RecordFolderError(f"{self.target}: another process is writing it; wait for it, or stop it")

    def _resume(self, journal: BinaryIO) -> None:
        points = self._safe_points(journal)
        if points is None:
            self._begin(journal)
            return
        if self.target.exists() and not self._partial.exists() and _is(self.target, *(points or [(0, 0, 0)])[-1][1:]):
            os.replace(self.target, self._partial)  # published but for the journal: publish it once more
        elif self.target.exists() and not self._overwrite:
            raise FileExistsError(f"{self.target} exists already; --overwrite replaces it")
        self._partial.touch()
        self._file = self._partial.open("r+b")
        size = os.fstat(self._file.fileno()).st_size
        for records, length, crc32 in reversed([(0, 0, 0), *points]):
            if length <= size and self._bears_out(records, length, crc32):
                break
        self._file.truncate(self.bytes)
        self._file.seek(self.bytes)
        self._safe_bytes = self.bytes
        self.resumed_records = self.records

    def _begin(self, journal: BinaryIO) -> None:
        if self.target.exists() and not self._overwrite:
            raise FileExistsError(f"{self.target} exists already; --overwrite replaces it")
        journal.truncate(0)
        self._file = self._partial.open("wb")
        journal.write(json.dumps({"format": _FORMAT, "plan": self._plan}).encode() + b"\n")
        journal.flush()
        os.fsync(journal.fileno())
        sync_folder(self.target.parent)

    def _safe_points(self, journal: BinaryIO) -> list[tuple[int, int, int]] | None:
        """(records, bytes, crc32) of the journal's sound lines; None where it has no sound first line.

        What is cut or damaged ends the journal: it is cut off, so that new lines follow sound ones.
        """
        journal.seek(0)
        lines = journal.read(_MAX_JOURNAL).splitlines(keepends=True)
        if not lines or not lines[0].endswith(b"\n"):
            return None  # killed before the journal's first line was on disk
        try:
            first = parse_json(lines[0].decode("ascii"))
        except ValueError:
            first = None
        stated = first.get("plan") if isinstance(first, dict) and first.get("format") == _FORMAT else None
        if stated != self._plan:
            if self._restart:
                return None
            raise RecordFolderError(
                f"{self._journal_path} is of an unfinished conversion of other images, or of these before they "
                "changed: --restart throws its work away and begins anew"
            )
        points, sound = [], len(lines[0])
        for line in lines[1:]:
            text, _, check = line.rstrip(b"\n").rpartition(b" ")
            if not line.endswith(b"\n") or f"{zlib.crc32(text):08x}".encode() != check:
                break
            try:
                records, length, crc32 = text.split(b" ")
                points.append((int(records), int(length), int(crc32, 16)))
            except ValueError:
                break
            sound += len(line)
        journal.truncate(sound)
        return points

    def _bears_out(self, records: int, length: int, crc32: int) -> bool:
        """Whether the partial file begins with what a safe point says; takes it over where it does."""
        assert self._file is not None
        self.records = self.bytes = self._crc32 = 0
        self._digest, self.offsets = hashlib.sha256(), array("q")
        self._file.seek(0)
        for piece in _pieces(self._file, length):
            self._take(piece)
        if self.bytes != length or self._crc32 != crc32:
            return False
        if length:
            part = RecordFile(self._partial)
            try:
                self.offsets.extend(record.offset for record in part.scan(0, length))
            except RecordError:
                return False
            finally:
                part.close()
        self.records = records
        return len(self.offsets) == records

    def _take(self, piece: bytes) -> None:
        self._digest.update(piece)
        self._crc32 = zlib.crc32(piece, self._crc32)
        self.bytes += len(piece)


def _is(path: Path, length: int, crc32: int) -> bool:
    """Whether a file has this many bytes, and these."""
    if length == 0 or path.stat().st_size != length:
        return False
    found = 0
    with path.open("rb") as file:
        for piece in _pieces(file, length):
            found = zlib.crc32(piece, found)
    return found == crc32


def _pieces(file: BinaryIO, length: int) -> Iterator[bytes]:
    while length > 0 and (piece := file.read(min(length, _CHUNK))):
        length -= len(piece)
        yield piece


def _write_atomically(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
