"""Writes the blocks of a store: from any number of threads and processes, through kills and power cuts.

Why it survives: the header takes its name only after all other files have their full size on disk, and a block's slot
is written only after its bytes are on disk. So at every moment a folder is either the beginning of a store, which is
begun again, or a store whose slots tell the truth. Nothing depends on the order in which blocks are written, nor on who
writes them: the finished files are the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from adadistill.loaders.atomic_file import sync_folder
from adadistill.loaders.block_store.errors import StoreError, StoreWriteError
from adadistill.loaders.block_store.files import (
    HEADER_NAME,
    PARTIAL_HEADER_NAME,
    StoredHeader,
    open_data,
    read_header,
    read_start,
    write_at,
)
from adadistill.loaders.block_store.header import H, StoreHeader, StoreKind
from adadistill.loaders.block_store.slots import (
    EMPTY_SLOT,
    SLOT_BYTES,
    SLOTS_NAME,
    SlotFormat,
    chunk_buffer,
    crc32_of_spans,
    slots_file,
)
from adadistill.loaders.file_lock import try_lock

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockProgress:
    """How far one rank of a build is."""

    blocks: int
    """The blocks that are done, of this rank's."""
    of_blocks: int
    """This rank's blocks."""
    images: int
    """Images taken in this run, by this rank."""


_OPEN_ATTEMPTS = 100
_NO_RESERVATION = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC  # a link planted in the folder must not lead a write elsewhere

W = TypeVar("W", bound="BlockWriter[Any]")


class BlockWriter(Generic[H]):
    """A store that is open for writing: begun where there is none, continued where one of the same header stopped.

    A context manager. Threads and processes may write different blocks at the same time; `close` only when no block is
    being written. Two builds must not write one folder: see `_begin`.
    """

    def __init__(self, folder: str | Path, header: H, *, main: bool) -> None:
        """Open or begin a store.

        Args:
            folder: absent, empty, or what an earlier build of the same header left.
            header: what the store holds. Must equal the header in the folder, where there is one.
            main: True in one process of a build, False in the others, which open what that one has made.

        Raises:
            StoreMissingError, StoreIncompleteError: `main` is False and the store was not made yet.
            StoreDamagedError: the folder holds a store that cannot be continued.
            StoreError: the folder holds a store with another header (every differing field is named) or something else,
                another build is running there, the disk has no room for the whole store, or it cannot be written.
            ValueError: the header is too long to be stored.
        """
        self.folder, self.header = Path(folder), header
        text = header.to_bytes()
        with contextlib.ExitStack() as opened:
            try:
                if main:
                    _begin(self.folder, header, text, opened)
                stored = _same_header(self.folder, header)
                if main:  # a build that lost the race to begin may have been killed before it removed this
                    (self.folder / PARTIAL_HEADER_NAME).unlink(missing_ok=True)
                elif header.kind.ranks_lock:
                    _join(self.folder, header.kind, opened)
                self._handles = self._open_files(opened)
            except OSError as error:
                raise StoreError(f"the {header.kind.name} at {self.folder} cannot be written: {error}") from error
            self._slots = self._handles[SLOTS_NAME]
            self._header_sha256, self._slot_format = stored.sha256, SlotFormat(stored.sha256)
            self._closing = weakref.finalize(self, opened.pop_all().close)
            self._closing.atexit = False  # the kernel closes what is open then

    def __enter__(self: W) -> W:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    def close(self) -> None:
        """Close the files and give up the lock. What was written stays, finished or not. A second time does nothing."""
        self._closing()

    def pending(self, first: int = 0, stop: int | None = None) -> npt.NDArray[np.int64]:
        """Blocks in [first, stop) that are yet to be written, ascending.

        Done blocks are read again and checked: those whose bytes or slots are not what was written are pending too,
        with a warning, so that a build repairs what broke. Reading costs seconds for gigabytes; ranks can share it.

        Raises:
            IndexError: no such blocks.
            StoreError: the files cannot be read.
        """
        self._check_open()
        buffer = chunk_buffer()
        found = {block: self._is_sound(block, buffer) for block in self.header.checked_blocks(first, stop)}
        if damaged := [block for block, sound in found.items() if sound is False]:
            logger.warning(
                "%s: %d blocks that were done are damaged and are made anew, the first is %s",
                self.folder,
                len(damaged),
                self.header.describe_block(damaged[0]),
            )
        return np.array([block for block, sound in found.items() if not sound], np.int64)

    def missing_blocks(self) -> int:
        """How many blocks, of all processes, are not marked as done."""
        slots = read_start(self._slots, SLOT_BYTES * self.header.num_blocks)
        return sum(state.crc32 is None for state in self._slot_format.read_all(slots))

    def _write(self, block: int, bodies: Sequence[memoryview]) -> None:
        """Store the bytes of one block, one body for each of its spans, and mark it as done when they are on disk.

        Raises StoreWriteError where the disk refused them; the block is then not marked as done.
        """
        self._check_open()
        try:
            if os.pread(self._slots, SLOT_BYTES, SLOT_BYTES * block) != EMPTY_SLOT:
                self._write_slot(block, EMPTY_SLOT)  # a kill below must not leave new bytes under an old checksum
            crc32 = 0
            for span, body in zip(self.header.block_spans(block), bodies, strict=True):
                write_at(self._handles[span.name], body, span.bytes.start)
                os.fdatasync(self._handles[span.name])
                crc32 = zlib.crc32(body, crc32)
            self._write_slot(block, self._slot_format.pack(block, crc32))
        except OSError as error:
            raise StoreWriteError(
                f"{self.folder}: {self.header.describe_block(block)} cannot be written: {error}. "
                f"What is done stays; start the {self.header.kind.making} again to continue it"
            ) from error

    def _write_slot(self, block: int, slot: bytes) -> None:
        write_at(self._slots, memoryview(slot), SLOT_BYTES * block)
        os.fdatasync(self._slots)

    def _is_sound(self, block: int, buffer: memoryview) -> bool | None:
        """Whether a block that was done is as it was written; None where it was never done."""
        try:
            state = self._slot_format.read(block, os.pread(self._slots, SLOT_BYTES, SLOT_BYTES * block))
            if state.crc32 is None:
                return False if state.damage else None
            return crc32_of_spans(self._handles, self.header.block_spans(block), buffer) == state.crc32
        except OSError as error:
            raise StoreError(f"{self.folder}: block {block} cannot be read: {error}") from error

    def _check_open(self) -> None:
        if not self._closing.alive:
            raise ValueError(f"{self!r} is closed")

    def _open_files(self, opened: contextlib.ExitStack) -> dict[str, int]:
        handles = {}
        for file in (*self.header.files(), slots_file(self.header)):
            handles[file.name] = open_data(self.folder, file, os.O_RDWR | _NO_LINK, self.header.kind)
            opened.callback(os.close, handles[file.name])
        return handles


