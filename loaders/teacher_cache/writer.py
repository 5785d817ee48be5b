"""Builds a cache of teacher embeddings: block by block, from any number of processes, through kills and power cuts.

Why it survives: the header takes its name only after the other two files have their full size on disk, and a block's
slot is written only after its rows are on disk. So at every moment a folder is either the beginning of a cache, which
is begun again, or a cache whose slots tell the truth. Nothing depends on the order in which blocks are written, nor on
who writes them: the finished files are the same bytes.

Two builds must not write one folder. Every writer holds a shared lock on the header's inode; the one that begins or
resumes needs it to itself for that moment. The kernel drops the lock when the last process that holds it ends:
processes forked from a writer hold it too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import weakref
import zlib
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from adadistill.loaders.file_lock import try_lock
from adadistill.loaders.atomic_file import sync_folder
from adadistill.loaders.stored_blocks.files import (
    HEADER_NAME,
    PARTIAL_HEADER_NAME,
    open_sized,
    read_header_bytes,
    read_start,
    write_at,
)
from adadistill.loaders.stored_blocks.header_text import MAX_HEADER_BYTES, stated_sha256
from adadistill.loaders.stored_blocks.slots import (
    EMPTY_SLOT,
    SLOT_BYTES,
    SLOTS_NAME,
    SlotFormat,
    chunk_buffer,
    crc32_of,
)
from adadistill.loaders.teacher_cache.errors import CacheError, CacheMismatchError
from adadistill.loaders.teacher_cache.header import DATA_NAME, KIND, CacheHeader

logger = logging.getLogger(__name__)

NORM_TOLERANCE = 5e-3
"""How far from 1 the norm of a row may be. Rounding a unit vector to float16 moves it by less than 1e-3."""

_CHECKED_ROWS = 2048  # rows widened to float32 at a time
_OPEN_ATTEMPTS = 100
_NO_RESERVATION = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC  # a link planted in the folder must not lead a write elsewhere


def create_or_resume(folder: str | Path, header: CacheHeader, *, main: bool) -> CacheWriter:
    """Open a cache for writing: begun where there is none, continued where a build of the same header stopped.

    Args:
        folder: of the cache: absent, empty, or what an earlier build of the same header left.
        header: what the cache holds. Must equal the header in the folder, where there is one.
        main: True in one process of a build, False in the others, which open what that one has made: call it there
            first, and let the others wait for it.

    Raises:
        CacheMismatchError: the folder holds a cache with another header; every differing field is named.
        CacheMissingError, CacheIncompleteError: `main` is False and the cache was not made yet.
        CacheDamagedError, CacheFormatError: the folder holds a cache that cannot be continued.
        CacheError: another build is running there, the folder holds something else, the disk has no room for the whole
            cache, or the folder cannot be written.
        ValueError: the header is too long to be stored.
    """
    folder = Path(folder)
    text = header.to_bytes()
    with contextlib.ExitStack() as opened:
        try:
            lock = _begin(folder, header, text, opened) if main else _join(folder, opened)
            digest = _check_same_header(folder, header, read_start(lock, MAX_HEADER_BYTES + 1))
            if main:  # a build that lost the race to begin may have been killed before it removed this
                (folder / PARTIAL_HEADER_NAME).unlink(missing_ok=True)
            data = open_sized(folder / DATA_NAME, header.data_bytes, os.O_RDWR | _NO_LINK, KIND)
            opened.callback(os.close, data)
            slots = open_sized(folder / SLOTS_NAME, SLOT_BYTES * header.num_blocks, os.O_RDWR | _NO_LINK, KIND)
            opened.callback(os.close, slots)
        except OSError as error:
            raise CacheError(f"the cache at {folder} cannot be written: {error}") from error
        return CacheWriter(folder, header, digest, data=data, slots=slots, opened=opened.pop_all())


class CacheWriter:
    """Writes the blocks of one cache; made by `create_or_resume`. A context manager.

    Threads and processes may write different blocks at the same time. `close` only when no block is being written.
    """

    def __init__(
        self,
        folder: Path,
        header: CacheHeader,
        header_sha256: str,
        *,
        data: int,
        slots: int,
        opened: contextlib.ExitStack,
    ) -> None:
        self.folder, self.header = folder, header
        self._slot_format = SlotFormat(header_sha256)
        self._data, self._slots = data, slots
        self._closing = weakref.finalize(self, opened.close)
        self._closing.atexit = False  # the kernel closes what is open then

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CacheWriter({str(self.folder)!r})"

    def close(self) -> None:
        """Close the files and give up the lock. What was written stays, finished or not. A second time does nothing."""
        self._closing()

    def pending(self, first: int = 0, stop: int | None = None) -> npt.NDArray[np.int64]:
        """Blocks in [first, stop) that are yet to be written, ascending.

        Done blocks are read again and checked: those whose bytes or slots are not what was written are pending too,
        with a warning, so that a build repairs what broke. Reading costs seconds for gigabytes; ranks can share it.

        Raises:
            IndexError: no such blocks.
            CacheError: the files cannot be read.
        """
        self._check_open()
        stop = self.header.num_blocks if stop is None else stop
        if not 0 <= first <= stop <= self.header.num_blocks:
            raise IndexError(f"blocks must be in [0, {self.header.num_blocks}), got [{first}, {stop})")
        buffer = chunk_buffer()
        missing: list[int] = []
        damaged: list[int] = []
        for block in range(first, stop):
            try:
                slot = os.pread(self._slots, SLOT_BYTES, SLOT_BYTES * block)
                state = self._slot_format.read(block, slot)
                if state.crc32 is None:
                    (damaged if state.damage else missing).append(block)
                elif crc32_of(self._data, self.header.block_byte_range(block), buffer) != state.crc32:
                    damaged.append(block)
            except OSError as error:
                raise CacheError(f"{self.folder}: block {block} cannot be read: {error}") from error
        if damaged:
            logger.warning(
                "%s: %d blocks that were done are damaged and will be computed anew, the first is %s",
                self.folder,
                len(damaged),
                self.header.describe_block(damaged[0]),
            )
        return np.array(sorted(missing + damaged), np.int64)

    def write_block(self, block: int, rows: npt.NDArray[np.float16]) -> None:
        """Store the embeddings of one block, and mark it as done when they are on disk.

        Args:
            block: in [0, header.num_blocks). Two threads must not write the same one at the same time.
            rows: (n, V, D) float16, unit vectors, of the records `header.block_record_range(block)` in that order.

        Raises:
            IndexError: no such block.
            ValueError: wrong shape or dtype, or the writer is closed.
            CacheError: a row is not finite or its norm is off 1 by more than 5e-3 (record and view are named), or the
                disk refused the bytes. The block is then not marked as done.
        """
        self._check_open()
        body = self._checked_body(block, rows)
        try:
            if os.pread(self._slots, SLOT_BYTES, SLOT_BYTES * block) != EMPTY_SLOT:
                self._write_slot(block, EMPTY_SLOT)  # a kill below must not leave new rows under an old checksum
            write_at(self._data, body, self.header.block_byte_range(block).start)
            os.fdatasync(self._data)
            self._write_slot(block, self._slot_format.pack(block, zlib.crc32(body)))
        except OSError as error:
            raise CacheError(
                f"{self.folder}: {self.header.describe_block(block)} cannot be written: {error}. "
                "What is done stays; start the build again to continue it"
            ) from error

    def _check_open(self) -> None:
        if not self._closing.alive:
            raise ValueError(f"{self!r} is closed")

    def _checked_body(self, block: int, rows: npt.NDArray[np.float16]) -> memoryview:
        ids = self.header.block_record_range(block)
        wanted = (len(ids), self.header.num_views, self.header.embedding_dim)
        if not isinstance(rows, np.ndarray) or rows.shape != wanted or rows.dtype != np.float16:
            found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
            raise ValueError(f"block {block} needs float16 {wanted}, got {found}")
        stored = np.ascontiguousarray(rows, dtype="<f2").reshape(-1, self.header.embedding_dim)  # (n * V, D)
        self._check_unit_rows(stored, ids.start)
        return memoryview(stored.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # a buffer, which its stubs hide

    def _check_unit_rows(self, rows: npt.NDArray[np.float16], first_id: int) -> None:
        for start in range(0, len(rows), _CHECKED_ROWS):
            wide = rows[start : start + _CHECKED_ROWS].astype(np.float32)
            norms = np.sqrt(np.einsum("nd,nd->n", wide, wide))
            bad = np.flatnonzero(~(np.abs(norms - 1.0) <= NORM_TOLERANCE))  # NaN is not close to 1 either
            if bad.size:
                record, column = divmod(start + int(bad[0]), self.header.num_views)
                norm = norms[bad[0]]
                what = f"has norm {norm:.6g}" if np.isfinite(norm) else "holds values that are not finite"
                raise CacheError(
                    f"{self.folder}: the embedding of record {first_id + record}, view {column} "
                    f"({self.header.views[column]}) {what}; a cache holds unit vectors (norm 1 to {NORM_TOLERANCE:g})"
                )

    def _write_slot(self, block: int, slot: bytes) -> None:
        write_at(self._slots, memoryview(slot), SLOT_BYTES * block)
        os.fdatasync(self._slots)


def _begin(folder: Path, header: CacheHeader, text: bytes, opened: contextlib.ExitStack) -> int:
    """Descriptor of the folder's header, with the shared lock; the three files are made where there are none."""
    if folder.exists() and not folder.is_dir():
        raise CacheError(f"{folder} is a file; a cache needs a folder")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle, path = _open_alone(folder)
    opened.callback(_release, handle, os.getpid())
    if path.name == PARTIAL_HEADER_NAME:
        _create_files(folder, header, text, handle, remove_folder=is_new)
    _lock(handle, folder, shared=True)
    return handle


