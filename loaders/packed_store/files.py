"""The files of a packed store: their names, the `.npy` heads before the data, and what must be true of each.

Images and labels are plain `.npy` files, so that numpy opens them without adadistill. Their heads are written here, not
by numpy, whose heads differ between its versions: the same images must be the same bytes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adadistill.loaders.packed_store.errors import (
    PackDamagedError,
    PackError,
    PackIncompleteError,
    PackMissingError,
)
from adadistill.loaders.packed_store.header import MAX_HEADER_BYTES, PackedHeader
from adadistill.loaders.teacher_cache.blocks import SLOT_BYTES
from adadistill.loaders.teacher_cache.files import read_start

HEADER_NAME = "header.json"
PARTIAL_HEADER_NAME = "header.json.partial"
"""The header until the other files are there: a folder that holds it holds no images yet."""
LABELS_NAME = "labels.npy"
SLOTS_NAME = "blocks.bin"
DAMAGED_NAME = "damaged.json"

PACK_COMMAND = "adadistill data pack RECORDS FOLDER"
HEAD_BYTES = 128
"""Of each `.npy` file, before its data."""

_MAGIC = b"\x93NUMPY\x01\x00"


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of a store: `head`, then `data_bytes` bytes."""

    name: str
    head: bytes
    data_bytes: int

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.head) + self.data_bytes


def shard_file(header: PackedHeader, shard: int) -> DataFile:
    """The images of one shard: (n, image_bytes) uint8."""
    count = len(header.shard_record_range(shard))
    head = _npy_head("|u1", (count, header.image_bytes))
    return DataFile(f"shard-{shard:05d}.npy", head, count * header.image_bytes)


def labels_file(header: PackedHeader) -> DataFile:
    """The labels of all images: (N,) int64."""
    return DataFile(LABELS_NAME, _npy_head("<i8", (header.num_records,)), 8 * header.num_records)


def slots_file(header: PackedHeader) -> DataFile:
    """16 bytes for each block, see `loaders.teacher_cache.blocks`."""
    return DataFile(SLOTS_NAME, b"", SLOT_BYTES * header.num_blocks)


def data_files(header: PackedHeader) -> Iterator[DataFile]:
    """All files of a store but the header and the list of damaged records."""
    yield from (shard_file(header, shard) for shard in range(header.num_shards))
    yield labels_file(header)
    yield slots_file(header)


def read_header_bytes(folder: Path) -> bytes:
    """Content of `header.json`, one byte more than allowed at most.

    Raises:
        PackMissingError: there is no folder, or no store in it.
        PackIncompleteError: a packing was killed before it had a header.
        PackDamagedError: it is no regular file.
        OSError: it cannot be read; names it.
    """
    try:
        handle = _open_regular(folder / HEADER_NAME, os.O_RDONLY)
    except FileNotFoundError:
        if (folder / PARTIAL_HEADER_NAME).exists():
            raise PackIncompleteError(
                f"{folder}: its packing was stopped as it began. Continue it with: {PACK_COMMAND}"
            ) from None
        what = "holds no header.json" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise PackMissingError(f"no packed store at {folder}: it {what}. Make it with: {PACK_COMMAND}") from None
    except NotADirectoryError:
        raise PackMissingError(f"no packed store at {folder}: it is a file. Make it with: {PACK_COMMAND}") from None
    try:
        return read_start(handle, MAX_HEADER_BYTES + 1)
    finally:
        os.close(handle)


def open_data(folder: Path, file: DataFile, flags: int) -> int:
    """Descriptor of one file of a store, which must have the size and the head that the header implies.

    Raises:
        PackDamagedError: it is missing, no regular file, of another size, or begins otherwise.
        PackError: the process has too many files open.
        OSError: it cannot be opened; names it.
    """
    path = folder / file.name
    remedy = f"Restore it from a copy, or remove the folder and pack again: {PACK_COMMAND}"
    try:
        handle = _open_regular(path, flags)
    except FileNotFoundError:
        raise PackDamagedError(f"{path} is missing beside its header.json. {remedy}") from None
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise PackError(
            f"{path} cannot be opened: this process has too many files open. Raise the limit (ulimit -n), or pack "
            "with a larger --shard-records"
        ) from None
    try:
        found = os.fstat(handle).st_size
        if found != file.size:
            verb = "was cut short" if found < file.size else "has grown"
            raise PackDamagedError(f"{path} {verb}: it has {found} bytes, header.json wants {file.size}. {remedy}")
        if read_start(handle, len(file.head)) != file.head:
            raise PackDamagedError(f"{path} is damaged: its first {HEAD_BYTES} bytes are not its `.npy` head. {remedy}")
    except BaseException:
        os.close(handle)
        raise
    return handle


def _npy_head(descr: str, shape: tuple[int, ...]) -> bytes:
    """128 bytes that describe a C-contiguous array in `.npy` format 1.0."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    length = HEAD_BYTES - len(_MAGIC) - 2
    return _MAGIC + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n"


def _open_regular(path: Path, flags: int) -> int:
    handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would wait for its other end
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise PackDamagedError(f"{path} is no regular file; those of a packed store are")
    return handle