def check_folder(folder: Path, kind: StoreKind) -> None:
    """Refuse a folder that holds neither a store of ours nor the beginning of one. Raises StoreError and OSError."""
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file; a {kind.name} needs a folder")
    if folder.exists():
        _header_path(folder, kind)


def _begin(folder: Path, header: StoreHeader, text: bytes, opened: contextlib.ExitStack) -> None:
    """Lock the store in a folder for as long as `opened` lasts; make its files where there are none.

    Every writer holds a shared lock on the header's inode; the one that begins or resumes needs it to itself for that
    moment. The kernel drops the lock when the last process that holds it ends.
    """
    check_folder(folder, header.kind)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle, path = _open_alone(folder, header.kind)
    opened.callback(_release, handle, os.getpid())
    if path.name == PARTIAL_HEADER_NAME:
        _create_files(folder, header, text, handle, remove_folder=is_new)
    _lock(handle, folder, header.kind, shared=True)


def _join(folder: Path, kind: StoreKind, opened: contextlib.ExitStack) -> None:
    """Hold the lock of a store that the main process has begun."""
    handle = os.open(folder / HEADER_NAME, os.O_RDONLY | _NO_LINK)
    opened.callback(_release, handle, os.getpid())
    _lock(handle, folder, kind, shared=True)