def _join(folder: Path, opened: contextlib.ExitStack) -> int:
    """Descriptor of the header that the main process has made, with the shared lock."""
    read_header_bytes(folder, KIND)  # says what is wrong where there is none
    handle = os.open(folder / HEADER_NAME, os.O_RDONLY | _NO_LINK)
    opened.callback(_release, handle, os.getpid())
    _lock(handle, folder, shared=True)
    return handle


def _open_alone(folder: Path) -> tuple[int, Path]:
    """Open the header, or the beginning of one, with the lock to ourselves. A refused folder is not touched.

    Another build may rename or remove the file between our opening and locking it; then we look again.
    """
    for _ in range(_OPEN_ATTEMPTS):
        path = _header_path(folder)
        creating = path.name == PARTIAL_HEADER_NAME
        try:
            handle = os.open(path, os.O_RDWR | _NO_LINK | (os.O_CREAT if creating else 0), 0o666)
        except FileNotFoundError:
            continue
        try:
            _lock(handle, folder)
            if _is_named(handle, path):
                if not creating or not (folder / HEADER_NAME).exists():
                    return handle, path
                path.unlink(missing_ok=True)  # the other build finished its header before we began this one
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    raise CacheError(f"{folder}: another build keeps changing this folder; stop it, or take another folder")


