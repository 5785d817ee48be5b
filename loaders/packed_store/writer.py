"""Writes the files of a packed store: block by block, from any number of processes, through kills and power cuts.

Why it survives: the header takes its name only after all other files have their full size on disk, and a block's slot
is written only after its images and labels are on disk. So at every moment a folder is either the beginning of a store,
which is begun again, or a store whose slots tell the truth. Nothing depends on the order in which blocks are written,
nor on who writes them: the finished files are the same bytes.

The main process holds a lock on the folder, so that a second packing is refused. The others hold none: what two
packings of the same header write are the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from adadistill.loaders.file_lock import try_lock
from adadistill.loaders.atomic_file import sync_folder
from adadistill.loaders.packed_store.block_sums import block_crc32, image_span, label_span
from adadistill.loaders.packed_store.errors import PackError, PackMismatchError
from adadistill.loaders.packed_store.files import (
    DAMAGED_NAME,
    HEAD_BYTES,
    DataFile,
    data_files,
    labels_file,
    open_data,
    shard_file,
    slots_file,
)
from adadistill.loaders.packed_store.header import DAMAGED_LABEL, KIND, PackedHeader
from adadistill.loaders.stored_blocks.files import (
    HEADER_NAME,
    PARTIAL_HEADER_NAME,
    read_header_bytes,
    read_start,
    write_at,
)
from adadistill.loaders.stored_blocks.header_text import stated_sha256
from adadistill.loaders.stored_blocks.json_text import JSON, dump_json
from adadistill.loaders.stored_blocks.slots import EMPTY_SLOT, SLOT_BYTES, SlotFormat, chunk_buffer, slot_of

logger = logging.getLogger(__name__)

_BEGUN_NAME = re.compile(r"header\.json\.partial|shard-\d{5}\.npy|labels\.npy|blocks\.bin")
"""What a packing that was killed as it began leaves behind."""
_PARTIAL_DAMAGED = f"{DAMAGED_NAME}.partial-"
_NO_RESERVATION = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC  # a link planted in the folder must not lead a write elsewhere


def stored_header(folder: Path) -> PackedHeader | None:
    """The header of what an earlier packing left in a folder; None where one can begin there.

    Raises:
        PackError: the folder is a file or holds something else; its subclasses, where the header is damaged.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise PackError(f"{folder} is a file; a packed store needs a folder")
    names = sorted(os.listdir(folder))
    # Looked for by name, after listing: a listing that another process's rename overtakes may show neither name of it.
    if (folder / HEADER_NAME).exists():
        return PackedHeader.from_bytes(read_header_bytes(folder, KIND), where=str(folder / HEADER_NAME))
    if names and not (PARTIAL_HEADER_NAME in names and all(map(_BEGUN_NAME.fullmatch, names))):
        listed = ", ".join(ascii(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
        raise PackError(f"{folder} is not empty and holds no packed store ({listed}); give it a folder of its own")
    return None


def create_or_resume(folder: Path, header: PackedHeader, *, main: bool) -> PackWriter:
    """Open a store for writing: begun where there is none, continued where a packing of the same header stopped.

    Args:
        folder: absent, empty, or what an earlier packing of the same header left.
        header: what the store holds. Must equal the header in the folder, where there is one.
        main: True in one process of a packing, False in the others, which open what that one has made.

    Raises:
        PackMismatchError: the folder holds another store; every differing field is named.
        PackMissingError, PackIncompleteError: `main` is False and the store was not made yet.
        PackDamagedError, PackFormatError: the folder holds a store that cannot be continued.
        PackError: another packing is running there, the folder holds something else, the disk has no room for the
            whole store, or the folder cannot be written.
    """
    with contextlib.ExitStack() as opened:
        try:
            if main:
                _begin(folder, header, opened)
            text = read_header_bytes(folder, KIND)
            _check_same_header(folder, header, text)
            return PackWriter(folder, header, stated_sha256(text, where=str(folder / HEADER_NAME), kind=KIND), opened)
        except OSError as error:
            raise PackError(f"the packed store at {folder} cannot be written: {error}") from error


class PackWriter:
    """Writes the blocks of one store; made by `create_or_resume`. A context manager.

    Threads and processes may write different blocks at the same time. `close` only when no block is being written.
    """

    def __init__(self, folder: Path, header: PackedHeader, digest: str, opened: contextlib.ExitStack) -> None:
        self.folder, self.header = folder, header
        self._header_sha256, self._slot_format = digest, SlotFormat(digest)
        self._labels = self._open(labels_file(header), opened)
        self._slots = self._open(slots_file(header), opened)
        self._opened = opened.pop_all()

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and give up the lock. What was written stays, finished or not. A second time does nothing."""
        self._opened.close()

    def is_done(self, block: int) -> bool:
        """Whether a block was written and is on disk as it was written: it is read again, a second for gigabytes.

        Raises:
            PackDamagedError: the file of its shard is missing or of a wrong size. PackError: it cannot be read.
        """
        try:
            state = self._slot_format.read(block, os.pread(self._slots, SLOT_BYTES, SLOT_BYTES * block))
            if state.crc32 is None and not state.damage:
                return False
            with self._shard(block) as shard:
                found = block_crc32(self.header, block, shard, self._labels, chunk_buffer())
        except OSError as error:
            raise PackError(f"{self.folder}: {self.header.describe_block(block)} cannot be read: {error}") from error
        if state.crc32 is not None and found == state.crc32:
            return True
        logger.warning("%s: %s is damaged and packed anew", self.folder, self.header.describe_block(block))
        return False

    def write_block(self, block: int, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> None:
        """Store one block, and mark it as done when it is on disk.

        Args:
            block: in [0, header.num_blocks). Two threads must not write the same one at the same time.
            images: (n, image_bytes) uint8 of the records `header.block_record_range(block)`, in that order.
            labels: (n,) int64 in [0, num_classes), or -1.

        Raises:
            IndexError: no such block. ValueError: wrong shapes, dtypes or labels.
            PackError: the disk refused the bytes. The block is then not marked as done.
        """
        header, count = self.header, len(self.header.block_record_range(block))
        if images.shape != (count, header.image_bytes) or images.dtype != np.uint8 or not images.flags.c_contiguous:
            raise ValueError(f"block {block} needs contiguous uint8 {(count, header.image_bytes)}, got {images.shape}")
        if labels.shape != (count,) or ((labels < DAMAGED_LABEL) | (labels >= header.num_classes)).any():
            raise ValueError(f"block {block} needs {count} labels in [0, {header.num_classes}) or -1, got {labels}")
        body, tail = memoryview(images.reshape(-1)), labels.astype("<i8").tobytes()  # type: ignore[arg-type]
        try:
            if os.pread(self._slots, SLOT_BYTES, SLOT_BYTES * block) != EMPTY_SLOT:
                self._write_slot(block, EMPTY_SLOT)  # a kill below must not leave new bytes under an old checksum
            with self._shard(block) as shard:
                write_at(shard, body, image_span(header, block).start)
                os.fdatasync(shard)
            write_at(self._labels, memoryview(tail), label_span(header, block).start)
            os.fdatasync(self._labels)
            self._write_slot(block, self._slot_format.pack(block, zlib.crc32(tail, zlib.crc32(body))))
        except OSError as error:
            raise PackError(
                f"{self.folder}: {header.describe_block(block)} cannot be written: {error}. What is done stays; "
                "start again to continue it"
            ) from error

    def missing_blocks(self) -> int:
        """How many blocks, of all processes, are not marked as done."""
        slots = read_start(self._slots, SLOT_BYTES * self.header.num_blocks)
        states = (self._slot_format.read(block, slot_of(slots, block)) for block in range(self.header.num_blocks))
        return sum(state.crc32 is None for state in states)

    def damaged_ids(self) -> npt.NDArray[np.int64]:
        """Record ids stored as damaged so far, ascending."""
        body = os.pread(self._labels, 8 * self.header.num_records, HEAD_BYTES)
        return np.flatnonzero(np.frombuffer(body, "<i8") == DAMAGED_LABEL)

    def write_damaged_list(self) -> None:
        """Write `damaged.json` from the labels, once all blocks are done; the same bytes whoever writes it.

        Raises:
            PackError: the disk refused it.
        """
        damaged: list[JSON] = [*self.damaged_ids().tolist()]
        text = dump_json({"header_sha256": self._header_sha256, "damaged": damaged}).encode()
        path = self.folder / DAMAGED_NAME
        # Not named by process: ranks in containers of their own have the same process ids.
        partial = self.folder / f"{_PARTIAL_DAMAGED}{secrets.token_hex(8)}"
        try:
            if path.is_file() and path.read_bytes() == text:
                return
            with open(partial, "xb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync_folder(self.folder)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise PackError(f"{path} cannot be written: {error}. Start again to finish") from error

    @contextlib.contextmanager
    def _shard(self, block: int) -> Iterator[int]:
        """Descriptor of the shard of a block."""
        with contextlib.ExitStack() as opened:
            yield self._open(shard_file(self.header, self.header.block_shard(block)), opened)

    def _open(self, file: DataFile, opened: contextlib.ExitStack) -> int:
        handle = open_data(self.folder, file, os.O_RDWR | _NO_LINK)
        opened.callback(os.close, handle)
        return handle

    def _write_slot(self, block: int, slot: bytes) -> None:
        write_at(self._slots, memoryview(slot), SLOT_BYTES * block)
        os.fdatasync(self._slots)


def _begin(folder: Path, header: PackedHeader, opened: contextlib.ExitStack) -> None:
    """Lock the folder for as long as `opened` lasts; make the files of an empty store where there is none."""
    is_new = not folder.exists()
    if not is_new:
        stored_header(folder)  # refuses what is no folder of ours
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    opened.callback(os.close, handle)
    locked = try_lock(handle)
    if locked is False:
        raise PackError(f"{folder}: another packing is running in this folder; wait for it, or stop it")
    if locked is None:
        logger.warning("%s: this file system has no locks; see that no other packing writes this folder", folder)
    for stale in folder.glob(f"{_PARTIAL_DAMAGED}*"):
        stale.unlink(missing_ok=True)
    if stored_header(folder) is None:
        _create_files(folder, header, remove_folder=is_new)


def _create_files(folder: Path, header: PackedHeader, *, remove_folder: bool) -> None:
    """Make the files of an empty store; the header gets its name when all are on disk. Cleans up where that fails."""
    partial = folder / PARTIAL_HEADER_NAME
    text = header.to_bytes()
    try:
        _make_file(partial, text, len(text))
        for stale in folder.glob("shard-*.npy"):  # of a beginning with other, more shards
            stale.unlink()
        for file in data_files(header):
            _make_file(folder / file.name, file.head, file.size)
        sync_folder(folder)
        os.rename(partial, folder / HEADER_NAME)
    except OSError as error:
        _remove_beginning(folder, header, remove_folder)
        needed = len(text) + sum(file.size for file in data_files(header))
        raise PackError(
            f"no packed store could be made at {folder}: {error}. It needs {needed:,} bytes ({header.num_records:,} "
            f"images x {header.image_bytes:,} bytes as {header.layout}). Make room, or take another folder"
        ) from error
    sync_folder(folder)
    sync_folder(folder.absolute().parent)


def _remove_beginning(folder: Path, header: PackedHeader, remove_folder: bool) -> None:
    """Take back what was begun, its mark last. What cannot be removed is left for the next attempt."""
    with contextlib.suppress(OSError):
        for name in (*(file.name for file in data_files(header)), PARTIAL_HEADER_NAME):
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


def _check_same_header(folder: Path, header: PackedHeader, text: bytes) -> None:
    stored = PackedHeader.from_bytes(text, where=str(folder / HEADER_NAME))
    if lines := stored.differences(header):
        listed = "\n  ".join(lines)
        raise PackMismatchError(
            f"{folder} holds another store than the one to be packed:\n  {listed}\n"
            "Take another folder, or remove this one to pack it anew"
        )