def _open_alone(folder: Path, kind: StoreKind) -> tuple[int, Path]:
    """Open the header, or the beginning of one, with the lock to ourselves. A refused folder is not touched.

    Another build may rename or remove the file between our opening and locking it; then we look again.
    """
    for _ in range(_OPEN_ATTEMPTS):
        path = _header_path(folder, kind)
        creating = path.name == PARTIAL_HEADER_NAME
        try:
            handle = os.open(path, os.O_RDWR | _NO_LINK | (os.O_CREAT if creating else 0), 0o666)
        except FileNotFoundError:
            continue
        try:
            _lock(handle, folder, kind)
            if _is_named(handle, path):
                if not creating or not (folder / HEADER_NAME).exists():
                    return handle, path
                path.unlink(missing_ok=True)  # the other build finished its header before we began this one
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    raise StoreError(f"{folder}: another {kind.making} keeps changing this folder; stop it, or take another folder")


def _header_path(folder: Path, kind: StoreKind) -> Path:
    """Where the header is, or is to be begun. Raises StoreError where the folder holds something else."""
    names = sorted(os.listdir(folder))
    # Looked for by name too: a listing that another build's rename overtakes may show neither name of it.
    if HEADER_NAME in names or (folder / HEADER_NAME).exists():
        return folder / HEADER_NAME
    ours = all(name in (PARTIAL_HEADER_NAME, SLOTS_NAME) or kind.data_names.fullmatch(name) for name in names)
    if not names or (PARTIAL_HEADER_NAME in names and ours):
        return folder / PARTIAL_HEADER_NAME
    listed = ", ".join(ascii(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
    raise StoreError(f"{folder} is not empty and holds no {kind.name} ({listed}); give it a folder of its own")


def _create_files(folder: Path, header: StoreHeader, text: bytes, handle: int, *, remove_folder: bool) -> None:
    """Make the files of an empty store; the header gets its name when all are on disk. Cleans up where that fails."""
    files = [*header.files(), slots_file(header)]
    try:
        os.ftruncate(handle, 0)
        write_at(handle, memoryview(text), 0)
        os.fsync(handle)
        for name in set(os.listdir(folder)) - {file.name for file in files}:
            if header.kind.data_names.fullmatch(name):
                (folder / name).unlink()  # of a beginning with other files
        for file in files:
            _make_file(folder / file.name, file.head, file.size)
        sync_folder(folder)
        os.rename(folder / PARTIAL_HEADER_NAME, folder / HEADER_NAME)
    except OSError as error:
        _remove_beginning(folder, [file.name for file in files], remove_folder)
        needed = len(text) + sum(file.size for file in files)
        raise StoreError(
            f"no {header.kind.name} could be made at {folder}: {error}. It needs {needed:,} bytes ({header.sizes}). "
            "Make room, or take another folder"
        ) from error
    sync_folder(folder)
    sync_folder(folder.absolute().parent)


def _remove_beginning(folder: Path, names: Sequence[str], remove_folder: bool) -> None:
    """Take back what was begun, its mark last. What cannot be removed is left for the next attempt."""
    with contextlib.suppress(OSError):
        for name in (*names, PARTIAL_HEADER_NAME):
            (folder / name).unlink(missing_ok=True)
        if remove_folder:
            folder.rmdir()


def _make_file(path: Path, head: bytes, size: int) -> None:
    """Make a file of `head` and zeros whose place on disk is reserved: a full disk shows now and not after hours."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
    try:
        os.ftruncate(handle, 0)
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in _NO_RESERVATION:
                raise
            os.ftruncate(handle, size)  # a file system that cannot reserve: the size at least
        write_at(handle, memoryview(head), 0)
        os.fsync(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path, kind: StoreKind, *, shared: bool = False) -> None:
    locked = try_lock(handle, shared=shared)
    if locked is False:
        raise StoreError(f"{folder}: another {kind.making} is running in this folder; wait for it, or stop it")
    if locked is None:
        logger.warning(
            "%s: this file system has no locks; see that no other %s writes this folder", folder, kind.making
        )


def _release(handle: int, owner: int) -> None:
    """Close the header. Forked copies hold the same lock, so it is given up rather than left to the last of them."""
    if os.getpid() == owner:
        with contextlib.suppress(OSError):  # no locks on this file system
            fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _is_named(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _same_header(folder: Path, header: H) -> StoredHeader[H]:
    """The header in the folder, which must say the same as ours."""
    stored = read_header(folder, type(header))
    if lines := stored.header.differences(header):
        listed = "\n  ".join(lines)
        raise StoreError(
            f"{folder} holds another {header.kind.name} than the one asked for:\n  {listed}\n"
            "Take another folder, or remove this one to make it anew"
        )
    return stored