def _header_path(folder: Path) -> Path:
    """Where the header is, or is to be begun. Raises CacheError where the folder holds something else."""
    names = set(os.listdir(folder))
    if HEADER_NAME in names:
        return folder / HEADER_NAME
    if not names or (PARTIAL_HEADER_NAME in names and names <= {PARTIAL_HEADER_NAME, DATA_NAME, SLOTS_NAME}):
        return folder / PARTIAL_HEADER_NAME
    listed = ", ".join(ascii(name) for name in sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
    raise CacheError(f"{folder} is not empty and holds no cache ({listed}); give the cache a folder of its own")


def _create_files(folder: Path, header: CacheHeader, text: bytes, handle: int, *, remove_folder: bool) -> None:
    """Make the files of an empty cache; the header gets its name when all are on disk. Cleans up where that fails."""
    partial = folder / PARTIAL_HEADER_NAME
    slots_bytes = SLOT_BYTES * header.num_blocks
    try:
        os.ftruncate(handle, 0)
        write_at(handle, memoryview(text), 0)
        os.fsync(handle)
        _allocate(folder / DATA_NAME, header.data_bytes)
        _allocate(folder / SLOTS_NAME, slots_bytes)
        sync_folder(folder)
        os.rename(partial, folder / HEADER_NAME)
    except OSError as error:
        _remove_beginning(folder, remove_folder)
        needed = header.data_bytes + slots_bytes + len(text)
        raise CacheError(
            f"no cache could be made at {folder}: {error}. It needs {needed:,} bytes ({header.num_records:,} records x "
            f"{header.num_views} views x {header.embedding_dim} x 2 bytes). Make room, or take another folder"
        ) from error
    sync_folder(folder)
    sync_folder(folder.parent)


def _remove_beginning(folder: Path, remove_folder: bool) -> None:
    """Take back what was begun, its mark last. What cannot be removed is left for the next attempt."""
    with contextlib.suppress(OSError):
        for name in (DATA_NAME, SLOTS_NAME, PARTIAL_HEADER_NAME):
            (folder / name).unlink(missing_ok=True)
        if remove_folder:
            folder.rmdir()


def _allocate(path: Path, size: int) -> None:
    """Make a file of zeros whose place on disk is reserved, so that a full disk shows now and not after hours."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
    try:
        os.ftruncate(handle, 0)
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in _NO_RESERVATION:
                raise
            os.ftruncate(handle, size)  # a file system that cannot reserve: the size at least
        os.fsync(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path, *, shared: bool = False) -> None:
    locked = try_lock(handle, shared=shared)
    if locked is False:
        raise CacheError(f"{folder}: another build is running in this folder; wait for it, or stop it")
    if locked is None:
        logger.warning("%s: this file system has no locks; see that no other build writes this folder", folder)


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


def _check_same_header(folder: Path, header: CacheHeader, text: bytes) -> str:
    """sha256 of the header in the folder, which must say the same as ours."""
    where = str(folder / HEADER_NAME)
    stored = CacheHeader.from_bytes(text, where=where)
    if differences := stored.differences(header):
        listed = "\n  ".join(differences)
        raise CacheMismatchError(
            f"{folder} holds another cache than the one to be built:\n  {listed}\n"
            "Take another folder, or remove this one to build it anew"
        )
    return stated_sha256(text, where=where, kind=KIND)
